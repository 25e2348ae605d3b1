"""Recurrent networks with head-wise recurrent matrices, R on the chip for all T steps (FlashRNN).

Pöppel, Beck, Hochreiter (2024), FlashRNN: I/O-Aware Optimization of Traditional RNNs on Modern Hardware, arXiv 2412.07752.

With B batch, T time, N heads, D head size, S states, of which the first is h and the only one that R sees:

    Wx      [B, T, Gw, N, D]     projected inputs
    R       [Gr, N, Dout, Din]   recurrent matrix of gate g and head n: R[g, n] h
    b       [Gt, N, D]           biases
    states  [S, B, T, N, D]      and [S, B, 1, N, D] before the first and after the last step

``cells`` holds the cells (elman, gru, lstm, slstm and registered ones). Two forms with the same numbers:

    fused        one kernel for all steps; R is read once, and must fit: D up to 128 in 16 bits (64 in 32 bits) on a GPU,
                 768 in 16 bits on a TPU (four gates; a cell with fewer, more)
    alternating  a matrix product and a pointwise kernel per step; R is read in every step. Any D

Time is T dependent steps either way. Per step and head 2 B Gr D^2 operations; the fused form moves (Gw + S) B D numbers for
them, and Gr D^2 more in the alternating form. Products run in the dtype of R and accumulate in float32; Wx gives the dtype
in which states and gates are stored. With float32 their precision is ``jax.default_matmul_precision``, as everywhere.
"""

import dataclasses
import functools

import jax
from jax import lax
from jax import numpy as jnp

from pallas_kernels.compat import resolve
from pallas_kernels.rnn import alternating, gpu, reference, tpu
from pallas_kernels.rnn.cells import Cell, cell
from pallas_kernels.rnn.tiles import fits, tiles

FORMS = ("fused", "alternating")
SAVES = ("gates", "states")


