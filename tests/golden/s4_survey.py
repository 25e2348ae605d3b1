"""Golden data of the survey on structured state space models: S4, S4D, DSS, S5, LRU, Liquid-S4, Mambas, Jamba."""

import functools
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from zoo.interchange import LAYOUTS, import_weights
from zoo.layers import cross_entropy
from zoo.mixers.dss import dss_kernel
from zoo.mixers.liquid_s4 import LiquidS4State, liquid_scan, liquid_second_order
from zoo.mixers.lru import LRUState, lru
from zoo.mixers.s4 import s4, s4_dense, s4_kernel, s4_system
from zoo.mixers.s4d import s4d_kernel
from zoo.mixers.s5 import S5State, s5, s5_bidirectional
from zoo.scans import linear_attention, selective_scan


def check(case: Any) -> Iterator[tuple[str, Any]]:
    """Yields every output of ``case``; ValueError for names that are none of this survey's systems."""
    systems = {
        "s4_dplr": s4_dplr, "s4d_dss": s4d_dss, "s5_core": s5_core, "lru_liquid": lru_liquid, "ssd_core": ssd_core,
        "selective_scan_core": selective_scan_core,
        "hf_mamba2": language_model, "hf_mamba": language_model, "hf_jamba": language_model,
    }  # fmt: skip
    prefix = next((name for name in systems if case.name.startswith(name)), None)
    if prefix is None:
        raise ValueError(f"{case.name} begins with none of {', '.join(systems)}")
    return systems[prefix](case)


def parts(**arrays: np.ndarray) -> Mapping[str, jnp.ndarray]:
    """name -> name_re and name_im."""
    sides = (("re", np.real), ("im", np.imag))
    return {f"{name}_{part}": jnp.asarray(side(array)) for name, array in arrays.items() for part, side in sides}


def s4_dplr(case: Any) -> Iterator[tuple[str, Any]]:
    """Both forms; and the dense matrices, which are those of the HiPPO matrix in another basis."""
    p = case.params
    low_rank = p["P"].reshape(-1, p["P"].shape[-1])
    params = {
        **parts(B=p["B"][None], P=low_rank[None], C=p["C"]), "log_neg_re": np.log(-p["Lambda"].real)[None],
        "Lambda_im": p["Lambda"].imag[None], "log_dt": p["log_dt"], "D": p["D"],
    }  # fmt: skip
    params = {name: jnp.asarray(value) for name, value in params.items()}
    u = jnp.asarray(case.inputs["u"])
    y, _ = s4(params, u, form="kernel")
    if not np.allclose(y, s4(params, u, form="scan")[0], rtol=1e-9, atol=1e-11):
        raise ValueError("the kernel form is not the scan form")
    transition, _ = s4_dense(s4_system(params, jnp.float64))
    one = np.eye(len(p["A_dense"]))
    for dt, ours in zip(np.exp(p["log_dt"]), transition):
        theirs = np.linalg.solve(one - dt / 2 * p["A_dense"], one + dt / 2 * p["A_dense"])
        if not np.allclose(np.poly(np.asarray(ours)), np.poly(theirs), rtol=1e-7, atol=1e-9):
            raise ValueError("Abar is not similar to that of A_dense")
    yield "outputs/kernel", s4_kernel(s4_system(params, jnp.float64), case.outputs["kernel"].shape[1]).T
    yield "outputs/y", y


def s4d_dss(case: Any) -> Iterator[tuple[str, Any]]:
    p = {name: jnp.asarray(value) for name, value in case.params.items()}
    length = case.config["L"]
    for key in case.outputs:
        _, method, which = key.split("_")
        if method == "dss":
            eigenvalues = jnp.broadcast_to(p["dss_Lambda"], p["dss_w"].shape)
            params = {
                **parts(w=p["dss_w"]), "Lambda_re": eigenvalues.real, "log_neg_re": jnp.log(-eigenvalues.real),
                "Lambda_im": eigenvalues.imag, "log_dt": jnp.log(p["dt"]),
            }  # fmt: skip
            yield f"outputs/{key}", dss_kernel(params, length, which, length).T
            continue
        eigenvalues = jnp.broadcast_to(p[f"A_{which}"], p["C"].shape)
        params = {
            **parts(B=p["B"], C=p["C"]), "log_neg_re": jnp.log(-eigenvalues.real), "Lambda_im": eigenvalues.imag,
            "log_dt": jnp.log(p["dt"]),
        }  # fmt: skip
        yield f"outputs/{key}", s4d_kernel(params, length, method).T


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


