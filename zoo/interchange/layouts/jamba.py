"""Jamba in the layout of transformers: attention and Mamba layers, feed-forward layers and mixtures of experts."""

from collections.abc import Set
from typing import Any

import numpy as np

import zoo
from zoo.interchange.config import Config
from zoo.interchange.layouts.base import (
    LINEAR,
    Layout,
    Place,
    Transform,
    Weight,
    layer_places,
    of_type,
    outer_weights,
    stacked,
)
from zoo.interchange.layouts.llama import attention_weights, swiglu_weights
from zoo.interchange.layouts.mamba import mixer_weights
from zoo.models import LanguageModel

# Experts one by one, as on the hub, and merged, as transformers 5 holds them: gate over up, [E, 2I, D], and [E, D, I].
GATE_UP = Transform(
    lambda a, _: [part.swapaxes(1, 2) for part in np.split(a, 2, axis=1)],
    lambda p: stacked([a.swapaxes(1, 2) for a in p], axis=1),
)
DOWN = Transform(lambda a, _: [a.swapaxes(1, 2)], lambda p: p[0].swapaxes(1, 2))


def _model(config: Config) -> LanguageModel:
    config.ignore(("attention_dropout", "output_router_logits", "router_aux_loss_coef", "num_logits_to_keep",
                   "mamba_inner_layernorms", "sliding_window", "calc_logits_for_entire_prompt"))  # fmt: skip
    config.must("hidden_act", "silu")
    if config.value("sliding_window") is not None:
        raise config.error("sliding_window", "null", config.value("sliding_window"))
    config.must("mamba_inner_layernorms", True)
    dim, eps = config.size("hidden_size", 4096), config.number("rms_norm_eps", 1e-6)
    heads, experts = config.size("num_attention_heads", 32), config.size("num_experts", 16)
    rank = config.value("mamba_dt_rank", "auto")
    mamba = {
        "name": "mamba", "state_dim": config.size("mamba_d_state", 16), "expand": config.size("mamba_expand", 2),
        "conv_size": config.size("mamba_d_conv", 4), "norms": "learned", "norm_eps": eps,
        "dt_rank": -(-dim // 16) if rank == "auto" else config.size("mamba_dt_rank"),
        "use_bias": config.flag("mamba_proj_bias", False), "conv_bias": config.flag("mamba_conv_bias", True),
    }  # fmt: skip
    attention = {
        "name": "attention", "heads": heads, "kv_heads": config.size("num_key_value_heads", 8), "positions": "none",
        "window": config.size("max_position_embeddings", 262_144),
    }  # fmt: skip
    chosen = config.size("num_experts_per_tok", 2)
    if chosen > experts:
        raise config.error("num_experts_per_tok", f"at most num_experts = {experts}", chosen)
    moe = {"name": "moe", "experts": experts, "top_k": chosen}
    mixers = _cycle(config, "attn_layer", 8, 4, attention, mamba)
    mlps = _cycle(config, "expert_layer", 2, 1, moe if experts > 1 else "swiglu", "swiglu")
    return LanguageModel(
        vocab_size=config.size("vocab_size", 65536), dim=dim, pattern=mixers, mlp=mlps,
        depth=config.size("num_hidden_layers", 32), mlp_dim=config.size("intermediate_size", 14336), norm="rms",
        norm_eps=eps, embedding_scale=1.0, tie_embeddings=config.flag("tie_word_embeddings", False),
    )  # fmt: skip


def _cycle(config: Config, name: str, period: int, offset: int, one: Any, others: Any) -> tuple[Any, ...]:
    """A cycle of ``period`` layers, ``one`` at ``offset`` and ``others`` elsewhere."""
    period = config.size(f"{name}_period", period)
    offset = config.value(f"{name}_offset", offset)
    if isinstance(offset, bool) or not isinstance(offset, int) or not 0 <= offset < period or period > 4096:
        raise config.error(f"{name}_offset", f"an integer from 0 to {name}_period - 1 = {period - 1}", offset)
    return tuple(one if i == offset else others for i in range(period))


def _named(specs: tuple[Any, ...]) -> list[str]:
    return [spec if isinstance(spec, str) else spec["name"] for spec in specs]


def _config(model: LanguageModel) -> dict[str, Any]:
    mlps = model.mlp if isinstance(model.mlp, tuple) else (model.mlp,)
    mixers, kinds = _named(model.pattern), _named(mlps)
    if mixers.count("attention") != 1 or kinds.count("moe") > 1 or "mamba" not in mixers:
        raise ValueError(
            "layout 'jamba' wants one attention layer in a cycle of mamba layers, and at most one mixture of experts in a "
            f"cycle of feed-forward layers, got {mixers} and {kinds}"
        )
    attention = zoo.create(model.pattern[mixers.index("attention")], dim=model.dim)
    mamba = zoo.create(model.pattern[mixers.index("mamba")], dim=model.dim)
    moe = dict(mlps[kinds.index("moe")]) if "moe" in kinds else {"experts": 1, "top_k": 1}
    return {
        "model_type": "jamba", "architectures": ["JambaForCausalLM"], "vocab_size": model.vocab_size,
        "hidden_size": model.dim, "intermediate_size": model.mlp_dim, "num_hidden_layers": model.depth,
        "num_attention_heads": attention.heads, "num_key_value_heads": attention.kv_heads or attention.heads,
        "max_position_embeddings": attention.window, "hidden_act": "silu", "rms_norm_eps": model.norm_eps,
        "attn_layer_period": len(mixers), "attn_layer_offset": mixers.index("attention"),
        "expert_layer_period": len(kinds), "expert_layer_offset": kinds.index("moe") if "moe" in kinds else 0,
        "num_experts": moe["experts"], "num_experts_per_tok": moe["top_k"], "mamba_d_state": mamba.state_dim,
        "mamba_d_conv": mamba.conv_size, "mamba_expand": mamba.expand, "mamba_conv_bias": mamba.conv_bias,
        "mamba_dt_rank": -(-model.dim // 16) if mamba.dt_rank is None else mamba.dt_rank,
        "mamba_proj_bias": mamba.use_bias, "tie_word_embeddings": model.tie_embeddings,
    }  # fmt: skip


def expert_weights(prefix: str, at: Any, experts: int, keys: Set[str]) -> list[Weight]:
    """gate_proj, up_proj and down_proj of every expert, or both merged tensors where the file has them."""
    if f"{prefix}gate_up_proj" in keys:
        merged = Weight(f"{prefix}gate_up_proj", at("mlp", "gate") + at("mlp", "up"), GATE_UP)
        return [merged, Weight(f"{prefix}down_proj", at("mlp", "down"), DOWN)]
    found = []
    for j in range(experts):
        for name in ("gate", "up", "down"):
            (place,) = at("mlp", name)
            expert = Place(place.path, (*place.index, j))
            found.append(Weight(f"{prefix}{j}.{name}_proj.weight", (expert,), LINEAR))
    return found


def _weights(model: LanguageModel, keys: Set[str]) -> list[Weight]:
    found = outer_weights(model, "model.embed_tokens.weight", "model.final_layernorm")
    for i, (at, (mixer, mlp)) in enumerate(zip(layer_places(model), model.stack().blocks())):
        prefix = f"model.layers.{i}."
        found.append(Weight(f"{prefix}input_layernorm.weight", at("mixer_norm", "scale")))
        found.append(Weight(f"{prefix}pre_ff_layernorm.weight", at("mlp_norm", "scale")))
        if mixer["name"] == "attention":
            found += attention_weights(f"{prefix}self_attn.", at, False)
        else:
            found += mixer_weights(f"{prefix}mamba.", at, dict(mixer), norms=("dt", "B", "C"))
        inner = f"{prefix}feed_forward."
        if mlp == "swiglu":
            found += swiglu_weights(inner, at)
            continue
        found.append(Weight(f"{inner}router.weight", at("mlp", "router"), LINEAR))
        found += expert_weights(f"{inner}experts.", at, mlp["experts"], keys)
    return found


LAYOUTS = (
    Layout(
        name="jamba", reads=of_type("jamba"), model=_model, config=_config, weights=_weights,
        depth_field="num_hidden_layers", prefix="model.", embedding="model.embed_tokens.weight",
    ),
)  # fmt: skip
