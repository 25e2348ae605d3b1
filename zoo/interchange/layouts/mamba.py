"""Mamba and Falcon Mamba in the layout of transformers, and Mamba in that of mamba_ssm."""

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
from zoo.models import LanguageModel

INITIAL = ("time_step_scale", "time_step_init_scheme", "time_step_min", "time_step_max", "time_step_floor")


def _model(config: Config, norms: str) -> LanguageModel:
    config.ignore((*INITIAL, "num_blocks"))
    config.must("hidden_act", "silu")
    dim, expand = config.size("hidden_size", 768), config.size("expand", 2)
    if config.size("intermediate_size", expand * dim) != expand * dim:
        raise config.error(
            "intermediate_size", f"expand * hidden_size = {expand * dim}", config.value("intermediate_size")
        )
    rank = config.value("time_step_rank", "auto")
    mixer = {
        "name": "mamba", "state_dim": config.size("state_size", 16), "expand": expand,
        "conv_size": config.size("conv_kernel", 4), "use_bias": config.flag("use_bias", False),
        "dt_rank": -(-dim // 16) if rank == "auto" else config.size("time_step_rank"),
        "conv_bias": config.flag("use_conv_bias", True), "norms": norms,
    }  # fmt: skip
    if norms == "plain":
        mixer["norm_eps"] = config.number("mixer_rms_eps", 1e-6)
    return LanguageModel(
        vocab_size=config.size("vocab_size", 50280), dim=dim, pattern=(mixer,), depth=config.size("num_hidden_layers", 32),
        mlp="none", norm="rms", norm_eps=config.number("layer_norm_epsilon", 1e-5), embedding_scale=1.0,
        tie_embeddings=config.flag("tie_word_embeddings", True),
    )  # fmt: skip


def _config(model: LanguageModel, name: str, norms: str) -> dict[str, Any]:
    mixer = zoo.create("mamba", dim=model.dim, **options_of(model.pattern[0], "mamba"))
    if mixer.norms != norms:
        raise ValueError(f"layout {name!r} wants norms={norms!r} in its mixers, got {mixer.norms!r}")
    fields = {
        "model_type": name, "architectures": ["FalconMambaForCausalLM" if norms == "plain" else "MambaForCausalLM"],
        "vocab_size": model.vocab_size, "hidden_size": model.dim, "state_size": mixer.state_dim,
        "num_hidden_layers": model.depth, "layer_norm_epsilon": model.norm_eps, "expand": mixer.expand,
        "intermediate_size": mixer.expand * model.dim, "conv_kernel": mixer.conv_size, "use_bias": mixer.use_bias,
        "use_conv_bias": mixer.conv_bias, "hidden_act": "silu", "tie_word_embeddings": model.tie_embeddings,
        "time_step_rank": -(-model.dim // 16) if mixer.dt_rank is None else mixer.dt_rank,
    }  # fmt: skip
    return fields | ({"mixer_rms_eps": mixer.norm_eps} if norms == "plain" else {})


def mixer_weights(prefix: str, at: Any, mixer: dict[str, Any], *, norms: tuple[str, ...] = ()) -> list[Weight]:
    """The tensors of one Mamba layer; ``at(name)`` gives the places of its parameters."""
    names = {"A_log": ("A_log", SAME), "D": ("skip", SAME), "conv1d.weight": ("kernel", CONV)}
    if mixer.get("conv_bias", True):
        names["conv1d.bias"] = ("bias", SAME)
    for theirs, ours in (("in_proj", "input"), ("x_proj", "project"), ("dt_proj", "dt"), ("out_proj", "output")):
        names[f"{theirs}.weight"] = (ours, LINEAR)
        if theirs == "dt_proj" or (mixer.get("use_bias", False) and theirs != "x_proj"):
            names[f"{theirs}.bias"] = (f"{ours}_bias", SAME)
    for ours in norms:
        names[f"{ours.lower()}_layernorm.weight"] = (f"{ours}_norm", SAME)
    return [Weight(f"{prefix}{key}", at("mixer", ours), how) for key, (ours, how) in names.items()]


def _weights(model: LanguageModel, keys: Set[str], embedding: str = "backbone.embeddings.weight") -> list[Weight]:
    mixer = options_of(model.pattern[0], "mamba")
    found = outer_weights(model, embedding, "backbone.norm_f")
    for i, at in enumerate(layer_places(model)):
        prefix = f"backbone.layers.{i}."
        found.append(Weight(f"{prefix}norm.weight", at("mixer_norm", "scale")))
        found += mixer_weights(f"{prefix}mixer.", at, mixer)
    return found


def _layout(name: str, norms: str) -> Layout:
    return Layout(
        name=name, reads=of_type(name), model=lambda config: _model(config, norms),
        config=lambda model: _config(model, name, norms), weights=_weights, depth_field="num_hidden_layers",
        prefix="backbone.", embedding="backbone.embeddings.weight",
    )  # fmt: skip


def ssm_reads(fields: dict[str, Any], layer: str) -> bool:
    """Whether a configuration is mamba_ssm's, with layers of this kind."""
    if "d_model" not in fields or "n_layer" not in fields or "model_type" in fields:
        return False
    options = fields.get("ssm_cfg") or {}
    return isinstance(options, dict) and options.get("layer", "Mamba1") == layer


def ssm_outer(config: Config) -> dict[str, Any]:
    """The fields of ``LanguageModel`` that mamba_ssm's configurations share."""
    config.ignore(("fused_add_norm", "residual_in_fp32"))
    config.must("rms_norm", True)
    config.must("d_intermediate", 0)
    for name in ("attn_layer_idx", "attn_cfg"):
        if config.value(name):
            raise config.error(name, "empty (attention layers are not read from this layout)", config.value(name))
    multiple = config.size("pad_vocab_size_multiple", 8)
    return {
        "vocab_size": -(-config.size("vocab_size") // multiple) * multiple, "dim": config.size("d_model"),
        "depth": config.size("n_layer"), "mlp": "none", "norm": "rms", "norm_eps": 1e-5, "embedding_scale": 1.0,
        "tie_embeddings": config.flag("tie_embeddings", True),
    }  # fmt: skip


def ssm_options(config: Config, known: tuple[str, ...]) -> Config:
    """The options in ssm_cfg as a ``Config`` of their own, to be finished; ``known`` ones have no effect."""
    options = Config(config.value("ssm_cfg", {}), f"{config.source}: ssm_cfg")
    options.ignore(("layer", "dt_min", "dt_max", "dt_init", "dt_scale", "dt_init_floor", "A_init_range", *known))
    return options


def _ssm_model(config: Config) -> LanguageModel:
    outer = ssm_outer(config)
    options = ssm_options(config, ("use_fast_path",))
    rank = options.value("dt_rank", "auto")
    mixer = {
        "name": "mamba", "state_dim": options.size("d_state", 16), "expand": options.size("expand", 2),
        "conv_size": options.size("d_conv", 4), "use_bias": options.flag("bias", False),
        "dt_rank": -(-outer["dim"] // 16) if rank == "auto" else options.size("dt_rank"),
        "conv_bias": options.flag("conv_bias", True), "norms": "none",
    }  # fmt: skip
    options.finish()
    return LanguageModel(pattern=(mixer,), **outer)


def _ssm_config(model: LanguageModel) -> dict[str, Any]:
    foreign = _config(model, "mamba", "none")
    return {
        "d_model": model.dim, "n_layer": model.depth, "vocab_size": model.vocab_size, "pad_vocab_size_multiple": 1,
        "ssm_cfg": {
            "layer": "Mamba1", "d_state": foreign["state_size"], "d_conv": foreign["conv_kernel"],
            "expand": foreign["expand"], "dt_rank": foreign["time_step_rank"], "conv_bias": foreign["use_conv_bias"],
            "bias": foreign["use_bias"],
        },
        "rms_norm": True, "residual_in_fp32": True, "fused_add_norm": True, "tie_embeddings": model.tie_embeddings,
    }  # fmt: skip


LAYOUTS = (
    _layout("mamba", "none"),
    _layout("falcon_mamba", "plain"),
    Layout(
        name="mamba_ssm", reads=lambda fields: ssm_reads(fields, "Mamba1"), model=_ssm_model, config=_ssm_config,
        weights=lambda model, keys: _weights(model, keys, "backbone.embedding.weight"), depth_field="n_layer",
        prefix="backbone.", embedding="backbone.embedding.weight",
    ),
)  # fmt: skip
