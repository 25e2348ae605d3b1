"""Golden data of the survey on structured state space models: the cores of S5, LRU and Liquid-S4."""

from collections.abc import Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from zoo.mixers.liquid_s4 import LiquidS4State, liquid_scan, liquid_second_order
from zoo.mixers.lru import LRUState, lru
from zoo.mixers.s5 import S5State, s5, s5_bidirectional


def check(case: Any) -> Iterator[tuple[str, Any]]:
    """Yields every output of ``case``; ValueError for the systems of this survey that the zoo does not have yet."""
    systems = {"s5_core": s5_core, "lru_liquid": lru_liquid}
    prefix = next((name for name in systems if case.name.startswith(name)), None)
    if prefix is None:
        raise ValueError(f"{case.name} is not built yet (built: {', '.join(systems)})")
    return systems[prefix](case)


def parts(**arrays: np.ndarray) -> Mapping[str, jnp.ndarray]:
    """name -> name_re and name_im."""
    sides = (("re", np.real), ("im", np.imag))
    return {f"{name}_{part}": jnp.asarray(side(array)) for name, array in arrays.items() for part, side in sides}


def s5_core(case: Any) -> Iterator[tuple[str, Any]]:
    p = case.params
    params = {**parts(Lambda=p["Lambda"], B=p["B"], C=p["C"]), "D": p["D"], "log_step": p["log_step"]}
    params = {name: jnp.asarray(value) for name, value in params.items()}
    both = {**params, **parts(C=p["C_bidirectional"])}
    u = jnp.asarray(case.inputs["u"])[None]
    state = S5State(jnp.zeros((1, len(p["Lambda"])), jnp.complex128))
    for key in case.outputs:
        _, discretization, *rest = key.split("_")
        options = {"discretization": discretization, "conj_sym": "noconj" not in rest, "clip_eigs": False}
        if "bidirectional" in rest:
            y = s5_bidirectional(both, u, **options)
        else:
            y, _ = s5(params, u, state, **options)
        yield f"outputs/{key}", y[0]


def lru_liquid(case: Any) -> Iterator[tuple[str, Any]]:
    p, u = case.params, jnp.asarray(case.inputs["u"])[None]
    # the file has B [P, H] and C [H, P], the zoo's LRU their transposes
    params = {**parts(B=p["B"].T, C=p["C"].T), **{k: p[k] for k in ("nu_log", "theta_log", "gamma_log", "D")}}
    params = {name: jnp.asarray(value) for name, value in params.items()}
    yield "outputs/lru_y", lru(params, u, LRUState(jnp.zeros((1, len(p["nu_log"])), jnp.complex128)))[0][0]

    system = [jnp.asarray(p[f"liquid_{name}"])[None] for name in ("Abar", "Bbar", "C")]
    channel = u[..., :1]

    def run(form, order):
        kept = 0 if form == "exact" else order - 1
        state = LiquidS4State(jnp.zeros((1, *system[0].shape), jnp.complex128), jnp.zeros((1, kept, 1)))
        return liquid_scan(*system, channel, state, form=form, order=order)[0][0, :, 0]

    yield "outputs/liquid_exact_y", run("exact", 1)
    yield "outputs/liquid_linear_y", run("kb", 1)
    yield "outputs/liquid_kb2_y", run("kb", 2)
    yield "outputs/liquid_pb2_y", run("pb", 2)
    yield "outputs/liquid_order2_all_pairs_y", liquid_second_order(*system, channel)[0, :, 0]
