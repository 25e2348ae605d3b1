"""Golden data of A Critical Review of Recurrent Neural Networks: cells, bidirectional networks, training methods."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from tests.golden.__main__ import Case
from tests.golden._critical_review_memory import ntm_addressing, tbptt_clip
from zoo.layers import cross_entropy
from zoo.mixers import (
    ElmanState,
    GRUState,
    JordanState,
    LSTMState,
    bidirectional,
    elman,
    gru,
    jordan,
    lstm,
    lstm_states,
)

# The oracle's gates in the order in which the zoo stores them side by side.
LSTM_GATES = {True: "ifgo", False: "igo"}
GRU_GATES = "rzn"


def check(case: Case) -> Iterator[tuple[str, np.ndarray]]:
    """Yields every output and gradient of the case."""
    for prefix, function in CASES.items():
        if case.name.startswith(prefix):
            yield from function(case)
            return
    raise ValueError(f"no check for {case.name!r}; known: {', '.join(CASES)}")


def _part(arrays, prefix):
    """The arrays under ``prefix``, keyed without it."""
    return {k[len(prefix) + 1 :]: jnp.asarray(v) for k, v in arrays.items() if k.startswith(f"{prefix}/")}


def _network(name, function, params) -> Iterator[tuple[str, np.ndarray]]:
    """Yields outputs and gradients of one network; ``function(params)`` returns (loss, outputs)."""
    (loss, outputs), grads = jax.jit(jax.value_and_grad(function, has_aux=True))(params)
    yield f"outputs/{name}/loss", loss
    for key, value in outputs.items():
        yield f"outputs/{name}/{key}", value
    for key, value in grads.items():
        yield f"grads/{name}/{key}", value


# Parameters of the file (W of shape [out, in]) as the zoo's functions take them.


def _elman_params(p, source="x", unit="h"):
    kernels = {"input_kernel": p[f"W_{unit}{source}"].T, "recurrent_kernel": p[f"W_{unit}{unit}"].T}
    return {**kernels, "bias": p[f"b_{unit}"]}


def _jordan_params(p):
    readout = {"readout_kernel": p["W_yh"].T, "readout_bias": p["b_y"]}
    return {"input_kernel": p["W_hx"].T, "feedback_kernel": p["W_hs"].T, "bias": p["b_h"], **readout}


def _gated_params(p, gates):
    kernels = {
        f"{name}_kernel": jnp.concatenate([p[f"W_{g}{source}"].T for g in gates], axis=1)
        for name, source in (("input", "x"), ("recurrent", "h"))
    }
    return {**kernels, "bias": jnp.concatenate([p[f"b_{g}"] for g in gates])}


def _lstm_params(p, forget_gate=True, peephole=False):
    gates = {"peephole_input": "p_i", "peephole_forget": "p_f", "peephole_output": "p_o"}
    extra = {name: p[key] for name, key in gates.items()} if peephole else {}
    return {**_gated_params(p, LSTM_GATES[forget_gate]), **extra}


def _zero_lstm_state(p, batch):
    zeros = jnp.zeros((batch, p["b_i"].shape[0]))
    return LSTMState(zeros, zeros)


def _cells(case):
    x, targets, cotangent = (jnp.asarray(case.inputs[k]) for k in ("x", "targets", "cotangent"))
    batch = x.shape[0]

    def simple(activation):
        def function(p):
            zeros = ElmanState(jnp.zeros((batch, p["b_h"].shape[0])))
            h, _ = elman(_elman_params(p), x, zeros, activation=activation)
            logits = h @ p["W_yh"].T + p["b_y"]
            return cross_entropy(logits, targets), {"h": h, "logits": logits}

        return function

    def with_feedback(taught):
        def function(p):
            units = p["b_y"].shape[0]
            teacher = jax.nn.one_hot(targets, units, dtype=x.dtype) if taught else None
            alpha = case.config["jordan_alpha"]
            zeros = JordanState(jnp.zeros((batch, units)))
            out, _ = jordan(_jordan_params(p), x, zeros, decay=alpha, teacher=teacher)
            return cross_entropy(out.logits, targets), {"h": out.hidden, "logits": out.logits}

        return function

    def long_memory(forget_gate=True, peephole=False, output_activation="tanh"):
        def function(p):
            options = {"forget_gate": forget_gate, "output_activation": output_activation}
            params = _lstm_params(p, forget_gate, peephole)
            states, _ = lstm_states(params, x, _zero_lstm_state(p, batch), **options)
            return jnp.sum(states.hidden * cotangent), {"h": states.hidden, "s": states.cell}

        return function

    def gated(reset_gate):
        def function(p):
            params = _gated_params(p, GRU_GATES)
            if reset_gate == "after":
                params["candidate_bias"] = p["b_nh"]
            zeros = GRUState(jnp.zeros((batch, p["b_n"].shape[0])))
            h, _ = gru(params, x, zeros, reset_gate=reset_gate)
            return jnp.sum(h * cotangent), {"h": h}

        return function

    networks = {
        "elman": ("simple", simple("sigmoid")),
        "rnn_tanh": ("simple", simple("tanh")),
        "jordan": ("jordan", with_feedback(taught=False)),
        "jordan_tf": ("jordan", with_feedback(taught=True)),
        "lstm97": ("lstm", long_memory(forget_gate=False)),
        "lstm": ("lstm", long_memory()),
        "lstm_peephole": ("lstm", long_memory(peephole=True)),
        "lstm_linear_out": ("lstm", long_memory(output_activation="identity")),
        "gru": ("gru", gated("before")),
        "gru_v3": ("gru", gated("after")),
    }
    for name, (parameters, function) in networks.items():
        yield from _network(name, function, _part(case.params, parameters))


def _bidirectional(case):
    x, lengths, targets, cotangent = (jnp.asarray(case.inputs[k]) for k in ("x", "lengths", "targets", "cotangent"))
    batch, steps = x.shape[:2]
    real = jnp.arange(steps) < lengths[:, None]
    # Padding is a document of its own, whose outputs are masked.
    reset = jnp.arange(steps) == lengths[:, None]

    def brnn(p):
        def direction(unit):
            params = _elman_params(p, unit=unit)
            zeros = ElmanState(jnp.zeros((batch, params["bias"].shape[0])))
            return lambda x, reset: elman(params, x, zeros, activation="sigmoid", reset=reset)[0]

        h, z = (jnp.where(real[..., None], y, 0) for y in bidirectional(direction("h"), direction("z"), x, reset))
        logits = jnp.where(real[..., None], h @ p["W_yh"].T + z @ p["W_yz"].T + p["b_y"], 0)
        return cross_entropy(logits, targets, real), {"h": h, "z": z, "logits": logits}

    def blstm(p):
        def direction(name):
            part = _part(p, name)
            params, zeros = _lstm_params(part), _zero_lstm_state(part, batch)
            return lambda x, reset: lstm(params, x, zeros, reset=reset)[0]

        h = jnp.concatenate(bidirectional(direction("fwd"), direction("bwd"), x, reset), axis=-1)
        h = jnp.where(real[..., None], h, 0)
        return jnp.sum(h * cotangent), {"h": h}

    yield from _network("brnn", brnn, _part(case.params, "brnn"))
    yield from _network("blstm", blstm, _part(case.params, "blstm"))


CASES = {"cells": _cells, "bidirectional": _bidirectional, "tbptt_clip": tbptt_clip, "ntm_addressing": ntm_addressing}
