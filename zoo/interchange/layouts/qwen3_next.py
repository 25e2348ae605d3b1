"""Qwen3-Next in the layout of transformers: Gated DeltaNet, gated attention, mixtures of experts, norms around 1."""

from collections.abc import Set
from typing import Any

import numpy as np

import zoo
from zoo.interchange.config import Config
from zoo.interchange.layouts.base import (
    CONV,
    FLAT,
    HEADS_IN,
    HEADS_OUT,
    LINEAR,
    ONE_MORE,
    SAME,
    Layout,
    Transform,
    Weight,
    layer_places,
    of_type,
    outer_weights,
    stacked,
)
from zoo.interchange.layouts.jamba import expert_weights
from zoo.interchange.layouts.llama import rope_fields, rotation, swiglu_weights
from zoo.models import LanguageModel
from zoo.models.stack import repeating_unit

KINDS = {"linear_attention": "gated_deltanet", "full_attention": "gated_attention"}
WITHOUT_EFFECT = ("attention_dropout", "output_router_logits", "router_aux_loss_coef")

# Query and gate of every head side by side: [H 2 K, D] for two [D, H, K], [H 2 K] for two [H, K].
QUERY_GATE = Transform(
    lambda a, shapes: np.split(a.T.reshape(*shapes[0][:2], -1), 2, axis=2),
    lambda p: stacked(p, axis=2).reshape(p[0].shape[0], -1).T,
)
QUERY_GATE_BIAS = Transform(
    lambda a, shapes: np.split(a.reshape(shapes[0][0], -1), 2, axis=1), lambda p: stacked(p, axis=1).reshape(-1)
)


