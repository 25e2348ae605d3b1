"""Golden data of LSSL: the three views, the discretisations, the structured A with its gradients, the whole layer."""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from zoo.layers.discretization import generalized_bilinear, zero_order_hold
from zoo.layers.quasiseparable import Quasiseparable, dense
from zoo.mixers.lssl import LSSLState, lssl, lssl_convolution, lssl_recurrence, lssl_system
from zoo.scans import krylov


def check(case: Any) -> Iterator[tuple[str, Any]]:
    """Yields every output and gradient of ``case``; ValueError for an unknown kind of case."""
    kinds = {"views": views, "structured_A": structured, "layer": layer}
    prefix = next((name for name in kinds if case.name.startswith(name)), None)
    if prefix is None:
        raise ValueError(f"{case.name} is none of {', '.join(kinds)}")
    return kinds[prefix](case)


def arrays(case: Any) -> dict[str, jnp.ndarray]:
    """The parameters, with log_dt for dt."""
    params = {name: jnp.asarray(value) for name, value in case.params.items()}
    if "dt" in params:
        params["log_dt"] = jnp.log(params.pop("dt"))
    return params


def agree(one: Any, other: Any, what: str) -> None:
    """Raises ValueError where two views differ."""
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        if not np.allclose(a, b, rtol=1e-9, atol=1e-9):
            raise ValueError(f"{what} differ by {np.max(np.abs(a - b)):.2e}")


def views(case: Any) -> Iterator[tuple[str, Any]]:
    """Discretisations, Krylov function and both views, with and without an initial state."""
    params, u = arrays(case), jnp.asarray(case.inputs["u"])
    step = jnp.exp(params["log_dt"])
    for key in case.outputs:
        if key.startswith("Abar_alpha"):
            alpha = float(key.removeprefix("Abar_alpha"))
            steps = 0.2 * step if alpha < 0.5 else step
            matrix, into = generalized_bilinear(params["A"], params["B"], steps, alpha)
            yield f"outputs/{key}", matrix
            yield f"outputs/{key.replace('Abar', 'Bbar')}", into
    matrix, into = zero_order_hold(params["A"], params["B"], step)
    yield from {"outputs/Abar_zoh": matrix, "outputs/Bbar_zoh": into}.items()
    system = lssl_system(params, alpha=case.config["alpha_view"], dtype="float64")
    yield "outputs/krylov", krylov(system.transition, system.into, u.shape[1])
    starts: Mapping[str, Any] = {"": None, "_with_x0": LSSLState(jnp.asarray(case.inputs["x0"]))}
    for suffix, state in starts.items():
        y, last = lssl_convolution(system, u, state)
        agree((y, last), lssl_recurrence(system, u, state), "the recurrent and the convolutional view")
        yield from {f"outputs/y{suffix}": y, f"outputs/x_final{suffix}": last.hidden}.items()


def structured(case: Any) -> Iterator[tuple[str, Any]]:
    """The quasiseparable matrices, and the gradients of one layer with respect to all that makes it."""
    params = arrays(case)
    fields = (*Quasiseparable._fields, "b")

    def system_of(kind):
        vectors = {name: params[f"{kind}_{name}"] for name in fields}
        return Quasiseparable(*(vectors[name] for name in Quasiseparable._fields)), vectors["b"]

    for kind in ("legs", "legt", "rand"):
        q, b = system_of(kind)
        for key, value in (("A", dense(q)), ("B", q.pl * b)):
            if f"{kind}_{key}" in case.outputs:
                yield f"outputs/{kind}_{key}", value

    u, weight = jnp.asarray(case.inputs["u"]), jnp.asarray(case.inputs["loss_weight"])
    names = {"log_dt": "log_dt", "C": "C", "D": "D", **{f"rand_{name}": name for name in fields}}

    def loss(p):
        system = lssl_system(
            {ours: p[theirs] for theirs, ours in names.items()}, alpha=case.config["alpha"], dtype="float64"
        )
        y, _ = lssl_convolution(system, u)
        return jnp.sum(weight * y), (y, system)

    (value, (y, system)), grads = jax.value_and_grad(loss, has_aux=True)({name: params[name] for name in names})
    agree(y, lssl_recurrence(system, u)[0], "the recurrent and the convolutional view")
    yield from {
        "outputs/rand_Abar": system.transition, "outputs/rand_Bbar": system.into, "outputs/y": y, "outputs/loss": value
    }.items()  # fmt: skip
    yield from ((f"grads/{name}", grads[name]) for name in case.grads)


def layer(case: Any) -> Iterator[tuple[str, Any]]:
    """The layer with its nonlinearity and output map."""
    params, u = arrays(case), jnp.asarray(case.inputs["u"])
    weight, bias = params.pop("out_weight"), params.pop("out_bias")
    system = lssl_system(params, dtype="float64")
    yield from {"outputs/Abar": system.transition, "outputs/Bbar": system.into}.items()
    yield "outputs/y_ssm", lssl_convolution(system, u)[0]
    yield "outputs/y_layer", lssl({**params, "W": weight.T, "bias": bias}, u)[0]
