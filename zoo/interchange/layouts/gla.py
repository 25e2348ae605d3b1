"""GLA and RetNet in the layouts of flash-linear-attention (its model types "gla" and "retnet").

Read are models of one kind of layer: without short convolutions, grouped keys, feature maps or softmax layers among them.
"""

from collections.abc import Mapping, Set
from typing import Any

import zoo
from zoo.interchange.config import Config
from zoo.interchange.layouts.base import (
    FLAT,
    HEADS_IN,
    HEADS_OUT,
    LINEAR,
    SAME,
    Layout,
    Transform,
    Weight,
    layer_places,
    of_type,
    options_of,
    outer_weights,
)
from zoo.interchange.layouts.llama import swiglu_weights
from zoo.models import LanguageModel

EXPANSIONS = {"gla": (0.5, 1.0, 4), "retnet": (1.0, 2.0, 2)}  # default expand_k, expand_v and hidden_ratio
HEADS = {"gla": 4, "retnet": 8}
# theirs, under "attn." -> ours, and how; those of both kinds
SHARED: Mapping[str, tuple[str, Transform]] = {
    "q_proj.weight": ("query", HEADS_OUT),
    "k_proj.weight": ("key", HEADS_OUT),
    "v_proj.weight": ("value", HEADS_OUT),
    "o_proj.weight": ("output", HEADS_IN),
}
GATES: Mapping[str, tuple[str, Transform]] = {
    "gk_proj.0.weight": ("forget_down", LINEAR),
    "gk_proj.1.weight": ("forget_up", HEADS_OUT),
    "gk_proj.1.bias": ("forget_bias", FLAT),
}


def _model(kind: str, config: Config) -> LanguageModel:
    # How the same numbers are computed, and what the layers never read.
    config.ignore(
        ("attn_mode", "fuse_norm", "fuse_swiglu", "fuse_cross_entropy", "fuse_linear_cross_entropy", "use_l2warp",
         "conv_size", "use_gk", "use_gv", "max_position_embeddings")
    )  # fmt: skip
    config.must("hidden_act", "swish")
    config.must("use_short_conv", False)
    config.must("elementwise_affine", True)
    for name in ("feature_map", "attn", "attnres_block_size"):
        config.must(name, None)
    keys, values, ratio = EXPANSIONS[kind]
    dim, heads = config.size("hidden_size", 2048), config.size("num_heads", HEADS[kind])
    config.must("num_kv_heads", None, heads)
    eps, gated = config.number("norm_eps", 1e-6), config.flag("use_output_gate", True)
    mixer = {
        "name": kind, "heads": heads, "key_expansion": config.number("expand_k", keys),
        "value_expansion": config.number("expand_v", values), "norm_eps": eps,
    }  # fmt: skip
    if kind == "gla":
        least = config.value("clamp_min")
        mixer |= {"output_gate": gated, "gate_min": None if least is None else config.number("clamp_min")}
    elif not gated:
        raise config.error("use_output_gate", "true", gated)
    ratio = config.size("hidden_ratio", ratio)
    inner = -(-int(dim * ratio * 2 / 3) // 256) * 256
    return LanguageModel(
        vocab_size=config.size("vocab_size", 32_000), dim=dim, pattern=(mixer,), depth=config.size("num_hidden_layers", 24),
        mlp="swiglu", mlp_dim=config.size("intermediate_size", inner), norm="rms", norm_eps=eps, embedding_scale=1.0,
        tie_embeddings=config.flag("tie_word_embeddings", False),
    )  # fmt: skip


def _config(kind: str, model: LanguageModel) -> dict[str, Any]:
    mixer = zoo.create(kind, dim=model.dim, **options_of(model.pattern[0], kind))
    if mixer.norm_eps != model.norm_eps:
        raise ValueError(f"layout {kind!r} has one norm_eps, the model has {mixer.norm_eps} and {model.norm_eps}")
    if kind == "gla":
        if (mixer.gate_rank, mixer.gate_divisor) != (16, 16.0):
            raise ValueError(
                f"layout 'gla' has gate_rank 16 and gate_divisor 16, got {mixer.gate_rank} and {mixer.gate_divisor}"
            )
        fields = {"use_output_gate": mixer.output_gate, "clamp_min": mixer.gate_min}
    else:
        if (mixer.norm, mixer.norm_scale, mixer.base) != ("rms", True, 10_000.0):
            raise ValueError("layout 'retnet' has norm 'rms' with a scale and base 10000, the model has others")
        fields = {"use_output_gate": True}
    return {
        "model_type": kind, "architectures": [{"gla": "GLAForCausalLM", "retnet": "RetNetForCausalLM"}[kind]],
        "vocab_size": model.vocab_size, "hidden_size": model.dim, "num_hidden_layers": model.depth,
        "num_heads": mixer.heads, "expand_k": mixer.key_expansion, "expand_v": mixer.value_expansion,
        "intermediate_size": model.mlp_dim, "hidden_act": "swish", "norm_eps": model.norm_eps,
        "tie_word_embeddings": model.tie_embeddings, **fields,
    }  # fmt: skip


def _weights(kind: str, model: LanguageModel, keys: Set[str]) -> list[Weight]:
    gated = options_of(model.pattern[0], kind).get("output_gate", True)
    # The norm's name says whether it is fused with the gate.
    plain = not gated or any(key.endswith(".attn.g_norm.weight") for key in keys)
    inner = {**SHARED, "g_norm.weight" if plain else "g_norm_swish_gate.weight": ("scale", SAME)}
    inner |= {"g_proj.weight": ("gate", HEADS_OUT)} if gated else {}
    inner |= GATES if kind == "gla" else {}
    found = outer_weights(model, "model.embeddings.weight", "model.norm")
    for i, at in enumerate(layer_places(model)):
        prefix = f"model.layers.{i}."
        found.append(Weight(f"{prefix}attn_norm.weight", at("mixer_norm", "scale")))
        found.append(Weight(f"{prefix}mlp_norm.weight", at("mlp_norm", "scale")))
        found += [Weight(f"{prefix}attn.{theirs}", at("mixer", ours), how) for theirs, (ours, how) in inner.items()]
        found += swiglu_weights(f"{prefix}mlp.", at)
    return found


def _layout(kind: str) -> Layout:
    return Layout(
        name=kind, reads=of_type(kind), model=lambda config: _model(kind, config),
        config=lambda model: _config(kind, model), weights=lambda model, keys: _weights(kind, model, keys),
        depth_field="num_hidden_layers", prefix="model.", embedding="model.embeddings.weight",
    )  # fmt: skip


LAYOUTS = (_layout("gla"), _layout("retnet"))