def by_groups(groups: int) -> Transform:
    """Several linear maps, [D, groups * width] each, in one whose outputs are sorted by group: [sum of outputs, D]."""

    def ours(a, shapes):
        widths = np.cumsum([shape[1] // groups for shape in shapes])
        parts = np.split(a.T.reshape(a.shape[1], groups, -1), widths[:-1], axis=2)
        return [part.reshape(shape) for part, shape in zip(parts, shapes)]

    def theirs(p):
        return stacked([a.reshape(a.shape[0], groups, -1) for a in p], axis=2).reshape(p[0].shape[0], -1).T

    return Transform(ours, theirs)


def _cycle(layers: tuple[Any, ...]) -> tuple[Any, ...]:
    return repeating_unit(layers)[0]


def _layer_types(config: Config, depth: int) -> list[str]:
    every = config.size("full_attention_interval", 4)
    kinds = config.value("layer_types", [list(KINDS)[(i + 1) % every == 0] for i in range(depth)])
    if not isinstance(kinds, list | tuple) or len(kinds) != depth or not all(str(kind) in KINDS for kind in kinds):
        raise config.error("layer_types", f"a list of num_hidden_layers = {depth} names, {' or '.join(KINDS)}", kinds)
    return list(kinds)


def _mlps(config: Config, depth: int) -> tuple[Any, ...]:
    experts, chosen = config.size("num_experts", 512), config.size("num_experts_per_tok", 10)
    if chosen > experts:
        raise config.error("num_experts_per_tok", f"at most num_experts = {experts}", chosen)
    moe = {
        "name": "moe", "experts": experts, "top_k": chosen, "hidden_dim": config.size("moe_intermediate_size", 512),
        "shared_dim": config.size("shared_expert_intermediate_size", 512),
        "renormalize": config.flag("norm_topk_prob", True),
    }  # fmt: skip
    step, dense = config.size("decoder_sparse_step", 1), config.value("mlp_only_layers", ())
    if not isinstance(dense, list | tuple) or not all(isinstance(i, int) for i in dense):
        raise config.error("mlp_only_layers", "a list of integers", dense)
    return tuple("swiglu" if i in dense or (i + 1) % step else moe for i in range(depth))


def _model(config: Config) -> LanguageModel:
    config.ignore(WITHOUT_EFFECT)
    config.must("hidden_act", "silu")
    dim, depth = config.size("hidden_size", 2048), config.size("num_hidden_layers", 48)
    heads, eps = config.size("num_attention_heads", 16), config.number("rms_norm_eps", 1e-6)
    mixers = {
        "full_attention": {
            "name": "gated_attention", "heads": heads, "kv_heads": config.size("num_key_value_heads", 2),
            "head_dim": config.size("head_dim", 256), "window": config.size("max_position_embeddings", 32768),
            "use_bias": config.flag("attention_bias", False), "norm_eps": eps, **rotation(config, fraction=0.25),
        },
        "linear_attention": {
            "name": "gated_deltanet", "heads": config.size("linear_num_value_heads", 32),
            "key_heads": config.size("linear_num_key_heads", 16), "head_dim": config.size("linear_value_head_dim", 128),
            "key_dim": config.size("linear_key_head_dim", 128), "conv_size": config.size("linear_conv_kernel_dim", 4),
            "norm_eps": eps,
        },
    }  # fmt: skip
    return LanguageModel(
        vocab_size=config.size("vocab_size", 151_936), dim=dim, depth=depth,
        pattern=_cycle(tuple(mixers[kind] for kind in _layer_types(config, depth))), mlp=_cycle(_mlps(config, depth)),
        mlp_dim=config.size("intermediate_size", 5632), norm="rms", norm_eps=eps, embedding_scale=1.0,
        tie_embeddings=config.flag("tie_word_embeddings", False),
    )  # fmt: skip


def _config(model: LanguageModel) -> dict[str, Any]:
    names = {ours: theirs for theirs, ours in KINDS.items()}
    blocks = model.stack().blocks()
    mixers = {mixer if isinstance(mixer, str) else mixer["name"]: mixer for mixer, _ in blocks}
    moes = [mlp for _, mlp in blocks if not isinstance(mlp, str) and mlp["name"] == "moe"]
    if set(mixers) != set(names) or not moes:
        raise ValueError(
            f"layout 'qwen3_next' holds {' and '.join(names)} layers and mixtures of experts, the model has "
            f"{', '.join(mixers)} and {len(moes)} mixtures of experts"
        )
    attention, delta = (zoo.create(mixers[name], dim=model.dim) for name in ("gated_attention", "gated_deltanet"))
    groups, keys, values = delta.widths()
    moe = {"renormalize": False, **moes[0]}
    return {
        "model_type": "qwen3_next", "architectures": ["Qwen3NextForCausalLM"], "vocab_size": model.vocab_size,
        "hidden_size": model.dim, "intermediate_size": model.mlp_dim, "num_hidden_layers": len(blocks),
        "num_attention_heads": attention.heads, "num_key_value_heads": attention.kv_heads or attention.heads,
        "head_dim": attention.head_dim or model.dim // attention.heads, "attention_bias": attention.use_bias,
        "max_position_embeddings": attention.window, "rms_norm_eps": model.norm_eps, "hidden_act": "silu",
        "rope_parameters": {**rope_fields(attention), "partial_rotary_factor": attention.rotary_fraction},
        "linear_num_value_heads": delta.heads, "linear_num_key_heads": groups, "linear_value_head_dim": values,
        "linear_key_head_dim": keys, "linear_conv_kernel_dim": delta.conv_size,
        "layer_types": [names[mixer if isinstance(mixer, str) else mixer["name"]] for mixer, _ in blocks],
        "mlp_only_layers": [i for i, (_, mlp) in enumerate(blocks) if mlp == "swiglu"], "decoder_sparse_step": 1,
        "num_experts": moe.get("experts"), "num_experts_per_tok": moe.get("top_k"),
        "moe_intermediate_size": moe.get("hidden_dim"), "shared_expert_intermediate_size": moe.get("shared_dim"),
        "norm_topk_prob": moe["renormalize"], "tie_word_embeddings": model.tie_embeddings,
    }  # fmt: skip


DELTA = {
    "conv1d.weight": ("kernel", CONV), "A_log": ("A_log", SAME), "dt_bias": ("dt_bias", SAME),
    "norm.weight": ("scale", SAME), "out_proj.weight": ("output", LINEAR),
}  # fmt: skip


def _delta_weights(prefix: str, at: Any, mixer: Any) -> list[Weight]:
    found = [Weight(f"{prefix}{key}", at("mixer", ours), how) for key, (ours, how) in DELTA.items()]
    how = by_groups(mixer["key_heads"])
    for key, names in (("qkvz", ("query", "key", "value", "gate")), ("ba", ("beta", "dt"))):
        found.append(Weight(f"{prefix}in_proj_{key}.weight", sum((at("mixer", n) for n in names), ()), how))
    return found


def _attention_weights(prefix: str, at: Any, use_bias: bool) -> list[Weight]:
    found = [
        Weight(f"{prefix}q_proj.weight", at("mixer", "query") + at("mixer", "gate"), QUERY_GATE),
        Weight(f"{prefix}k_proj.weight", at("mixer", "key"), HEADS_OUT),
        Weight(f"{prefix}v_proj.weight", at("mixer", "value"), HEADS_OUT),
        Weight(f"{prefix}o_proj.weight", at("mixer", "output"), HEADS_IN),
        Weight(f"{prefix}q_norm.weight", at("mixer", "query_norm"), ONE_MORE),
        Weight(f"{prefix}k_norm.weight", at("mixer", "key_norm"), ONE_MORE),
    ]
    if use_bias:
        both = at("mixer", "query_bias") + at("mixer", "gate_bias")
        found.append(Weight(f"{prefix}q_proj.bias", both, QUERY_GATE_BIAS))
        for theirs, ours, how in (("k", "key", FLAT), ("v", "value", FLAT), ("o", "output", SAME)):
            found.append(Weight(f"{prefix}{theirs}_proj.bias", at("mixer", f"{ours}_bias"), how))
    return found


def _weights(model: LanguageModel, keys: Set[str]) -> list[Weight]:
    found = outer_weights(model, "model.embed_tokens.weight", "model.norm", scale=ONE_MORE)
    for i, (at, (mixer, mlp)) in enumerate(zip(layer_places(model), model.stack().blocks())):
        prefix = f"model.layers.{i}."
        found.append(Weight(f"{prefix}input_layernorm.weight", at("mixer_norm", "scale"), ONE_MORE))
        found.append(Weight(f"{prefix}post_attention_layernorm.weight", at("mlp_norm", "scale"), ONE_MORE))
        if mixer["name"] == "gated_attention":
            found += _attention_weights(f"{prefix}self_attn.", at, mixer["use_bias"])
        else:
            found += _delta_weights(f"{prefix}linear_attn.", at, mixer)
        if mlp == "swiglu":
            found += swiglu_weights(f"{prefix}mlp.", at)
            continue
        found.append(Weight(f"{prefix}mlp.gate.weight", at("mlp", "router"), LINEAR))
        found.append(Weight(f"{prefix}mlp.shared_expert_gate.weight", at("mlp", "shared_weight"), LINEAR))
        for name in ("gate", "up", "down"):
            places = at("mlp", f"shared_{name}")
            found.append(Weight(f"{prefix}mlp.shared_expert.{name}_proj.weight", places, LINEAR))
        found += expert_weights(f"{prefix}mlp.experts.", at, mlp["experts"], keys)
    return found


LAYOUTS = (
    Layout(
        name="qwen3_next", reads=of_type("qwen3_next"), model=_model, config=_config, weights=_weights,
        depth_field="num_hidden_layers", prefix="model.", embedding="model.embed_tokens.weight",
        ignore=(r"mtp\..*",),  # heads that guess several tokens ahead, for speculative decoding
    ),
)  # fmt: skip
