"""Delta-rule language models in the layout of flash-linear-attention: DeltaNet, Gated DeltaNet and Gated DeltaProduct."""

from collections.abc import Set
from typing import Any

import zoo
from zoo.interchange.config import Config
from zoo.interchange.layouts.base import (
    CONV,
    LINEAR,
    SAME,
    Layout,
    Weight,
    layer_places,
    of_type,
    options_of,
    outer_weights,
)
from zoo.interchange.layouts.llama import swiglu_weights
from zoo.models import LanguageModel

# How to compute, not what.
WITHOUT_EFFECT = (
    "attn_mode", "max_position_embeddings", "fuse_norm", "fuse_swiglu", "fuse_cross_entropy", "fuse_linear_cross_entropy",
    "use_l2warp",
)  # fmt: skip


def _common(config: Config, mixer: dict[str, Any], depth: int) -> LanguageModel:
    """The model around ``mixer``, which gets the fields that all three have."""
    config.ignore(WITHOUT_EFFECT)
    config.must("hidden_act", "swish")
    if config.value("attn") is not None:
        raise config.error("attn", "null: layers of attention among them are not read", config.value("attn"))
    dim, ratio = config.size("hidden_size", 2048), config.size("hidden_ratio", 4)
    inner = -(-(dim * ratio * 2 // 3) // 256) * 256
    eps = config.number("norm_eps", 1e-6)
    taps, convolved = config.size("conv_size", 4), config.flag("use_short_conv", True)
    mixer = {
        **mixer, "conv_size": taps if convolved else None,
        "allow_neg_eigval": config.flag("allow_neg_eigval", False), "norm_eps": eps,
    }  # fmt: skip
    return LanguageModel(
        vocab_size=config.size("vocab_size", 32000), dim=dim, pattern=(mixer,),
        depth=config.size("num_hidden_layers", depth), mlp_dim=config.size("intermediate_size", inner), norm="rms",
        norm_eps=eps, embedding_scale=1.0, tie_embeddings=config.flag("tie_word_embeddings", False),
    )  # fmt: skip


def _share(config: Config, field: str, total: int, heads: int) -> int:
    """``total`` times a ratio, per head; refused where that is no integer."""
    width = int(total * config.number(field, 1.0))
    if width < 1 or width % heads:
        raise config.error(field, f"a share of hidden_size that num_heads = {heads} divides", config.value(field))
    return width // heads


def _delta_net(config: Config) -> LanguageModel:
    config.must("use_beta", True)
    config.must("use_output_norm", True)
    config.must("qk_norm", "l2")
    config.must("qk_activation", "silu")
    dim, heads = config.size("hidden_size", 2048), config.size("num_heads", 16)
    keys, values = (_share(config, field, dim, heads) for field in ("expand_k", "expand_v"))
    mixer = {
        "name": "deltanet", "heads": heads, "head_dim": keys, "expand_v": values / keys,
        "use_output_gate": config.flag("use_gate", False),
    }  # fmt: skip
    return _common(config, mixer, 24)


def _product(config: Config, **options: Any) -> LanguageModel:
    heads, value_heads = config.size("num_heads", 6), config.value("num_v_heads")
    mixer = {
        "name": "deltaproduct", "heads": heads,
        "value_heads": heads if value_heads is None else config.size("num_v_heads"),
        "head_dim": config.size("head_dim", 256), "expand_v": config.number("expand_v", 2.0), **options,
    }  # fmt: skip
    return _common(config, mixer, 21)


def _gated_deltanet(config: Config) -> LanguageModel:
    """One factor per token and a forget gate: the zoo's ``deltaproduct``, whose convolutions are as many as here."""
    return _product(config, householders=1, use_forget_gate=True, use_output_gate=config.flag("use_gate", True))


def _gated_deltaproduct(config: Config) -> LanguageModel:
    return _product(
        config, householders=config.size("num_householder", 1), use_forget_gate=config.flag("use_forget_gate", False),
        use_output_gate=config.flag("use_output_gate", True),
    )  # fmt: skip


def _fields(model: LanguageModel, mixer: Any, kind: str, cls: str) -> dict[str, Any]:
    return {
        "model_type": kind, "architectures": [f"{cls}ForCausalLM"], "vocab_size": model.vocab_size,
        "hidden_size": model.dim, "intermediate_size": model.mlp_dim, "num_hidden_layers": model.depth,
        "norm_eps": model.norm_eps, "hidden_act": "swish", "tie_word_embeddings": model.tie_embeddings,
        "num_heads": mixer.heads, "use_short_conv": mixer.conv_size is not None, "conv_size": mixer.conv_size or 4,
        "allow_neg_eigval": mixer.allow_neg_eigval,
    }  # fmt: skip


def _delta_net_config(model: LanguageModel) -> dict[str, Any]:
    mixer = zoo.create("deltanet", dim=model.dim, **options_of(model.pattern[0], "deltanet"))
    keys, values = mixer.widths()
    return {
        **_fields(model, mixer, "delta_net", "DeltaNet"), "expand_k": keys * mixer.heads / model.dim,
        "expand_v": values * mixer.heads / model.dim, "use_gate": mixer.use_output_gate, "use_beta": True,
        "use_output_norm": True, "qk_norm": "l2", "qk_activation": "silu",
    }  # fmt: skip


def _product_config(model: LanguageModel, kind: str, cls: str) -> tuple[Any, dict[str, Any]]:
    mixer = zoo.create("deltaproduct", dim=model.dim, **options_of(model.pattern[0], "deltaproduct"))
    value_heads, keys, _ = mixer.widths()
    return mixer, {
        **_fields(model, mixer, kind, cls), "num_v_heads": value_heads, "head_dim": keys, "expand_v": mixer.expand_v,
    }  # fmt: skip


def _gated_deltanet_config(model: LanguageModel) -> dict[str, Any]:
    mixer, fields = _product_config(model, "gated_deltanet", "GatedDeltaNet")
    if mixer.householders != 1 or not mixer.use_forget_gate:
        raise ValueError(
            "layout 'gated_deltanet' holds deltaproduct layers with householders=1 and use_forget_gate=True"
        )
    return {**fields, "use_gate": mixer.use_output_gate}


def _gated_deltaproduct_config(model: LanguageModel) -> dict[str, Any]:
    mixer, fields = _product_config(model, "gated_deltaproduct", "GatedDeltaProduct")
    return {
        **fields, "use_output_gate": mixer.use_output_gate, "use_forget_gate": mixer.use_forget_gate,
        "num_householder": mixer.householders,
    }  # fmt: skip


PROJECTIONS = {"q": "query", "k": "key", "v": "value", "b": "beta", "o": "output"}


def _weights(model: LanguageModel, keys: Set[str]) -> list[Weight]:
    mixer = zoo.create(model.pattern[0], dim=model.dim)
    forgets, projections = getattr(mixer, "use_forget_gate", False), dict(PROJECTIONS)
    if mixer.use_output_gate:
        projections["g"] = "gate"
    if forgets:
        projections["a"] = "dt"
    found = outer_weights(model, "model.embeddings.weight", "model.norm")
    for i, at in enumerate(layer_places(model)):
        prefix = f"model.layers.{i}."
        found.append(Weight(f"{prefix}attn_norm.weight", at("mixer_norm", "scale")))
        found.append(Weight(f"{prefix}mlp_norm.weight", at("mlp_norm", "scale")))
        prefix += "attn."
        found.append(Weight(f"{prefix}o_norm.weight", at("mixer", "scale"), SAME))
        for theirs, ours in projections.items():
            found.append(Weight(f"{prefix}{theirs}_proj.weight", at("mixer", ours), LINEAR))
        if mixer.conv_size is not None:
            for letter in "qkv":
                kernel = at("mixer", f"{PROJECTIONS[letter]}_kernel")
                found.append(Weight(f"{prefix}{letter}_conv1d.weight", kernel, CONV))
        if forgets:
            found += [Weight(f"{prefix}{name}", at("mixer", name), SAME) for name in ("A_log", "dt_bias")]
        found += swiglu_weights(f"model.layers.{i}.mlp.", at)
    return found


def _layout(name: str, model: Any, config: Any) -> Layout:
    return Layout(
        name=name, reads=of_type(name), model=model, config=config, weights=_weights, depth_field="num_hidden_layers",
        prefix="model.", embedding="model.embeddings.weight",
    )  # fmt: skip


LAYOUTS = (
    _layout("delta_net", _delta_net, _delta_net_config),
    _layout("gated_deltanet", _gated_deltanet, _gated_deltanet_config),
    _layout("gated_deltaproduct", _gated_deltaproduct, _gated_deltaproduct_config),
)
