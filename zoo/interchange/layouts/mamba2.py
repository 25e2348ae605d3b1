"""Mamba-2 in the layout of transformers and in that of mamba_ssm."""

import math
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
from zoo.interchange.layouts.mamba import ssm_options, ssm_outer, ssm_reads
from zoo.models import LanguageModel

INITIAL = ("time_step_rank", "time_step_min", "time_step_max", "time_step_floor", "time_step_init_scheme", "chunk_size")


def _model(config: Config) -> LanguageModel:
    config.ignore(INITIAL)
    config.must("hidden_act", "silu")
    config.must("norm_before_gate", False)
    config.must("rms_norm", True)
    dim, expand, head_dim = config.size("hidden_size", 4096), config.size("expand", 2), config.size("head_dim", 64)
    if config.size("num_heads", 128) * head_dim != expand * dim:
        wanted = f"expand * hidden_size / head_dim = {expand * dim / head_dim}"
        raise config.error("num_heads", wanted, config.value("num_heads"))
    eps = config.number("layer_norm_epsilon", 1e-5)
    mixer = {
        "name": "mamba2", "state_dim": config.size("state_size", 128), "expand": expand, "head_dim": head_dim,
        "groups": config.size("n_groups", 8), "conv_size": config.size("conv_kernel", 4), "norm_eps": eps,
        "use_bias": config.flag("use_bias", False), "conv_bias": config.flag("use_conv_bias", True),
        "dt_limits": _limits(config),
    }  # fmt: skip
    return LanguageModel(
        vocab_size=config.size("vocab_size", 32768), dim=dim, pattern=(mixer,), depth=config.size("num_hidden_layers", 64),
        mlp="none", norm="rms", norm_eps=eps, embedding_scale=1.0, tie_embeddings=config.flag("tie_word_embeddings", False),
    )  # fmt: skip


def _limits(config: Config) -> tuple[float, float | None]:
    """time_step_limit: two numbers, the second possibly infinite (JSON's Infinity, or transformers' {"__float__": ...})."""
    pair = config.value("time_step_limit", (0.0, math.inf))
    pair = [float(v["__float__"]) if isinstance(v, dict) and isinstance(v.get("__float__"), str) else v for v in pair]
    if len(pair) != 2 or not all(isinstance(v, int | float) for v in pair) or not 0 <= pair[0] < pair[1]:
        raise config.error("time_step_limit", "two numbers 0 <= low < high", pair)
    return (float(pair[0]), None if pair[1] == math.inf else float(pair[1]))


def _mixer(model: LanguageModel) -> Any:
    return zoo.create("mamba2", dim=model.dim, **options_of(model.pattern[0], "mamba2"))


def _config(model: LanguageModel) -> dict[str, Any]:
    mixer = _mixer(model)
    low, high = mixer.dt_limits
    return {
        "model_type": "mamba2", "architectures": ["Mamba2ForCausalLM"], "vocab_size": model.vocab_size,
        "hidden_size": model.dim, "state_size": mixer.state_dim, "num_hidden_layers": model.depth,
        "layer_norm_epsilon": model.norm_eps, "expand": mixer.expand, "head_dim": mixer.head_dim,
        "num_heads": mixer.expand * model.dim // mixer.head_dim, "n_groups": mixer.groups,
        "conv_kernel": mixer.conv_size, "use_bias": mixer.use_bias, "use_conv_bias": mixer.conv_bias,
        "hidden_act": "silu", "tie_word_embeddings": model.tie_embeddings,
        "time_step_limit": [low, math.inf if high is None else high],
    }  # fmt: skip


def _weights(model: LanguageModel, keys: Set[str], embedding: str = "backbone.embeddings.weight") -> list[Weight]:
    mixer = _mixer(model)
    names = {
        "A_log": ("A_log", SAME), "D": ("skip", SAME), "dt_bias": ("dt_bias", SAME), "conv1d.weight": ("kernel", CONV),
        "norm.weight": ("scale", SAME), "in_proj.weight": ("input", LINEAR), "out_proj.weight": ("output", LINEAR),
    }  # fmt: skip
    if mixer.conv_bias:
        names["conv1d.bias"] = ("bias", SAME)
    if mixer.use_bias:
        names |= {"in_proj.bias": ("input_bias", SAME), "out_proj.bias": ("output_bias", SAME)}
    found = outer_weights(model, embedding, "backbone.norm_f")
    for i, at in enumerate(layer_places(model)):
        prefix = f"backbone.layers.{i}."
        found.append(Weight(f"{prefix}norm.weight", at("mixer_norm", "scale")))
        found += [Weight(f"{prefix}mixer.{key}", at("mixer", ours), how) for key, (ours, how) in names.items()]
    return found


def _ssm_model(config: Config) -> LanguageModel:
    outer = ssm_outer(config)
    options = ssm_options(config, ("chunk_size", "use_mem_eff_path", "conv_init", "sequence_parallel"))
    options.must("rmsnorm", True)
    options.must("norm_before_gate", False)
    options.must("D_has_hdim", False)
    options.must("d_ssm", None)
    limits = Config({"time_step_limit": options.value("dt_limit")}, options.source)
    mixer = {
        "name": "mamba2", "state_dim": options.size("d_state", 128), "expand": options.size("expand", 2),
        "head_dim": options.size("headdim", 64), "groups": options.size("ngroups", 1),
        "conv_size": options.size("d_conv", 4), "norm_eps": 1e-5, "use_bias": options.flag("bias", False),
        "conv_bias": options.flag("conv_bias", True), "dt_limits": _limits(limits),
    }  # fmt: skip
    options.finish()
    return LanguageModel(pattern=(mixer,), **outer)


def _ssm_config(model: LanguageModel) -> dict[str, Any]:
    mixer = _mixer(model)
    low, high = mixer.dt_limits
    options = {
        "layer": "Mamba2", "d_state": mixer.state_dim, "d_conv": mixer.conv_size, "expand": mixer.expand,
        "headdim": mixer.head_dim, "ngroups": mixer.groups, "conv_bias": mixer.conv_bias, "bias": mixer.use_bias,
    }  # fmt: skip
    if (low, high) != (0.0, None):
        options["dt_limit"] = [low, math.inf if high is None else high]
    return {
        "d_model": model.dim, "n_layer": model.depth, "d_intermediate": 0, "vocab_size": model.vocab_size,
        "pad_vocab_size_multiple": 1, "ssm_cfg": options, "attn_layer_idx": [], "attn_cfg": {}, "rms_norm": True,
        "residual_in_fp32": True, "fused_add_norm": True, "tie_embeddings": model.tie_embeddings,
    }  # fmt: skip


LAYOUTS = (
    Layout(
        name="mamba2", reads=of_type("mamba2"), model=_model, config=_config, weights=_weights,
        depth_field="num_hidden_layers", prefix="backbone.", embedding="backbone.embeddings.weight",
    ),
    Layout(
        name="mamba2_ssm", reads=lambda fields: ssm_reads(fields, "Mamba2"), model=_ssm_model, config=_ssm_config,
        weights=lambda model, keys: _weights(model, keys, "backbone.embedding.weight"), depth_field="n_layer",
        prefix="backbone.", embedding="backbone.embedding.weight",
    ),
)  # fmt: skip