def ssd_core(case: Any) -> Iterator[tuple[str, Any]]:
    arrays = {name: jnp.asarray(value) for name, value in {**case.params, **case.inputs}.items()}

    def run(p):
        delta = jax.nn.softplus(p["dt_raw"] + p["dt_bias"])
        initial = jnp.swapaxes(p["h0"], -1, -2)
        y, last = linear_attention(
            p["C"],
            p["B"],
            delta[..., None] * p["x"],
            -jnp.exp(p["A_log"]) * delta,
            initial,
            method="chunked",
            chunk_size=4,
        )
        y = y + p["D"][:, None] * p["x"]
        return jnp.sum(p["loss_weight"] * y), (y, jnp.swapaxes(last, -1, -2))

    (loss, (y, last)), grads = jax.value_and_grad(run, has_aux=True)(arrays)
    yield from {"outputs/y": y, "outputs/h_final": last, "outputs/loss": loss}.items()
    yield from ((f"grads/{name}", grads[name]) for name in case.grads)


def selective_scan_core(case: Any) -> Iterator[tuple[str, Any]]:
    arrays = {name: jnp.asarray(value) for name, value in {**case.params, **case.inputs}.items()}

    def run(p):
        delta = jax.nn.softplus(p["dt_raw"] + p["dt_bias"])
        y, last = selective_scan(
            p["x"], delta, -jnp.exp(p["A_log"]), p["B"], p["C"], p["D"], p["h0"], method="chunked", chunk_size=4
        )
        gated = y * jax.nn.silu(p["z"])
        return jnp.sum(p["loss_weight"] * gated), (gated, y, last)

    (loss, (gated, y, last)), grads = jax.value_and_grad(run, has_aux=True)(arrays)
    yield from {"outputs/y": gated, "outputs/y_before_gate": y, "outputs/h_final": last, "outputs/loss": loss}.items()
    yield from ((f"grads/{name}", grads[name]) for name in case.grads)


def language_model(case: Any) -> Iterator[tuple[str, Any]]:
    """Language models from the weights of the public layout, whole and token by token, and the layout's round trip.

    The last hidden_i is that after the final norm. Before it come, for Jamba, the embeddings and what every layer but the
    last puts out; for Mamba and Mamba-2 what every layer puts out, without the embeddings.
    """
    kind = case.name.removeprefix("hf_").split("_")[0].split("-")[0]
    arrays = {name: np.asarray(value, np.float32) for name, value in case.params.items()}
    model, params = import_weights({"model_type": kind, **case.config}, arrays)
    weights = LAYOUTS[kind].weights(model, frozenset(arrays))

    def foreign(tree: Any) -> dict[str, Any]:
        flat = traverse_util.flatten_dict(tree["params"])
        return {w.key: w.transform.theirs([flat[p.path][p.index] for p in w.places]) for w in weights}

    for name, array in foreign(params).items():
        np.testing.assert_array_equal(array, arrays[name], err_msg=name)
    model, ids = model.clone(dtype="float64"), jnp.asarray(case.inputs["input_ids"])
    params = jax.tree.map(lambda p: p.astype(jnp.float64), params)

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def gradients(params):
        (logits, _), seen = model.apply(
            params, ids, capture_intermediates=lambda _, method: method == "__call__",
            mutable=["intermediates"],
        )  # fmt: skip
        return cross_entropy(logits[:, :-1], ids[:, 1:]), (logits, seen["intermediates"]["stack"])

    (value, (logits, seen)), grads = gradients(params)
    state, steps, one_token = model.initial_state(len(ids)), [], jax.jit(model.apply)
    for t in range(ids.shape[1]):
        step, state = one_token(params, ids[:, t : t + 1], state)
        steps.append(step)
    if not np.allclose(jnp.concatenate(steps, axis=1), logits, rtol=1e-9, atol=1e-11):
        raise ValueError("token by token is not the whole")
    hidden = [seen["layers"][run]["__call__"][0][0][index] for run, index in model.stack().places()]
    if kind == "jamba":
        hidden = [params["params"]["embedding"][ids], *hidden[:-1]]
    hidden.append(seen["final_norm"]["__call__"][0])
    yield from {"outputs/logits": logits, "outputs/loss": value}.items()
    yield from ((f"outputs/hidden_{i}", h) for i, h in enumerate(hidden))
    theirs = foreign(grads)
    yield from ((f"grads/{name}", theirs[name]) for name in case.grads)
