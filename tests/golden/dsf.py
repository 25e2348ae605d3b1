"""Golden data of the Dynamical Systems Framework: matrices, convolutions and outputs of attention and recurrences."""

from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np

from zoo.analysis.dynamical_systems import native, softmax_kernel, to_dsf

# prefix in the file -> (architecture, options)
SYSTEMS = {
    "linear_unnormalised": ("linear_attention_unnormalized", {}),
    "linear": ("linear_attention", {}),
    "norm_exp": ("normalized_attention", {"normalizer": "exp"}),
    "norm_softplus": ("normalized_attention", {"normalizer": "softplus"}),
    "norm_sigmoid": ("normalized_attention", {"normalizer": "sigmoid"}),
    "s6": ("s6", {}),
    "ssd": ("ssd", {}),
    "qlstm_rev": ("qlstm_reversed", {}),
    "qlstm": ("qlstm", {}),
    "rglru": ("rg_lru", {}),
}
PARTS = ("h_final", "Lambda", "B", "C", "D", "Phi", "y")


def check(case: Any) -> Iterator[tuple[str, Any]]:
    """Yields every output of ``case``: matrices, Phi, final state, and y as the layer itself computes it."""
    u = jnp.asarray(case.inputs["u"])
    params = {name: jnp.asarray(value) for name, value in case.params.items()}
    systems: dict[str, Any] = {}
    for key in case.outputs:
        name, part = next((key.removesuffix(f"_{p}"), p) for p in PARTS if key.endswith(f"_{p}"))
        if name == "softmax":
            exact = native("attention", attention(params), u)
            agree("softmax", jnp.einsum("ijod,jd->io", softmax_kernel(attention(params), u), u), exact)
            yield f"outputs/{key}", exact
            continue
        if name not in systems:
            systems[name] = converted(name, params, u)
        yield f"outputs/{key}", systems[name][part]


def converted(name: str, params: dict[str, Any], u: Any) -> dict[str, Any]:
    """All parts of the system called ``name``; its three forms must give its native output."""
    if name.startswith("softmax_taylor"):
        architecture, options = "attention", {"degree": int(name.removeprefix("softmax_taylor"))}
    elif name in SYSTEMS:
        architecture, options = SYSTEMS[name]
    else:
        raise ValueError(f"no system is called {name} (known: softmax_taylor<degree>, {', '.join(SYSTEMS)})")
    own = parameters(architecture, params)
    system, y = to_dsf(architecture, own, u, **options), native(architecture, own, u, **options)
    recurrent, last = system.run_recurrent(u)
    agree(f"{name}, recurrence", recurrent, y)
    agree(f"{name}, scan", system.run_scan(u)[0], y)
    return {
        "Lambda": system.decay, "B": system.inputs, "C": system.outputs, "D": system.feedthrough, "Phi": system.kernel(),
        "y": y, "h_final": last,
    }  # fmt: skip


def parameters(architecture: str, p: dict[str, Any]) -> dict[str, Any]:
    """The file's matrices (out, in) as the zoo's parameters (in, out), with one head."""
    if "attention" in architecture:
        extra = {"normalizer": p["W_eta"].T, "normalizer_bias": p["b_eta"]} if "W_eta" in p else {}
        return attention(p) | extra
    if architecture == "s6":
        project = jnp.concatenate([p["s6_W_dt"], p["s6_W_B"], p["s6_W_C"]]).T
        own = {"dt_bias": p["s6_b_dt"], "A_log": p["s6_A_log"], "skip": p["s6_D"]}
        return {"project": project, "dt": jnp.eye(len(p["s6_W_dt"])), **own}
    if architecture == "ssd":
        maps = {"B": p["W_k"].T, "C": p["W_q"].T, "value": p["W_v"].T[:, None], "dt": p["ssd_w_dt"][:, None]}
        return maps | {"dt_bias": p["ssd_b_dt"][None], "A_log": p["ssd_A_log"][None]}
    if architecture.startswith("qlstm"):
        gates = jnp.concatenate([p[f"qlstm_W_{gate}"] for gate in "fio"]).T
        bias = jnp.concatenate([p[f"qlstm_b_{gate}"] for gate in "fio"])
        alpha = {"alpha": p["qlstm_alpha"]} if architecture == "qlstm_reversed" else {}
        return {"gates": gates, "gates_bias": bias, "value": p["qlstm_W_u"].T, **alpha}
    return {
        "decay": p["rglru_a_param"], "recurrence_gate": p["rglru_W_a"].T[None], "input_gate": p["rglru_W_x"].T[None]
    }  # fmt: skip


def attention(p: dict[str, Any]) -> dict[str, Any]:
    """Queries, keys and values of one head, and no output projection."""
    maps = {name: p[f"W_{name[0]}"].T[:, None] for name in ("query", "key", "value")}
    return maps | {"output": jnp.eye(p["W_v"].shape[0])[None]}


def agree(what: str, got: Any, want: Any) -> None:
    """Raises ValueError where two ways to the same numbers differ."""
    if not np.allclose(got, want, rtol=1e-9, atol=1e-10):
        raise ValueError(f"{what} is off by {np.max(np.abs(got - want)):.2e} from the native output")
