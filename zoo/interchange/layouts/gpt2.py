"""GPT-2 in the layout of transformers: linear maps are [in, out], queries, keys and values one of them."""

from collections.abc import Set
from typing import Any

import numpy as np

import zoo
from zoo.interchange.config import Config
from zoo.interchange.layouts.base import (
    SAME,
    Layout,
    Place,
    Transform,
    Weight,
    layer_places,
    of_type,
    options_of,
    outer_weights,
    stacked,
)
from zoo.models import LanguageModel

MLPS = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu", "relu": "relu", "silu": "silu"}
WITHOUT_EFFECT = ("resid_pdrop", "embd_pdrop", "attn_pdrop", "summary_type", "summary_use_proj", "summary_activation",
                  "summary_proj_to_labels", "summary_first_dropout", "reorder_and_upcast_attn", "n_ctx")  # fmt: skip

# [D, 3 H K] for three [D, H, K]; [3 H K] for three [H, K]; [H K, D] for [H, K, D]
QKV = Transform(
    lambda a, shapes: [part.reshape(shape) for part, shape in zip(np.split(a, 3, axis=1), shapes)],
    lambda p: stacked([a.reshape(a.shape[0], -1) for a in p], axis=1),
)
QKV_BIAS = Transform(
    lambda a, shapes: [part.reshape(shape) for part, shape in zip(np.split(a, 3), shapes)],
    lambda p: stacked([a.reshape(-1) for a in p], axis=0),
)
OUTPUT = Transform(lambda a, shapes: [a.reshape(shapes[0])], lambda p: p[0].reshape(-1, p[0].shape[-1]))


def _model(config: Config) -> LanguageModel:
    config.ignore(WITHOUT_EFFECT)
    config.must("scale_attn_weights", True)
    config.must("scale_attn_by_inverse_layer_idx", False)
    config.must("add_cross_attention", False)
    dim, positions = config.size("n_embd", 768), config.size("n_positions", 1024)
    mixer = {
        "name": "attention", "heads": config.size("n_head", 12), "window": positions, "positions": "none",
        "use_bias": True,
    }  # fmt: skip
    return LanguageModel(
        vocab_size=config.size("vocab_size", 50257), dim=dim, pattern=(mixer,), depth=config.size("n_layer", 12),
        mlp=MLPS[config.must("activation_function", *MLPS)], mlp_dim=config.size("n_inner", 4 * dim), norm="layer",
        norm_eps=config.number("layer_norm_epsilon", 1e-5), positions="learned", max_positions=positions,
        embedding_scale=1.0, tie_embeddings=config.flag("tie_word_embeddings", True),
    )  # fmt: skip


def _config(model: LanguageModel) -> dict[str, Any]:
    mixer = zoo.create("attention", dim=model.dim, **options_of(model.pattern[0], "attention"))
    names = {ours: theirs for theirs, ours in reversed(MLPS.items())}
    if model.mlp not in names:
        raise ValueError(f"layout 'gpt2' has feed-forward layers {', '.join(names)}, the model has {model.mlp}")
    return {
        "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "vocab_size": model.vocab_size, "n_embd": model.dim,
        "n_layer": model.depth, "n_head": mixer.heads, "n_inner": model.mlp_dim, "n_positions": model.max_positions,
        "activation_function": names[model.mlp], "layer_norm_epsilon": model.norm_eps,
        "tie_word_embeddings": model.tie_embeddings,
    }  # fmt: skip


def _weights(model: LanguageModel, keys: Set[str]) -> list[Weight]:
    found = outer_weights(model, "transformer.wte.weight", "transformer.ln_f", bias=True)
    found.append(Weight("transformer.wpe.weight", (Place(("positions",)),)))
    for i, at in enumerate(layer_places(model)):
        prefix = f"transformer.h.{i}."
        for theirs, ours in (("ln_1", "mixer_norm"), ("ln_2", "mlp_norm")):
            found.append(Weight(f"{prefix}{theirs}.weight", at(ours, "scale")))
            found.append(Weight(f"{prefix}{theirs}.bias", at(ours, "bias")))
        qkv, bias = (sum((at("mixer", f"{n}{s}") for n in ("query", "key", "value")), ()) for s in ("", "_bias"))
        found.append(Weight(f"{prefix}attn.c_attn.weight", qkv, QKV))
        found.append(Weight(f"{prefix}attn.c_attn.bias", bias, QKV_BIAS))
        found.append(Weight(f"{prefix}attn.c_proj.weight", at("mixer", "output"), OUTPUT))
        found.append(Weight(f"{prefix}attn.c_proj.bias", at("mixer", "output_bias")))
        for theirs, ours in (("c_fc", "up"), ("c_proj", "down")):
            found.append(Weight(f"{prefix}mlp.{theirs}.weight", at("mlp", ours, "kernel"), SAME))
            found.append(Weight(f"{prefix}mlp.{theirs}.bias", at("mlp", ours, "bias")))
    return found


LAYOUTS = (
    Layout(
        name="gpt2", reads=of_type("gpt2"), model=_model, config=_config, weights=_weights, depth_field="n_layer",
        prefix="transformer.", embedding="transformer.wte.weight", ignore=(r".*\.attn\.(bias|masked_bias)",),
    ),
)  # fmt: skip
