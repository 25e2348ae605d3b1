"""xLSTM 7B in the layout of transformers: mLSTM blocks with SwiGLU layers."""

import math
from collections.abc import Set
from typing import Any

import zoo
from zoo.interchange.config import LARGEST_SIZE, Config
from zoo.interchange.layouts.base import (
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

WITHOUT_EFFECT = ("norm_reduction_force_float32", "chunkwise_kernel", "sequence_kernel", "step_kernel", "mode",
                  "chunk_size", "return_last_states", "autocast_kernel_dtype", "inference_state_dtype",
                  "max_inference_chunksize")  # fmt: skip
FFN = (2.667, 64)  # the default factor of the inner width, and what it is rounded up to a multiple of
MIXER = {
    "q.weight": ("query", LINEAR), "k.weight": ("key", LINEAR), "v.weight": ("value", LINEAR),
    "ogate_preact.weight": ("output_gate", LINEAR), "igate_preact.weight": ("input_gate", LINEAR),
    "igate_preact.bias": ("input_gate_bias", SAME), "fgate_preact.weight": ("forget_gate", LINEAR),
    "fgate_preact.bias": ("forget_gate_bias", SAME), "multihead_norm.weight": ("scale", SAME),
    "out_proj.weight": ("output", LINEAR),
}  # fmt: skip


def _inner_width(dim: int, factor: float, multiple: int) -> int:
    return int((dim * factor + multiple - 1) // multiple * multiple)


def _share(part: int, whole: int) -> float:
    """The factor that gives ``part`` when it is multiplied by ``whole`` and cut to an integer."""
    factor = part / whole
    return factor if int(whole * factor) == part else math.nextafter(factor, math.inf)


def _width(config: Config, name: str, dim: int, default: float) -> int:
    """``dim`` times the field ``name``, cut to an integer."""
    factor = config.number(name, default)
    if not 1 <= dim * factor < LARGEST_SIZE:
        raise config.error(name, f"a number that makes a width from 1 to 2^31 - 1 of {dim}", factor)
    return int(dim * factor)


def _model(config: Config) -> LanguageModel:
    config.ignore(WITHOUT_EFFECT)
    config.must("use_bias", False)
    config.must("weight_mode", "single")
    config.must("add_out_norm", True)
    config.must("tie_word_embeddings", False)
    dim, depth = config.size("hidden_size", 4096), config.size("num_hidden_layers", 32)
    for name, size in (("embedding_dim", dim), ("num_blocks", depth)):
        if config.size(name, size) != size:
            raise config.error(name, f"{size}, as hidden_size or num_hidden_layers says", config.value(name))
    keys, values = (
        _width(config, name, dim, default) for name, default in (("qk_dim_factor", 0.5), ("v_dim_factor", 1.0))
    )
    eps = config.number("norm_eps", 1e-6)
    mixer = {
        "name": "mlstm", "heads": config.size("num_heads", 8), "key_dim": keys, "value_dim": values,
        "gate_cap": config.number("gate_soft_cap", 15.0), "epsilon": config.number("eps", 1e-6), "norm_eps": eps,
    }  # fmt: skip
    _width(config, "ffn_proj_factor", dim, FFN[0])
    ffn = config.number("ffn_proj_factor", FFN[0]), config.size("ffn_round_up_to_multiple_of", FFN[1])
    return LanguageModel(
        vocab_size=config.size("vocab_size", 50304), dim=dim, pattern=(mixer,), depth=depth, mlp="swiglu",
        mlp_dim=_inner_width(dim, *ffn), norm="rms", norm_eps=eps, embedding_scale=1.0,
        logit_cap=config.number("output_logit_soft_cap", 30.0),
    )  # fmt: skip


def _config(model: LanguageModel) -> dict[str, Any]:
    mixer = zoo.create("mlstm", dim=model.dim, **options_of(model.pattern[0], "mlstm"))
    keys = model.dim // 2 if mixer.key_dim is None else mixer.key_dim
    values = model.dim if mixer.value_dim is None else mixer.value_dim
    inner = model.mlp_dim or 1
    ffn = FFN if _inner_width(model.dim, *FFN) == inner else (inner / model.dim, inner)
    return {
        "model_type": "xlstm", "architectures": ["xLSTMForCausalLM"], "vocab_size": model.vocab_size,
        "hidden_size": model.dim, "embedding_dim": model.dim, "num_hidden_layers": model.depth,
        "num_blocks": model.depth, "num_heads": mixer.heads, "qk_dim_factor": _share(keys, model.dim),
        "v_dim_factor": _share(values, model.dim), "gate_soft_cap": mixer.gate_cap, "eps": mixer.epsilon,
        "norm_eps": model.norm_eps, "ffn_proj_factor": ffn[0], "ffn_round_up_to_multiple_of": ffn[1],
        "output_logit_soft_cap": model.logit_cap, "use_bias": False, "weight_mode": "single", "add_out_norm": True,
        "tie_word_embeddings": False,
    }  # fmt: skip


def _weights(model: LanguageModel, keys: Set[str]) -> list[Weight]:
    found = outer_weights(model, "backbone.embeddings.weight", "backbone.out_norm")
    for i, at in enumerate(layer_places(model)):
        prefix = f"backbone.blocks.{i}."
        found.append(Weight(f"{prefix}norm_mlstm.weight", at("mixer_norm", "scale")))
        found.append(Weight(f"{prefix}norm_ffn.weight", at("mlp_norm", "scale")))
        found += [Weight(f"{prefix}mlstm_layer.{key}", at("mixer", ours), how) for key, (ours, how) in MIXER.items()]
        for theirs, ours in (("up_gate", "gate"), ("up", "up"), ("down", "down")):
            found.append(Weight(f"{prefix}ffn.proj_{theirs}.weight", at("mlp", ours, "kernel"), LINEAR))
    return found


LAYOUTS = (
    Layout(
        name="xlstm", reads=of_type("xlstm"), model=_model, config=_config, weights=_weights,
        depth_field="num_hidden_layers", prefix="backbone.", embedding="backbone.embeddings.weight",
    ),
)  # fmt: skip
