"""Llama in the layout of transformers, and what other decoders with its names share."""

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
    Weight,
    layer_places,
    of_type,
    options_of,
    outer_weights,
)
from zoo.models import LanguageModel


def rotation(config: Config, *, fraction: float = 1.0) -> dict[str, Any]:
    """Options base, rotary_fraction and rotary_scaling of ``attention`` from rope_parameters or the older fields.

    ``fraction`` stands for a missing share of rotated channels.
    """
    fields = config.value("rope_parameters")
    if fields is None:
        fields = {"rope_theta": config.value("rope_theta", 10_000.0), **(config.value("rope_scaling") or {})}
    if not isinstance(fields, Mapping):
        raise config.error("rope_parameters", "an object", fields)
    rope = Config(fields, f"{config.source}: rope_parameters")
    older = rope.value("type")  # the older name of rope_type
    kind = rope.must("rope_type", *((older,) if older else ()), "default", "linear", "llama3")
    options: dict[str, Any] = {"base": rope.number("rope_theta", 10_000.0), "rotary_scaling": None}
    options["rotary_fraction"] = rope.number("partial_rotary_factor", config.value("partial_rotary_factor", fraction))
    if kind in ("linear", "llama3"):
        options["rotary_scaling"] = {"factor": rope.number("factor")}
    if kind == "llama3":
        for name in ("low_freq_factor", "high_freq_factor", "original_max_position_embeddings"):
            options["rotary_scaling"][name] = rope.number(name)
    rope.finish()
    return options


def rope_fields(mixer: Any) -> dict[str, Any]:
    """rope_parameters of an attention mixer."""
    scaling = dict(mixer.rotary_scaling or {})
    kind = "llama3" if "low_freq_factor" in scaling else "linear" if scaling else "default"
    if "original_max_position_embeddings" in scaling:
        scaling["original_max_position_embeddings"] = int(scaling["original_max_position_embeddings"])
    partial = {} if mixer.rotary_fraction == 1 else {"partial_rotary_factor": mixer.rotary_fraction}
    return {"rope_theta": mixer.base, "rope_type": kind, **scaling, **partial}


def attention_weights(prefix: str, at: Any, use_bias: bool, output_bias: bool | None = None) -> list[Weight]:
    """q_proj, k_proj, v_proj and o_proj of one attention layer; ``output_bias`` None: as ``use_bias``."""
    found = []
    for theirs, ours in (("q", "query"), ("k", "key"), ("v", "value"), ("o", "output")):
        how = HEADS_IN if theirs == "o" else HEADS_OUT
        found.append(Weight(f"{prefix}{theirs}_proj.weight", at("mixer", ours), how))
        if output_bias if theirs == "o" and output_bias is not None else use_bias:
            places = at("mixer", f"{ours}_bias")
            found.append(Weight(f"{prefix}{theirs}_proj.bias", places, SAME if theirs == "o" else FLAT))
    return found


def swiglu_weights(prefix: str, at: Any, use_bias: bool = False) -> list[Weight]:
    """gate_proj, up_proj and down_proj of one gated feed-forward layer."""
    found = []
    for name in ("gate", "up", "down"):
        found.append(Weight(f"{prefix}{name}_proj.weight", at("mlp", name, "kernel"), LINEAR))
        if use_bias:
            found.append(Weight(f"{prefix}{name}_proj.bias", at("mlp", name, "bias")))
    return found


def _model(config: Config) -> LanguageModel:
    config.ignore(("attention_dropout",))
    config.must("hidden_act", "silu")
    dim, heads = config.size("hidden_size", 4096), config.size("num_attention_heads", 32)
    bias = config.flag("mlp_bias", False)
    mixer = {
        "name": "attention", "heads": heads, "kv_heads": config.size("num_key_value_heads", heads),
        "head_dim": config.size("head_dim", max(1, dim // heads)), "window": config.size("max_position_embeddings", 2048),
        "use_bias": config.flag("attention_bias", False), **rotation(config),
    }  # fmt: skip
    return LanguageModel(
        vocab_size=config.size("vocab_size", 32000), dim=dim, pattern=(mixer,), depth=config.size("num_hidden_layers", 32),
        mlp={"name": "swiglu", "use_bias": True} if bias else "swiglu", mlp_dim=config.size("intermediate_size", 11008),
        norm="rms", norm_eps=config.number("rms_norm_eps", 1e-6), embedding_scale=1.0,
        tie_embeddings=config.flag("tie_word_embeddings", False),
    )  # fmt: skip


def _config(model: LanguageModel) -> dict[str, Any]:
    mixer = zoo.create("attention", dim=model.dim, **options_of(model.pattern[0], "attention"))
    return {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": model.vocab_size,
        "hidden_size": model.dim, "intermediate_size": model.mlp_dim, "num_hidden_layers": model.depth,
        "num_attention_heads": mixer.heads, "num_key_value_heads": mixer.kv_heads or mixer.heads,
        "head_dim": mixer.head_dim or model.dim // mixer.heads, "hidden_act": "silu",
        "max_position_embeddings": mixer.window, "rms_norm_eps": model.norm_eps, "rope_parameters": rope_fields(mixer),
        "attention_bias": mixer.use_bias, "mlp_bias": model.mlp != "swiglu", "tie_word_embeddings": model.tie_embeddings,
    }  # fmt: skip


def _weights(model: LanguageModel, keys: Set[str]) -> list[Weight]:
    bias = options_of(model.pattern[0], "attention").get("use_bias", False)
    found = outer_weights(model, "model.embed_tokens.weight", "model.norm")
    for i, at in enumerate(layer_places(model)):
        prefix = f"model.layers.{i}."
        found.append(Weight(f"{prefix}input_layernorm.weight", at("mixer_norm", "scale")))
        found.append(Weight(f"{prefix}post_attention_layernorm.weight", at("mlp_norm", "scale")))
        found += attention_weights(f"{prefix}self_attn.", at, bias)
        found += swiglu_weights(f"{prefix}mlp.", at, model.mlp != "swiglu")
    return found


LAYOUTS = (
    Layout(
        name="llama", reads=of_type("llama"), model=_model, config=_config, weights=_weights,
        depth_field="num_hidden_layers", prefix="model.", embedding="model.embed_tokens.weight",
        ignore=(r".*rotary_emb\.inv_freq",),
    ),
)  # fmt: skip
