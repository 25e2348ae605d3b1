"""Golden data of DeltaProduct: the recurrence in every form, and the whole layer, by tokens too."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import zoo
from zoo.scans import delta_product, delta_product_step

METHODS = ("chunked", "sequential", "associative")


def check(case: Any) -> Iterator[tuple[str, Any]]:
    """Yields every output of ``case``; ValueError for names that are neither the recurrence nor the layer."""
    systems = {"core": core, "layer": layer}
    kind = case.name.split("_")[0]
    if kind not in systems:
        raise ValueError(f"{case.name} begins with none of {', '.join(systems)}")
    return systems[kind](case)


def _agree(got: Any, want: Any, what: str) -> None:
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        if not np.allclose(g, w, rtol=1e-9, atol=1e-10):
            raise ValueError(f"{what} differs by {np.max(np.abs(np.asarray(g) - w)):.2e}")


def core(case: Any) -> Iterator[tuple[str, Any]]:
    arrays = {name: jnp.asarray(value) for name, value in case.inputs.items()}
    weights = arrays.pop("w")

    def run(p, method):
        o, last = delta_product(
            p["q"], p["k"], p["v"], p["beta"], p.get("g"), p["initial_state"], method=method, chunk_size=4
        )
        return jnp.sum(o * weights) + 0.5 * jnp.sum(last**2), (o, last)

    results = [jax.value_and_grad(run, has_aux=True)(arrays, method) for method in METHODS]
    for method, result in zip(METHODS[1:], results[1:]):
        _agree(result, results[0], method)
    (loss, (o, last)), grads = results[0]
    state, steps = arrays["initial_state"], []
    for t in range(o.shape[1]):
        q, k, v, beta = (arrays[name][:, t] for name in ("q", "k", "v", "beta"))
        y, state = delta_product_step(q, k, v, beta, arrays["g"][:, t] if "g" in arrays else None, state)
        steps.append(y)
    _agree((jnp.stack(steps, axis=1), state), (o, last), "token by token")
    yield from {"outputs/o": o, "outputs/final_state": last, "outputs/loss": loss[None]}.items()
    yield from ((f"grads/{name}", grads[name]) for name in case.grads)


WEIGHTS = {
    "q_proj.weight": "query", "k_proj.weight": "key", "v_proj.weight": "value", "b_proj.weight": "beta",
    "a_proj.weight": "dt", "g_proj.weight": "gate", "o_proj.weight": "output", "q_conv1d.weight": "query_kernel",
    "k_conv1d.weight": "key_kernel", "v_conv1d.weight": "value_kernel", "A_log": "A_log", "dt_bias": "dt_bias",
    "o_norm.weight": "scale",
}  # fmt: skip


def layer(case: Any) -> Iterator[tuple[str, Any]]:
    config = case.config
    module = zoo.create(
        "deltaproduct", dim=config["d"], householders=config["n_h"], heads=config["H"], head_dim=config["head_dim"],
        expand_v=config["expand_v"], use_forget_gate=config["forget_gate"], use_output_gate=config["output_gate"],
        allow_neg_eigval=config["neg_eigval"], norm_eps=config["norm_eps"], chunk_size=4, dtype="float64",
        conv_size=case.params["q_conv1d.weight"].shape[-1] if config["short_conv"] else None,
    )  # fmt: skip

    def ours(key, value):
        return jnp.asarray(value[:, 0].T if "conv1d" in key else value.T)

    def theirs(key, value):
        return value.T[:, None] if "conv1d" in key else value.T

    params = {WEIGHTS[key]: ours(key, value) for key, value in case.params.items()}
    x, weights = jnp.asarray(case.inputs["x"]), jnp.asarray(case.inputs["w"])

    def run(params, x):
        y, state = module.apply({"params": params}, x)
        return jnp.sum(y * weights), (y, state)

    (_, (y, state)), (grads, grad_x) = jax.jit(jax.value_and_grad(run, (0, 1), has_aux=True))(params, x)
    one_token, carried, steps = jax.jit(module.apply), module.initial_state(len(x)), []
    for t in range(x.shape[1]):
        now, carried = one_token({"params": params}, x[:, t : t + 1], carried)
        steps.append(now)
    _agree((jnp.concatenate(steps, axis=1), carried.memory), (y, state.memory), "token by token")
    yield "outputs/y", y
    yield "outputs/final_state", state.memory
    yield from ((f"grads/{key}", grad_x if key == "x" else theirs(key, grads[WEIGHTS[key]])) for key in case.grads)
