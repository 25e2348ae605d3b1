"""flash-linear-attention's layouts: a NumPy model that reads their names computes the same; round trips; what is refused."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.interchange.foreign import value
from tests.oracles import deltaproduct as oracle
from tests.oracles.mamba import silu
from zoo.interchange import LAYOUTS, export_weights, import_weights
from zoo.interchange.config import Config
from zoo.interchange.layouts.base import foreign_shape
from zoo.interchange.pretrained import _parameter_shapes

TINY = {"vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 2, "num_heads": 2, "intermediate_size": 12}
CONFIGURATIONS = {
    "delta_net": TINY | {"expand_k": 0.5, "expand_v": 1.5, "tie_word_embeddings": True, "fuse_norm": True},
    "gated_deltanet": TINY | {"head_dim": 3, "num_v_heads": 4, "allow_neg_eigval": True},
    "gated_deltaproduct": TINY | {
        "head_dim": 3, "num_householder": 3, "use_forget_gate": True, "allow_neg_eigval": True, "conv_size": 2,
    },
    "gated_deltaproduct-bare": TINY | {
        "head_dim": 4, "expand_v": 1.0, "use_short_conv": False, "use_output_gate": False, "num_householder": 2,
        "intermediate_size": None, "hidden_ratio": 4,
    },
}  # fmt: skip
TOKENS = np.random.default_rng(0).integers(0, 20, (2, 7))


def made(name):
    """Configuration, and weights that depend on their names alone."""
    kind = name.split("-")[0]
    fields = {"model_type": kind, **CONFIGURATIONS[name]}
    model = LAYOUTS[kind].model(Config(fields))
    shapes = _parameter_shapes(model, kind)
    weights = LAYOUTS[kind].weights(model, frozenset())
    return fields, {w.key: value(w.key, foreign_shape(w, shapes)) for w in weights}


def rms(x, weight, eps=1e-6):
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + eps) * weight


NAMES = {"q": "query", "k": "key", "v": "value", "b": "beta", "a": "dt", "g": "gate", "o": "output"}


def reference(name, fields, weights):
    """Logits by the foreign names: norms, layers and feed-forwards as the library's models put them together."""
    w = {key: np.asarray(array, np.float64) for key, array in weights.items()}
    kind = name.split("-")[0]
    neg = fields.get("allow_neg_eigval", False)
    module = types.SimpleNamespace(
        heads=2, householders=fields.get("num_householder", 1), value_heads=fields.get("num_v_heads", 2),
        conv_size=fields.get("conv_size", 4) if fields.get("use_short_conv", True) else None, allow_neg_eigval=neg,
        norm_eps=1e-6,
    )  # fmt: skip
    x = w["model.embeddings.weight"][TOKENS]
    for i in range(2):
        at = f"model.layers.{i}."
        params = {
            ours: w[f"{at}attn.{s}_proj.weight"].T for s, ours in NAMES.items() if f"{at}attn.{s}_proj.weight" in w
        }
        for s in "qkv":
            if f"{at}attn.{s}_conv1d.weight" in w:
                params[f"{NAMES[s]}_kernel"] = w[f"{at}attn.{s}_conv1d.weight"][:, 0].T
        params |= {n: w[f"{at}attn.{n}"] for n in ("A_log", "dt_bias") if f"{at}attn.{n}" in w}
        params["scale"] = w[f"{at}attn.o_norm.weight"]
        assert ("A_log" in params) == (kind == "gated_deltanet" or fields.get("use_forget_gate", False))
        x = x + oracle.oracle(module, params, rms(x, w[f"{at}attn_norm.weight"]))
        h = rms(x, w[f"{at}mlp_norm.weight"])
        gate, up, down = (w[f"{at}mlp.{n}_proj.weight"].T for n in ("gate", "up", "down"))
        x = x + (silu(h @ gate) * (h @ up)) @ down
    x = rms(x, w["model.norm.weight"])
    return x @ w.get("lm_head.weight", w["model.embeddings.weight"]).T


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_logits_are_those_of_the_names_and_weights_go_back(name):
    fields, arrays = made(name)
    model, params = import_weights(fields, arrays)
    logits, _ = jax.jit(model.apply)(params, jnp.asarray(TOKENS))
    np.testing.assert_allclose(logits, reference(name, fields, arrays), atol=1e-4)
    again_fields, again = export_weights(model, params, layout=name.split("-")[0])
    assert set(again) == set(arrays)
    for key in arrays:
        np.testing.assert_array_equal(again[key], arrays[key], err_msg=key)
    same = {k: v for k, v in again_fields.items() if k in fields and fields[k] is not None}
    assert same == {k: fields[k] for k in same}
    assert import_weights(again_fields, again)[0] == model


def test_the_feed_forward_width_is_rounded_up_to_256():
    assert LAYOUTS["gated_deltaproduct"].model(Config(CONFIGURATIONS["gated_deltaproduct-bare"])).mlp_dim == 256
    assert LAYOUTS["delta_net"].model(Config({"hidden_size": 1024})).mlp_dim == 2816


@pytest.mark.parametrize(
    ("kind", "change", "words"),
    [
        ("delta_net", {"qk_norm": "sum"}, "qk_norm"),
        ("delta_net", {"use_beta": False}, "use_beta"),
        ("delta_net", {"expand_k": 0.4}, "expand_k"),
        ("gated_deltaproduct", {"attn": {"layers": [1], "num_heads": 2}}, "attn"),
        ("gated_deltaproduct", {"num_householder": 0}, "num_householder"),
        ("gated_deltanet", {"hidden_act": "gelu"}, "hidden_act"),
    ],
)
def test_what_is_not_read_is_refused_by_name(kind, change, words):
    fields, arrays = made(kind)
    with pytest.raises(ValueError, match=words):
        import_weights({**fields, **change}, arrays)


def test_a_product_of_two_does_not_pass_for_a_gated_deltanet():
    fields, arrays = made("gated_deltaproduct")
    with pytest.raises(ValueError, match="householders=1"):
        export_weights(*import_weights(fields, arrays), layout="gated_deltanet")
