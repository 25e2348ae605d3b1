"""RecurrentGemma in the layout of transformers: Griffin's recurrent blocks and local attention, norms around 1."""

import math
from collections.abc import Set
from typing import Any

import jax.numpy as jnp

import zoo
from zoo.interchange.config import Config
from zoo.interchange.layouts.base import (
    CONV,
    LINEAR,
    ONE_MORE,
    SAME,
    Layout,
    Transform,
    Weight,
    layer_places,
    of_type,
    outer_weights,
)
from zoo.interchange.layouts.llama import attention_weights, rope_fields, rotation, swiglu_weights
from zoo.models import LanguageModel

KINDS = {"recurrent": "griffin_recurrent", "attention": "attention"}
MLP = {"name": "geglu_tanh", "use_bias": True}
WITHOUT_EFFECT = ("attention_dropout", "w_init_variance_scale", "final_w_init_variance_scale")


def _model(config: Config) -> LanguageModel:
    config.ignore(WITHOUT_EFFECT)
    config.must("hidden_activation", "gelu_pytorch_tanh")
    config.must("embeddings_scale_by_sqrt_dim", True)
    dim, heads = config.size("hidden_size", 2560), config.size("num_attention_heads", 10)
    head_dim = config.size("head_dim", max(1, dim // heads))
    if head_dim != dim // heads:
        raise config.error("head_dim", f"hidden_size // num_attention_heads = {dim // heads}", head_dim)
    rotary = rotation(config, fraction=0.5)
    if rotary["rotary_scaling"] is not None:
        raise config.error("rope_parameters", "of rope_type 'default'", config.value("rope_parameters"))
    mixers = {
        "attention": {
            "name": "attention", "heads": heads, "kv_heads": config.size("num_key_value_heads", heads),
            "head_dim": head_dim,
            "window": config.size("attention_window_size", 2048), "use_bias": config.flag("attention_bias", False),
            "output_bias": True, **rotary,
        },
        "recurrent": {
            "name": "griffin_recurrent", "inner_dim": config.size("lru_width", dim), "heads": heads,
            "conv_size": config.size("conv1d_width", 4), "unit_start": True,
        },
    }  # fmt: skip
    kinds = config.value("block_types", ("recurrent", "recurrent", "attention"))
    if not isinstance(kinds, list | tuple) or not kinds or not all(kind in KINDS for kind in map(str, kinds)):
        raise config.error("block_types", "a list of 'recurrent' and 'attention'", kinds)
    inner = config.size("intermediate_size", 3 * dim)
    if inner < 2:
        raise config.error("intermediate_size", "at least 2", inner)
    return LanguageModel(
        vocab_size=config.size("vocab_size", 256_000), dim=dim, pattern=tuple(mixers[kind] for kind in kinds),
        depth=config.size("num_hidden_layers", 26), mlp=MLP, mlp_dim=inner // 2, norm="rms",
        norm_eps=config.number("rms_norm_eps", 1e-6), logit_cap=config.number("logits_soft_cap", 30.0),
        embedding_scale=float(jnp.bfloat16(math.sqrt(dim))),  # rounded as in training, whatever the dtype now
        tie_embeddings=config.flag("tie_word_embeddings", True),
    )  # fmt: skip


def _config(model: LanguageModel) -> dict[str, Any]:
    names = {ours: theirs for theirs, ours in KINDS.items()}
    specs = {spec if isinstance(spec, str) else spec["name"]: spec for spec in model.pattern}
    if set(specs) != set(names):
        raise ValueError(
            f"layout 'recurrent_gemma' holds {' and '.join(names)} layers, the model has {', '.join(specs)}"
        )
    attention, recurrent = (zoo.create(specs[name], dim=model.dim) for name in ("attention", "griffin_recurrent"))
    return {
        "model_type": "recurrent_gemma", "architectures": ["RecurrentGemmaForCausalLM"],
        "vocab_size": model.vocab_size, "hidden_size": model.dim, "intermediate_size": 2 * (model.mlp_dim or 0),
        "num_hidden_layers": model.depth, "num_attention_heads": attention.heads,
        "num_key_value_heads": attention.kv_heads or attention.heads,
        "head_dim": attention.head_dim or model.dim // attention.heads, "attention_bias": attention.use_bias,
        "attention_window_size": attention.window, "lru_width": recurrent.inner_dim or model.dim,
        "conv1d_width": recurrent.conv_size, "hidden_activation": "gelu_pytorch_tanh",
        "block_types": [names[spec if isinstance(spec, str) else spec["name"]] for spec in model.pattern],
        "rms_norm_eps": model.norm_eps, "logits_soft_cap": model.logit_cap,
        "rope_parameters": {**rope_fields(attention), "partial_rotary_factor": attention.rotary_fraction},
        "tie_word_embeddings": model.tie_embeddings,
    }  # fmt: skip


RECURRENT = {
    "linear_y.weight": ("gate", LINEAR), "linear_y.bias": ("gate_bias", SAME), "linear_x.weight": ("input", LINEAR),
    "linear_x.bias": ("input_bias", SAME), "linear_out.weight": ("output", LINEAR),
    "linear_out.bias": ("output_bias", SAME), "conv_1d.weight": ("kernel", CONV), "conv_1d.bias": ("bias", SAME),
    "rg_lru.recurrent_param": ("decay", SAME), "rg_lru.input_gate_weight": ("input_gate", SAME),
    "rg_lru.recurrent_gate_weight": ("recurrence_gate", SAME),
}  # fmt: skip


def _rows(heads: int) -> Transform:
    """[heads, width] for [heads * width]."""
    return Transform(lambda a, _: [a.reshape(-1)], lambda p: p[0].reshape(heads, -1))


def _weights(model: LanguageModel, keys: Set[str]) -> list[Weight]:
    found = outer_weights(model, "model.embed_tokens.weight", "model.final_norm", scale=ONE_MORE)
    for i, (at, (mixer, _)) in enumerate(zip(layer_places(model), model.stack().blocks())):
        prefix = f"model.layers.{i}."
        found.append(Weight(f"{prefix}temporal_pre_norm.weight", at("mixer_norm", "scale"), ONE_MORE))
        found.append(Weight(f"{prefix}channel_pre_norm.weight", at("mlp_norm", "scale"), ONE_MORE))
        found += swiglu_weights(f"{prefix}mlp_block.", at, True)
        inner = f"{prefix}temporal_block."
        if mixer["name"] == "attention":
            found += attention_weights(inner, at, mixer["use_bias"], True)
            continue
        found += [Weight(f"{inner}{key}", at("mixer", ours), how) for key, (ours, how) in RECURRENT.items()]
        for theirs, ours in (("input", "input"), ("recurrent", "recurrence")):
            how = _rows(mixer["heads"])
            found.append(Weight(f"{inner}rg_lru.{theirs}_gate_bias", at("mixer", f"{ours}_gate_bias"), how))
    return found


LAYOUTS = (
    Layout(
        name="recurrent_gemma", reads=of_type("recurrent_gemma"), model=_model, config=_config, weights=_weights,
        depth_field="num_hidden_layers", prefix="model.", embedding="model.embed_tokens.weight",
        ignore=(r".*rotary_emb\.inv_freq",),
    ),
)  # fmt: skip