def rnn(
    Wx: jax.Array,
    R: jax.Array,
    b: jax.Array,
    states: jax.Array | None = None,
    *,
    function: str | Cell = "lstm",
    gradient_recurrent_cut: bool = False,
    gradient_recurrent_clipval: float | None = None,
    forward_clipval: float | None = None,
    save: str | int = "gates",
    form: str = "fused",
    platform: str | None = None,
    interpret: bool | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Runs a recurrent network over axis 1 of ``Wx``.

    Args:
      Wx: [B, T, Gw, N, D], real.
      R: [Gr, N, D, D], (out, in).
      b: [Gt, N, D].
      states: [S, B, 1, N, D], zeros when None.
      function: name of a cell, or a ``cells.Cell``.
      gradient_recurrent_cut: no gradient flows through R h to h.
      gradient_recurrent_clipval: bound of every element of the gradient that flows through R h.
      forward_clipval: bound of every element of h.
      save: what the backward pass keeps: "gates" (gates and states), "states" (gates recomputed from states and Wx in one
        matrix product over all steps), or k (states of every k-th step; the forward kernel runs again, k steps at a time).
      form: "fused" or "alternating"; where no tile fits, fused is alternating.
      platform: "gpu" or "tpu"; None is this machine's ("gpu" on a CPU).
      interpret: interpret the kernel; None: exactly where this machine is not of that platform.

    Returns:
      states: [S, B, T, N, D] in the dtype of ``Wx``.
      last: [S, B, 1, N, D] in at least float32, so that handing it on loses nothing.

    Raises:
      TypeError: an argument is not real floating-point.
      ValueError: shapes or gate counts do not fit, B = 0 or T = 0, an unknown function, form or platform.
    """
    platform, interpret = resolve(platform, interpret)
    the_cell = function if isinstance(function, Cell) else cell(function)
    bounds = {"gradient_recurrent_clipval": gradient_recurrent_clipval, "forward_clipval": forward_clipval}
    _check(the_cell, Wx, R, b, states, save, form, bounds)
    carried = jnp.promote_types(Wx.dtype, jnp.float32)
    shape = (the_cell.states, Wx.shape[0], *Wx.shape[3:])
    initial = jnp.zeros(shape, carried) if states is None else states[:, :, 0].astype(carried)
    plan = _Plan(
        the_cell, form, platform, interpret, save, gradient_recurrent_cut, gradient_recurrent_clipval, forward_clipval
    )
    states, last = _rnn(plan, Wx, R, b.astype(carried), initial)
    return states, last[:, :, None]


@dataclasses.dataclass(frozen=True)
class _Plan:
    """Everything static: which cell, in which form, on what, what is kept, and what is done to values and gradients."""

    cell: Cell
    form: str
    platform: str
    interpret: bool
    save: str | int
    cut: bool
    recurrent_clip: float | None
    clip: float | None

    def forward(self, Wx, R, b, initial, save_gates):
        """(states, last, gates or None) of one stretch of time."""
        batch, steps, _, heads, dim = Wx.shape
        run = self._form("forward", (batch, steps, heads, dim), Wx.dtype, R.dtype)
        return run(Wx, R, b, initial, save_gates=save_gates, clip=self.clip)

    def backward(self, R, gates, states, initial, d_states, d_last):
        """Gradients (Wx, R, b, initial) of one stretch of time."""
        run = self._form("backward", states.shape[1:], states.dtype, R.dtype)
        d_gates, d_initial = run(
            R,
            gates,
            states,
            initial,
            d_states,
            d_last,
            clip=self.clip,
            cut=self.cut,
            recurrent_clip=self.recurrent_clip,
        )
        found = self._tiles(states.shape[1:], states.dtype, R.dtype)
        if found is not None and self.platform == "gpu":
            d_R, d_b = gpu.weight_gradient(self.cell, d_gates, states, initial, tiles=found, interpret=self.interpret)
        else:
            d_R, d_b = reference.weight_gradient(d_gates, states, initial)
        d_R = _take(d_R, self.cell.recurrent_gates, 0)
        return _take(d_gates, self.cell.input_gates, 2), d_R, d_b, d_initial

    def _tiles(self, shape, *dtypes):
        """Tiles of the fused kernels for B, T, N, D = ``shape``; None for another form."""
        if self.form != "fused" or not fits(self.platform, *dtypes):
            return None
        return tiles(self.platform, self.cell, *shape, jnp.promote_types(*dtypes))

    def _form(self, direction, shape, *dtypes):
        """``reference.forward`` or ``backward``, or the kernel that stands for it, for B, T, N, D = ``shape``."""
        plain = functools.partial(getattr(reference, direction), self.cell)
        if not fits(self.platform, *dtypes):
            return plain
        found = self._tiles(shape, *dtypes)
        if found is not None:
            kernel = getattr(gpu if self.platform == "gpu" else tpu, direction)
            return functools.partial(kernel, self.cell, tiles=found, interpret=self.interpret)
        kernel = alternating.pointwise if direction == "forward" else alternating.pointwise_back
        return functools.partial(
            plain, pointwise=kernel(self.cell, self.clip, platform=self.platform, interpret=self.interpret)
        )


def _take(array, which, axis):
    """``array`` at the indices ``which`` of an axis, without a gather: a slice where they follow each other."""
    if which == tuple(range(which[0], which[0] + len(which))):
        return lax.slice_in_dim(array, which[0], which[0] + len(which), axis=axis)
    return jnp.stack([lax.index_in_dim(array, gate, axis, keepdims=False) for gate in which], axis=axis)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _rnn(plan, Wx, R, b, initial):
    states, last, _ = plan.forward(Wx, R, b, initial, False)
    return states, last


def _rnn_forward(plan, Wx, R, b, initial):
    states, last, gates = plan.forward(Wx, R, b, initial, plan.save == "gates")
    if plan.save == "gates":
        kept = None, gates, states
    elif plan.save == "states":
        kept = Wx, None, states
    else:
        kept = Wx, None, states[:, :, plan.save - 1 : -1 : plan.save]
    return (states, last), (*kept, R, b, initial)


def _rnn_backward(plan, kept, cotangents):
    Wx, gates, states, R, b, initial = kept
    d_states, d_last = cotangents
    if isinstance(plan.save, int):
        return _backward_by_chunks(plan, *kept, *cotangents)
    if plan.save == "states":
        gates = reference.gates(plan.cell, Wx, R, b, initial, states)
    d_Wx, d_R, d_b, d_initial = plan.backward(R, gates, states, initial, d_states, d_last)
    return d_Wx, d_R.astype(R.dtype), d_b, d_initial


_rnn.defvjp(_rnn_forward, _rnn_backward)


def _backward_by_chunks(plan, Wx, _, starts, R, b, initial, d_states, d_last):
    """As ``_rnn_backward``, with only the states before every chunk of ``plan.save`` steps known but the first (initial)."""
    size = plan.save
    steps = Wx.shape[1]
    whole = steps // size * size
    starts = jnp.concatenate([initial[:, :, None], starts.astype(initial.dtype)], axis=2)

    def chunk(sums, piece):
        d_last, d_R, d_b = sums
        Wx, start, d_states = piece
        states, _, gates = plan.forward(Wx, R, b, start, True)
        d_Wx, more_R, more_b, d_start = plan.backward(R, gates, states, start, d_states, d_last)
        return (d_start, d_R + more_R, d_b + more_b), d_Wx

    sums = d_last, jnp.zeros(R.shape, initial.dtype), jnp.zeros_like(b)
    parts = []
    if whole < steps:
        sums, rest = chunk(sums, (Wx[:, whole:], starts[:, :, -1], d_states[:, :, whole:]))
        parts.append(rest)
    if whole:

        def chunked(array, axis):
            shape = (*array.shape[:axis], whole // size, size, *array.shape[axis + 1 :])
            return jnp.moveaxis(lax.slice_in_dim(array, 0, whole, axis=axis).reshape(shape), axis, 0)

        pieces = chunked(Wx, 1), jnp.moveaxis(starts[:, :, : whole // size], 2, 0), chunked(d_states, 2)
        sums, d_chunks = lax.scan(chunk, sums, pieces, reverse=True)
        parts.insert(0, jnp.moveaxis(d_chunks, 0, 1).reshape(Wx.shape[0], whole, *Wx.shape[2:]))
    d_initial, d_R, d_b = sums
    return jnp.concatenate(parts, axis=1), d_R.astype(R.dtype), d_b, d_initial


def _check(cell, Wx, R, b, states, save, form, bounds):
    """Checks every argument of ``rnn``."""
    if form not in FORMS:
        raise ValueError(f"form={form!r} is not one of {', '.join(FORMS)}")
    if save not in SAVES and not (isinstance(save, int) and not isinstance(save, bool) and save >= 1):
        raise ValueError(f"save must be one of {', '.join(SAVES)} or a positive number of steps, got {save!r}")
    for name, bound in bounds.items():
        if bound is not None and not bound > 0:
            raise ValueError(f"{name} must be positive or None, got {bound!r}")
    for name, array in {"Wx": Wx, "R": R, "b": b, "states": states}.items():
        if array is not None and not jnp.issubdtype(array.dtype, jnp.floating):
            raise TypeError(f"{name} must be a real floating-point array, got {array.dtype}")
    if Wx.ndim != 5:
        raise ValueError(f"Wx must have shape [batch, time, gates, heads, dim], got {list(Wx.shape)}")
    batch, _, gates, heads, dim = Wx.shape
    if gates != cell.gates_w:
        raise ValueError(f"{cell.name} takes {cell.gates_w} gates in Wx, got {gates}: {list(Wx.shape)}")
    if 0 in Wx.shape:
        raise ValueError(f"Wx has no elements: {list(Wx.shape)}; batch and time must be at least 1")
    wanted = {
        "R": (R, (cell.gates_r, heads, dim, dim)),
        "b": (b, (cell.gates_t, heads, dim)),
        "states": (states, (cell.states, batch, 1, heads, dim)),
    }
    for name, (array, shape) in wanted.items():
        if array is not None and tuple(array.shape) != shape:
            raise ValueError(
                f"{name} must have shape {list(shape)} for {cell.name} and this Wx, got {list(array.shape)}"
            )
