"""GLA and RetNet from the layouts of flash-linear-attention: logits by NumPy from the file's tensors, and the round trip."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zoo
from tests.interchange.foreign import value
from tests.oracles.gla import oracle as gla
from tests.oracles.mamba import silu
from tests.oracles.retnet import oracle as retnet
from zoo.interchange import LAYOUTS, export_weights, import_weights
from zoo.interchange.config import Config
from zoo.interchange.layouts.base import foreign_shape
from zoo.interchange.pretrained import _parameter_shapes

COMMON = {
    "vocab_size": 13,
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_heads": 2,
    "intermediate_size": 6,
    "norm_eps": 1e-5,
}
FIELDS = {
    "gla": {"model_type": "gla", **COMMON, "expand_k": 1.0, "fuse_norm": True, "use_gk": True, "attn": None},
    "gla-plain": {"model_type": "gla", **COMMON, "use_output_gate": False, "clamp_min": -0.01, "tie_word_embeddings": True},
    "retnet": {"model_type": "retnet", **COMMON, "num_kv_heads": 2},
}  # fmt: skip
TOKENS = np.random.default_rng(0).integers(0, 13, (2, 5))


def made(name):
    fields = FIELDS[name]
    layout = LAYOUTS[fields["model_type"]]
    model = layout.model(Config(fields))
    shapes = _parameter_shapes(model, fields["model_type"])
    return fields, {w.key: value(w.key, foreign_shape(w, shapes)) for w in layout.weights(model, frozenset())}


def normed(x, scale):
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + COMMON["norm_eps"]) * scale


def logits(fields, arrays):
    """The model in NumPy from the tensors as they lie in the file, [out, in]."""
    heads = fields["num_heads"]
    arrays = {k.removeprefix("model."): np.float64(a) for k, a in arrays.items()}
    x = arrays["embeddings.weight"][TOKENS]
    for layer in range(fields["num_hidden_layers"]):
        own = {k.removeprefix(f"layers.{layer}."): a for k, a in arrays.items() if k.startswith(f"layers.{layer}.")}

        def split(name, own=own):
            w = own[f"attn.{name}.weight"]
            return w.T.reshape(w.shape[1], heads, -1)

        names = {"query": "q_proj", "key": "k_proj", "value": "v_proj"}
        params = {ours: split(theirs) for ours, theirs in names.items()}
        params["output"] = own["attn.o_proj.weight"].T.reshape(heads, -1, 8)
        gated = "attn.g_proj.weight" in own
        params["scale"] = own["attn.g_norm_swish_gate.weight" if gated else "attn.g_norm.weight"]
        if gated:
            params["gate"] = split("g_proj")
        options = {"heads": heads, "norm_eps": 1e-5}
        if fields["model_type"] == "gla":
            params |= {"forget_down": own["attn.gk_proj.0.weight"].T, "forget_up": split("gk_proj.1")}
            params["forget_bias"] = own["attn.gk_proj.1.bias"].reshape(heads, -1)
            options |= {"gate_divisor": 16.0, "gate_min": fields.get("clamp_min"), "output_gate": gated}
            mix = gla
        else:
            options |= {"norm": "rms", "base": 10_000.0}
            mix = retnet
        x = x + mix(types.SimpleNamespace(**options), params, normed(x, own["attn_norm.weight"]))
        h = normed(x, own["mlp_norm.weight"])
        h = silu(h @ own["mlp.gate_proj.weight"].T) * (h @ own["mlp.up_proj.weight"].T)
        x = x + h @ own["mlp.down_proj.weight"].T
    tied = fields.get("tie_word_embeddings", False)
    return normed(x, arrays["norm.weight"]) @ arrays["embeddings.weight" if tied else "lm_head.weight"].T


@pytest.mark.parametrize("name", FIELDS)
def test_logits_and_round_trip(name):
    fields, arrays = made(name)
    model, params = import_weights(fields, arrays)
    with jax.enable_x64(True):  # the norms of hardly anything that was read have few digits in float32
        wide = jax.tree.map(lambda p: jnp.asarray(p, jnp.float64), params)
        got, _ = jax.jit(model.clone(dtype="float64").apply)(wide, jnp.asarray(TOKENS))
        np.testing.assert_allclose(got, logits(fields, arrays), rtol=1e-9, atol=1e-11)
    again_fields, again = export_weights(model, params, layout=fields["model_type"])
    assert set(again) == set(arrays) and import_weights(again_fields, again)[0] == model
    for key in arrays:
        np.testing.assert_array_equal(again[key], arrays[key], err_msg=key)


def test_norms_that_are_not_fused_have_another_name():
    fields, arrays = made("retnet")
    plain = {k.replace("g_norm_swish_gate", "g_norm"): a for k, a in arrays.items()}
    want, got = import_weights(fields, arrays)[1], import_weights({**fields, "fuse_norm": False}, plain)[1]
    jax.tree.map(np.testing.assert_array_equal, got, want)


def test_widths_of_mlps_are_rounded_up_to_256():
    fields = {k: v for k, v in FIELDS["gla"].items() if k != "intermediate_size"} | {"hidden_size": 1024}
    assert LAYOUTS["gla"].model(Config(fields)).mlp_dim == 2816


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("gla", {"use_short_conv": True}),
        ("gla", {"num_kv_heads": 1}),
        ("gla", {"feature_map": "relu"}),
        ("retnet", {"attn": {"layers": [0]}}),
        ("retnet", {"use_output_gate": False}),
        ("retnet", {"elementwise_affine": False}),
    ],
)
def test_what_the_zoo_does_not_compute_is_refused(kind, change):
    with pytest.raises(ValueError, match=next(iter(change))):
        LAYOUTS[kind].model(Config({**FIELDS[kind], **change}))


def test_models_that_the_layouts_cannot_say_are_refused():
    model = zoo.LanguageModel(vocab_size=13, dim=8, pattern=({"name": "gla", "gate_rank": 2},), norm_eps=1e-6)
    with pytest.raises(ValueError, match="gate_rank 16"):
        LAYOUTS["gla"].config(model)
    model = zoo.LanguageModel(
        vocab_size=13, dim=8, pattern=({"name": "retnet", "norm": "layer", "heads": 2},), norm_eps=1e-6
    )
    with pytest.raises(ValueError, match="norm 'rms'"):
        LAYOUTS["retnet"].config(model)
