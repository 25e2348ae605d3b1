"""Golden data of the survey on structured state space models: S4, S4D, DSS, S5, LRU, Liquid-S4, Mamba and Mamba-2."""

import functools
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from zoo.layers import cross_entropy, rms_norm
from zoo.mixers.dss import dss_kernel
from zoo.mixers.liquid_s4 import LiquidS4State, liquid_scan, liquid_second_order
from zoo.mixers.lru import LRUState, lru
from zoo.mixers.mamba import MambaState, mamba
from zoo.mixers.mamba2 import Mamba2State, mamba2
from zoo.mixers.s4 import s4, s4_dense, s4_kernel, s4_system
from zoo.mixers.s4d import s4d_kernel
from zoo.mixers.s5 import S5State, s5, s5_bidirectional
from zoo.scans import linear_attention, selective_scan


def check(case: Any) -> Iterator[tuple[str, Any]]:
    """Yields every output of ``case``; ValueError for the systems of this survey that the zoo does not have yet."""
    systems = {
        "s4_dplr": s4_dplr, "s4d_dss": s4d_dss, "s5_core": s5_core, "lru_liquid": lru_liquid, "ssd_core": ssd_core,
        "selective_scan_core": selective_scan_core,
        "hf_mamba2": language_model, "hf_mamba": language_model,
    }  # fmt: skip
    prefix = next((name for name in systems if case.name.startswith(name)), None)
    if prefix is None:
        raise ValueError(f"{case.name} is not built yet (built: {', '.join(systems)})")
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
    """Mamba's and Mamba-2's language models from the weights of the public layout, whole and token by token.

    hidden_i is what layer i puts out, and the last one that after the final norm (the embeddings are not among them).
    """
    config, ids = case.config, jnp.asarray(case.inputs["input_ids"])
    eps, second = config["layer_norm_epsilon"], "head_dim" in config
    depth, inner = config["num_hidden_layers"], config["expand"] * config["hidden_size"]

    def mixer(p):
        names = {
            "dt_bias": "dt_bias" if second else "dt_proj.bias", "A_log": "A_log", "skip": "D", "bias": "conv1d.bias",
            **({"scale": "norm.weight"} if second else {}),
        }  # fmt: skip
        maps = {"input": "in_proj", "output": "out_proj", **({} if second else {"project": "x_proj", "dt": "dt_proj"})}
        return {
            **{ours: p[theirs] for ours, theirs in names.items()},
            **{ours: p[f"{theirs}.weight"].T for ours, theirs in maps.items()},
            "kernel": p["conv1d.weight"][:, 0].T,
        }

    def start():
        taps, size, age = config["conv_kernel"] - 1, config["state_size"], jnp.zeros(len(ids), jnp.int32)
        if not second:
            return MambaState(jnp.zeros((len(ids), inner, size)), jnp.zeros((len(ids), taps, inner)), age)
        channels = inner + 2 * config["n_groups"] * size
        hidden = jnp.zeros((len(ids), config["num_heads"], size, config["head_dim"]))
        return Mamba2State(hidden, jnp.zeros((len(ids), taps, channels)), age)

    def run(params, ids, states):
        h = params["backbone.embeddings.weight"][ids]
        hidden, after = [], []
        for i, state in enumerate(states):
            prefix = f"backbone.layers.{i}."
            p = {
                name.removeprefix(f"{prefix}mixer."): value for name, value in params.items() if name.startswith(prefix)
            }
            x = rms_norm(h, params[f"{prefix}norm.weight"], eps)
            y, state = (
                mamba2(mixer(p), x, state, groups=config["n_groups"], norm_eps=eps)
                if second
                else mamba(mixer(p), x, state)
            )
            h = h + y
            hidden.append(h)
            after.append(state)
        hidden.append(rms_norm(h, params["backbone.norm_f.weight"], eps))
        return hidden[-1] @ params["backbone.embeddings.weight"].T, hidden, after

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def gradients(params):
        logits, hidden, _ = run(params, ids, [start()] * depth)
        return cross_entropy(logits[:, :-1], ids[:, 1:]), (logits, hidden)

    params = {name: jnp.asarray(value, jnp.float64) for name, value in case.params.items()}
    (value, (logits, hidden)), grads = gradients(params)
    states, steps, one_token = [start()] * depth, [], jax.jit(run)
    for t in range(ids.shape[1]):
        step, _, states = one_token(params, ids[:, t : t + 1], states)
        steps.append(step)
    if not np.allclose(jnp.concatenate(steps, axis=1), logits, rtol=1e-9, atol=1e-11):
        raise ValueError("token by token is not the whole")
    yield from {"outputs/logits": logits, "outputs/loss": value}.items()
    yield from ((f"outputs/hidden_{i}", h) for i, h in enumerate(hidden))
    yield from ((f"grads/{name}", grads[name]) for name in case.grads)
