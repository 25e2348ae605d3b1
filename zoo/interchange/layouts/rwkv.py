"""RWKV-4 in the layout of transformers: every block is a time mixing and a channel mixing layer of the zoo."""

from collections.abc import Set
from typing import Any

import zoo
from zoo.interchange.config import Config
from zoo.interchange.layouts.base import (
    LINEAR,
    SAME,
    Layout,
    Place,
    Transform,
    Weight,
    layer_places,
    of_type,
    options_of,
    outer_weights,
)
from zoo.models import LanguageModel

CHANNELS = Transform(lambda a, _: [a[0, 0]], lambda p: p[0][None, None])  # [1, 1, D] for [D]
TIME_MIX = {
    "time_decay": ("decay", SAME), "time_first": ("bonus", SAME), "time_mix_key": ("mix_key", CHANNELS),
    "time_mix_value": ("mix_value", CHANNELS), "time_mix_receptance": ("mix_receptance", CHANNELS),
    "key.weight": ("key", LINEAR), "value.weight": ("value", LINEAR), "receptance.weight": ("receptance", LINEAR),
    "output.weight": ("output", LINEAR),
}  # fmt: skip
CHANNEL_MIX = {
    "time_mix_key": ("mix_key", CHANNELS), "time_mix_receptance": ("mix_receptance", CHANNELS),
    "key.weight": ("key", LINEAR), "receptance.weight": ("receptance", LINEAR), "value.weight": ("value", LINEAR),
}  # fmt: skip


def _model(config: Config) -> LanguageModel:
    # rescale_every halves hidden states and the weights that add to them, against overflow in half precision: but for
    # the epsilon of the norms nothing comes of it.
    config.ignore(("context_length", "rescale_every"))
    dim = config.size("hidden_size", 4096)
    if config.size("attention_hidden_size", dim) != dim:
        raise config.error("attention_hidden_size", f"hidden_size = {dim}", config.value("attention_hidden_size"))
    # The last norm has this epsilon whatever the field says.
    config.must("layer_norm_epsilon", 1e-5)
    channel_mix = {"name": "rwkv4_channel_mix", "hidden_dim": config.size("intermediate_size", 4 * dim)}
    return LanguageModel(
        vocab_size=config.size("vocab_size", 50277), dim=dim, pattern=("rwkv4", channel_mix),
        depth=2 * config.size("num_hidden_layers", 32), mlp="none", norm="layer", norm_eps=1e-5, embedding_scale=1.0,
        embedding_norm=True, tie_embeddings=config.flag("tie_word_embeddings", False),
    )  # fmt: skip


def _config(model: LanguageModel) -> dict[str, Any]:
    if len(model.pattern) != 2:
        raise ValueError(f"layout 'rwkv' holds the pattern (rwkv4, rwkv4_channel_mix), the model has {model.pattern}")
    options_of(model.pattern[0], "rwkv4")
    channel_mix = zoo.create("rwkv4_channel_mix", dim=model.dim, **options_of(model.pattern[1], "rwkv4_channel_mix"))
    return {
        "model_type": "rwkv", "architectures": ["RwkvForCausalLM"], "vocab_size": model.vocab_size,
        "hidden_size": model.dim, "attention_hidden_size": model.dim, "num_hidden_layers": (model.depth or 2) // 2,
        "intermediate_size": channel_mix.hidden_dim or 4 * model.dim, "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": model.tie_embeddings,
    }  # fmt: skip


def _weights(model: LanguageModel, keys: Set[str]) -> list[Weight]:
    found = outer_weights(model, "rwkv.embeddings.weight", "rwkv.ln_out", bias=True, output="head.weight")
    layers = layer_places(model)

    def norm(prefix, at):
        return [Weight(f"{prefix}.weight", at("scale")), Weight(f"{prefix}.bias", at("bias"))]

    found += norm("rwkv.blocks.0.pre_ln", lambda leaf: (Place(("embedding_norm", leaf)),))
    for i, (time_mix, channel_mix) in enumerate(zip(layers[::2], layers[1::2])):
        prefix = f"rwkv.blocks.{i}."
        for name, at in (("ln1", time_mix), ("ln2", channel_mix)):
            found += norm(f"{prefix}{name}", lambda leaf, at=at: at("mixer_norm", leaf))
        for name, at, table in (("attention", time_mix, TIME_MIX), ("feed_forward", channel_mix, CHANNEL_MIX)):
            found += [Weight(f"{prefix}{name}.{key}", at("mixer", ours), how) for key, (ours, how) in table.items()]
    return found


LAYOUTS = (
    Layout(
        name="rwkv", reads=of_type("rwkv"), model=_model, config=_config, weights=_weights,
        depth_field="num_hidden_layers", prefix="rwkv.", tied="head.weight", embedding="rwkv.embeddings.weight",
    ),
)  # fmt: skip
