"""Jordan network: a recurrent network whose only memory is its own past outputs.

Jordan (1986), Serial Order: A Parallel Distributed Processing Approach; in the form of Lipton, Berkowitz, Elkan (2015), A
Critical Review of Recurrent Neural Networks for Sequence Learning.

With x_t [D] the input, s_t [O] the state units, o_t [O] the output:

    s_t = alpha s_{t-1} + o_{t-1}                  s_1 = 0, self-decay alpha in [0, 1); alpha = 0 is plain feedback
    h_t = sigmoid(W_x x_t + W_s s_t + b)           W_x [D, H], W_s [O, H], b [H]
    l_t = V h_t + c                                V [H, O], c [O], the logits
    o_t = softmax(l_t) or l_t                      free running
    o_t = the target, one-hot                      teacher forcing, while training

As a mixer it runs free, and y_t = l_t, or W_o l_t with W_o [O, D] when ``feedback_dim`` is given.

Time O(B T (D H + O H)): T dependent steps of two products when it runs free; with a teacher the state units are a linear
recurrence of the targets, and everything is parallel over time. State: O numbers per row.
"""

import functools
from collections.abc import Mapping
from typing import ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float

from zoo.checks import check_choice, check_positive, check_sequence, check_state
from zoo.dtypes import accumulator
from zoo.layers.initializers import symmetric_uniform
from zoo.registry import register
from zoo.scans import linear_scan, matmul, recurrent_scan

FEEDBACKS = ("softmax", "identity")


@struct.dataclass
class JordanState:
    """Carried state: ``feedback`` [B, O], the state units s that the next token meets."""

    feedback: Float[Array, "B O"]


class JordanOutput(NamedTuple):
    """What a Jordan network computes: ``logits`` [B, T, O] and ``hidden`` [B, T, H]."""

    logits: Float[Array, "B T O"]
    hidden: Float[Array, "B T H"]


def jordan(
    params: Mapping[str, Array],
    x: Float[Array, "B T D"],
    state: JordanState,
    *,
    decay: float = 0.5,
    feedback: str = "softmax",
    teacher: Float[Array, "B T O"] | None = None,
    reset: Bool[Array, "B T"] | None = None,
) -> tuple[JordanOutput, JordanState]:
    """The network of the module docstring.

    Args:
      params: ``input_kernel`` [D, H], ``feedback_kernel`` [O, H], ``bias`` [H], ``readout_kernel`` [H, O], ``readout_bias``
        [O].
      x: inputs; products run in their dtype.
      state: state before the first token.
      decay: self-decay alpha of the state units, in [0, 1).
      feedback: what is fed back when running free: "softmax" (probabilities) or "identity" (logits).
      teacher: what is fed back instead of the network's own outputs, e.g. one-hot targets; None runs free.
      reset: True at the first token of a new document.

    Returns:
      (logits and hidden states in at least float32, state after the last token).

    Raises:
      ValueError: ``decay`` outside [0, 1), or an unknown ``feedback``.
    """
    check_choice("feedback", feedback, FEEDBACKS)
    check_decay(decay)
    weights = {k: v.astype(x.dtype) if k.endswith("_kernel") else v for k, v in params.items()}
    units = state.feedback.astype(accumulator(x.dtype))
    if teacher is not None:
        return _taught(weights, x, units, decay, teacher.astype(units.dtype), reset)
    # hidden and logits are not fed back: they ride along so that the scan returns them for all steps
    carry = {"feedback": units, "logits": jnp.zeros_like(units)}
    carry["hidden"] = jnp.zeros((x.shape[0], weights["bias"].shape[0]), units.dtype)
    states, last = recurrent_scan(_step(decay, feedback), x, carry, weights, project=_project, reset=reset)
    return JordanOutput(states["logits"], states["hidden"]), JordanState(last["feedback"])


def check_decay(decay: float) -> None:
    """Raises ValueError unless ``decay`` is in [0, 1)."""
    if not 0 <= decay < 1:
        raise ValueError(f"decay must be in [0, 1), got {decay!r}")


