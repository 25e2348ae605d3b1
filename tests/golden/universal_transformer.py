"""Golden data of the Universal Transformer: fixed steps in the paper's form, ACT in the released code's form, causal."""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from zoo.layers.depth_recurrence import Options
from zoo.mixers import UniversalTransformer, ponder_cost, universal_transformer

LAYER = {
    "query": "Wq", "key": "Wk", "value": "Wv", "output": "Wo", "up": "W1", "up_bias": "b1", "down": "W2", "down_bias": "b2",
}  # fmt: skip
NORMS = {"attention_norm": "ln1", "transition_norm": "ln2"}


def parameters(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The file's parameters under the zoo's names; a layer gets a leading axis of one inner layer."""
    block = {ours: flat[theirs][None] for ours, theirs in LAYER.items()}
    for ours, theirs in NORMS.items():
        block[ours] = {"scale": flat[f"{theirs}_g"][None], "bias": flat[f"{theirs}_b"][None]}
    params = {"block": block}
    if "halt_w" in flat:
        params["halting"] = {"weight": flat["halt_w"], "bias": flat["halt_b"]}
        params["final_norm"] = {"scale": flat["lnf_g"], "bias": flat["lnf_b"]}
        params["step_table"] = flat["step_table"]
    return params


def compare_gradients(case: Any, loss: Any) -> Iterator[tuple[str, Any]]:
    """Gradients of ``loss(flat params)`` for every parameter of the file."""
    grads = jax.jit(jax.grad(loss))({k: jnp.asarray(v) for k, v in case.params.items()})
    for name in case.grads:
        yield f"grads/{name}", grads[name]


def check_fixed(case: Any) -> Iterator[tuple[str, Any]]:
    c = case.config
    options = Options(heads=c["heads"], steps=c["T"], norm="post", step_signal="sinusoid",
                      window=case.inputs["x"].shape[1] if c["causal"] else None)  # fmt: skip
    x, cotangent = (jnp.asarray(case.inputs[k]) for k in ("x", "cotangent"))

    def state(flat):
        return universal_transformer(parameters(flat), x, options)[0]

    y = jax.jit(state)(case.params)
    yield "outputs/state", y
    yield "outputs/loss", jnp.sum(y * cotangent)
    yield from compare_gradients(case, lambda flat: jnp.sum(state(flat) * cotangent))


def check_adaptive(case: Any) -> Iterator[tuple[str, Any]]:
    c = case.config
    x, cotangent = (jnp.asarray(case.inputs[k]) for k in ("x", "cotangent"))

    def run(flat, variant):
        module = UniversalTransformer(
            dim=c["d"], heads=c["heads"], steps=c["max_steps"], mlp_dim=c["ffn"], recurrence="act",
            act_type=variant.removesuffix("_freeze"), freeze_halted=variant.endswith("_freeze"), epsilon=c["act_epsilon"],
            sinusoid="concatenated", window=x.shape[1], dtype="float64",
        )  # fmt: skip
        y, _, depth = module.apply({"params": parameters(flat)}, x, method="run")
        return y, depth

    for variant in sorted(key.removeprefix("state_") for key in case.outputs if key.startswith("state_")):
        y, depth = jax.jit(run, static_argnums=1)(case.params, variant)
        yield f"outputs/state_{variant}", y
        yield f"outputs/n_{variant}", np.float64(depth.steps)
        yield f"outputs/R_{variant}", depth.remainder
        yield f"outputs/steps_{variant}", depth.loops

    def loss(flat):
        y, depth = run(flat, "basic")
        return jnp.sum(y * cotangent) + c["tau"] * ponder_cost(depth.steps, depth.remainder)

    yield "outputs/loss_basic", jax.jit(loss)(case.params)
    yield from compare_gradients(case, loss)


def check(case: Any) -> Iterator[tuple[str, Any]]:
    """Yields (key, value) for every output and gradient of ``case``."""
    if case.config.get("ln_eps", 1e-6) != 1e-6:
        raise ValueError(f"layer norms have eps = 1e-6 here, the case has {case.config['ln_eps']}")
    if "max_steps" in case.config:
        yield from check_adaptive(case)
    elif "T" in case.config:
        yield from check_fixed(case)
    else:
        raise ValueError(f"the case {case.name!r} has neither T (fixed steps) nor max_steps (ACT) in its config")