def _project(params, x):
    return matmul(x, params["input_kernel"]) + params["bias"]


def _layer(params, units, drive, keep):
    """(hidden, logits) of one or many steps."""
    hidden = jax.nn.sigmoid(keep(drive + matmul(units, params["feedback_kernel"])))
    return hidden, keep(matmul(hidden, params["readout_kernel"]) + params["readout_bias"])


@functools.cache
def _step(decay, feedback):
    def step(params, carry, drive, keep):
        hidden, logits = _layer(params, carry["feedback"], drive, keep)
        output = jax.nn.softmax(logits) if feedback == "softmax" else logits
        return {"feedback": decay * carry["feedback"] + output, "logits": logits, "hidden": hidden}

    return step


def _taught(params, x, units, decay, teacher, reset):
    """The state units follow from the targets alone: s_{t+1} = decay s_t + teacher_t."""
    kept = jnp.full((1, 1, 1), decay, units.dtype)
    if reset is not None:
        kept = jnp.where(reset[..., None], 0, kept)
    after, last = linear_scan(kept, teacher, units)
    before = jnp.concatenate([units[:, None], after[:, :-1]], axis=1)
    if reset is not None:
        before = jnp.where(reset[..., None], 0, before)
    hidden, logits = _layer(params, before, _project(params, x), lambda value: value)
    return JordanOutput(logits, hidden), JordanState(last)


@register(
    "jordan",
    variants={"default": {}, "identity": {"feedback": "identity", "feedback_dim": 5, "hidden_dim": 6, "decay": 0.0}},
)
class Jordan(nn.Module):
    """Jordan network: its outputs, with self-decay, are its memory.

    Attributes:
      dim: width D of input and output.
      hidden_dim: width H of the hidden layer; None takes ``dim``.
      feedback_dim: width O of the output that is fed back; None takes ``dim`` and no output projection.
      feedback: "softmax" (probabilities are fed back) or "identity" (logits).
      decay: self-decay alpha of the state units, in [0, 1).
      dtype: compute dtype of the products; the state is at least float32.
    """

    dim: int
    hidden_dim: int | None = None
    feedback_dim: int | None = None
    feedback: str = "softmax"
    decay: float = 0.5
    dtype: str = "float32"

    causal: ClassVar[bool] = True
    paper: ClassVar[str] = "Jordan 1986, Serial Order: A Parallel Distributed Processing Approach"

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], state: JordanState | None = None, *, reset: Bool[Array, "B T"] | None = None
    ) -> tuple[Float[Array, "B T D"], JordanState]:
        check_sequence(x, self.dim, reset)
        initial = self.initial_state(x.shape[0])
        if state is not None:
            check_state(state, initial)
        width = self.dim if self.hidden_dim is None else self.hidden_dim
        check_positive("hidden_dim", width)
        units = initial.feedback.shape[-1]
        uniform = symmetric_uniform(width**-0.5)
        params = {
            "input_kernel": self.param("input_kernel", uniform, (self.dim, width)),
            "feedback_kernel": self.param("feedback_kernel", uniform, (units, width)),
            "bias": self.param("bias", nn.initializers.zeros, (width,)),
            "readout_kernel": self.param("readout_kernel", uniform, (width, units)),
            "readout_bias": self.param("readout_bias", nn.initializers.zeros, (units,)),
        }
        x = x.astype(self.dtype)
        initial = initial if state is None else state
        out, state = jordan(params, x, initial, decay=self.decay, feedback=self.feedback, reset=reset)
        y = out.logits.astype(x.dtype)
        if self.feedback_dim is not None:
            y = nn.Dense(self.dim, use_bias=False, dtype=self.dtype, name="output")(y)
        return y, state

    def initial_state(self, batch_size: int, dtype: str | None = None) -> JordanState:
        """Zeros, at least float32 whatever ``dtype``."""
        units = self.dim if self.feedback_dim is None else self.feedback_dim
        check_positive("feedback_dim", units)
        return JordanState(jnp.zeros((batch_size, units), accumulator(self.dtype)))
