"""Head-wise nonlinear recurrences with a fused kernel: elman, gru, lstm, slstm and cells of a user's own.

Pöppel, Beck, Hochreiter (2024), FlashRNN: I/O-Aware Optimization of Traditional RNNs on Modern Hardware.

The recurrent matrix is block-diagonal: N heads of size D, which do not see each other within a layer; N = 1 is the classical
dense network. The products with the input are made beforehand, all steps at once. With B batch, T time, S states:

    Wx      [B, T, Gw, N, D]     W x, or anything else that drives the gates
    R       [Gr, N, Dout, Din]   gate g of head n gets R[g, n] h
    b       [Gt, N, D]
    states  [S, B, T, N, D]      all steps; [S, B, 1, N, D] before the first and after the last

Cells, with their gates and states in order (``pallas_kernels.rnn.cells`` has the equations):

    elman   Gr = Gw = Gt = 1                               h
    lstm    Gr = Gw = Gt = 4: i, f, z, o                   h, c
    gru     Gr = 3: g, r, z; Gw = 3: r, z, n; Gt = 4: g, r, z, n     h; reset after the product, like cuDNN's
    slstm   Gr = Gw = Gt = 4: i, f, z, o                   h, c, n, m; exponential input gate, stabilised by m

Backends, with the same numbers up to rounding:

    vanilla        ``lax.scan``, differentiated by JAX: also forward mode and higher orders; ``save`` does not concern it
    vanilla_fwbw   ``lax.scan`` forward, and backward the gradient written by hand: dR is one product after the loop
    alternating    a batched product and a pointwise kernel per step (GPU, TPU; elsewhere as vanilla_fwbw); any D
    fused          one kernel for all steps, R stays on the chip
    auto           fused where a tile fits, else alternating; vanilla_fwbw on CPU

The kernels take float32 and 16-bit numbers, one dtype for W, states and gates, and no ``reset``; for anything else a backend
that was asked for gives way to the next one above, unless ``fallback=False``.

Precision. Every array has a storage dtype of its own; products run in that of R; sums and the carried state are at least
float32.

m of the sLSTM scales c and n and leaves h alone. It is held constant in the gradient: exact for every loss of h, through
carried states too, but not for a loss of c, n or m themselves.

Cost: T dependent steps, 2 B Gr N D^2 operations each.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from pallas_kernels import available, operation
from zoo.checks import check_choice, check_positive, check_reset
from zoo.dtypes import accumulator
from zoo.scans import _auto

BACKENDS = ("auto", "vanilla", "vanilla_fwbw", "alternating", "fused")


def flashrnn(
    Wx: Float[Array, "B T Gw N D"],
    R: Float[Array, "Gr N D D"],
    b: Float[Array, "Gt N D"],
    states: Float[Array, "S B 1 N D"] | None = None,
    *,
    function: str = "lstm",
    backend: str = "auto",
    reset: Bool[Array, "B T"] | None = None,
    dtype: DTypeLike | None = None,
    dtype_w: DTypeLike | None = None,
    dtype_r: DTypeLike | None = None,
    dtype_b: DTypeLike | None = None,
    dtype_s: DTypeLike | None = None,
    dtype_g: DTypeLike | None = None,
    autocast: bool = True,
    gradient_recurrent_cut: bool = False,
    gradient_recurrent_clipval: float | None = None,
    forward_clipval: float | None = None,
    save: str | int = "gates",
    fallback: bool = True,
) -> tuple[Float[Array, "S B T N D"], Float[Array, "S B 1 N D"]]:
    """Runs the recurrence of the module docstring over axis 1 of ``Wx``.

    Args:
      Wx: driven gates.
      R: recurrent matrices, (out, in).
      b: biases.
      states: states before the first step; zeros when None.
      function: name of a cell: elman, gru, lstm, slstm, or one entered with ``register_cell``.
      backend: one of ``BACKENDS``.
      reset: True where a step starts from zeros instead of what came before.
      dtype: storage dtype of whatever has none of its own below; None leaves arrays as they are.
      dtype_w, dtype_r, dtype_b: of Wx, R, b.
      dtype_s, dtype_g: of the stored states and gates; None is ``dtype``, or Wx's.
      autocast: cast arguments to these dtypes; False: refuse those that are not.
      gradient_recurrent_cut: no gradient flows through R h to h.
      gradient_recurrent_clipval: bound of every element of the gradient that flows through R h to h.
      forward_clipval: bound of every element of h.
      save: what the backward pass keeps: "gates" (states and gates), "states" (gates are computed again, from states and Wx,
        all steps at once), or k (the states of every k-th step; the steps between run again).
      fallback: False: raise where ``backend`` cannot do what is asked, instead of taking the next one.

    Returns:
      states: [S, B, T, N, D] in ``dtype_s``.
      last: [S, B, 1, N, D], what to carry on from, in at least float32.

    Raises:
      TypeError: an argument is not real floating-point, or with ``autocast=False`` not of its dtype.
      ValueError: shapes or gate counts do not fit, T = 0 or B = 0, unknown names, or no fallback.
    """
    cell = _cell(function)
    check_choice("backend", backend, BACKENDS)
    arguments = {"Wx": Wx, "R": R, "b": b} | ({} if states is None else {"states": states})
    _check(cell, arguments, reset, save)
    for name, bound in (
        ("gradient_recurrent_clipval", gradient_recurrent_clipval),
        ("forward_clipval", forward_clipval),
    ):
        if bound is not None and not bound > 0:
            raise ValueError(f"{name} must be positive or None, got {bound!r}")
    for name, wanted in (("Wx", dtype_w), ("R", dtype_r), ("b", dtype_b)):
        arguments[name] = _cast(name, arguments[name], dtype if wanted is None else wanted, autocast)
    Wx, R, b = (arguments[name] for name in ("Wx", "R", "b"))
    dtype_s, dtype_g = (
        Wx.dtype if own is None and dtype is None else jnp.dtype(dtype if own is None else own)
        for own in (dtype_s, dtype_g)
    )
    options = {
        "gradient_recurrent_cut": gradient_recurrent_cut,
        "gradient_recurrent_clipval": gradient_recurrent_clipval,
        "forward_clipval": forward_clipval,
        "save": save,
    }
    uniform = dtype_s == dtype_g == Wx.dtype and reset is None
    form = _form(backend, cell, Wx, R, uniform, fallback)
    if form in ("alternating", "fused"):
        return operation("rnn")(Wx, R, b, states, function=cell, form=form, **options, **_auto.kernel_options())
    wide = accumulator(Wx.dtype, R.dtype, dtype_s)
    plan = _Plan(cell, dtype_s, dtype_g, wide, _auto.platform() == "cpu", **options)
    first = jnp.zeros((cell.states, Wx.shape[0], *Wx.shape[3:])) if states is None else states[:, :, 0]
    first, b = first.astype(plan.wide), b.astype(plan.wide)
    return _scan(form, plan, Wx, R, b, first, reset)


def register_cell(
    name: str,
    pointwise: Callable,
    counts: tuple[int, int, int, int, int],
    *,
    simple_agg: bool = True,
    recurrent_gates: tuple[int, ...] | None = None,
    input_gates: tuple[int, ...] | None = None,
    backward: Callable | None = None,
) -> Any:
    """Enters a cell of your own, so that ``flashrnn(..., function=name)`` runs it in every backend.

    Gate g has the pre-activation ``raw[g] = b[g] + (R[g] h if recurrent) + (Wx[g] if driven)``.

    Args:
      name: what ``function=`` calls it; a cell of this name is replaced.
      pointwise: ``pointwise(raw, states) -> new states`` on tuples of arrays, of jnp functions that act elementwise; state
        0 is h. With ``backward`` it returns ``(new states, saved)``.
      counts: (gates_r, gates_w, gates_i, gates_t, states): gates that R feeds, that Wx feeds, arrays that are saved, all
        gates, states. Without ``backward`` gates_i = gates_t.
      simple_agg: every gate is Wx + R h + b, so that gates_r = gates_w = gates_t.
      recurrent_gates: which gates R feeds; None: the first gates_r.
      input_gates: which gates Wx feeds; None: the last gates_w.
      backward: ``backward(d_states, saved, before, after) -> (d_raw, d_before)`` with the states around the step; None
        derives it by ``jax.vjp``.

    Returns:
      The ``pallas_kernels.rnn.cells.Cell``.
    """
    from pallas_kernels.rnn import cells

    return cells.register(
        name, pointwise, counts=counts, simple_agg=simple_agg, recurrent_gates=recurrent_gates, input_gates=input_gates,
        backward=backward,
    )  # fmt: skip


def cell_counts(function: str) -> tuple[int, int, int, int, int]:
    """(gates_r, gates_w, gates_i, gates_t, states) of the cell called ``function``."""
    cell = _cell(function)
    return cell.gates_r, cell.gates_w, cell.gates_i, cell.gates_t, cell.states


def _cell(function):
    from pallas_kernels.rnn import cells  # Pallas is not imported before it is needed

    check_choice("function", function, cells.names())
    return cells.cell(function)


def _check(cell, arguments, reset, save):
    for name, array in arguments.items():
        kind = getattr(array, "dtype", None)
        if kind is None or not jnp.issubdtype(kind, jnp.floating):
            raise TypeError(f"{name} must be a real floating-point array, got {kind or type(array).__name__}")
    Wx = arguments["Wx"]
    if Wx.ndim != 5:
        raise ValueError(f"Wx must have shape [batch, time, gates, heads, dim], got {list(Wx.shape)}")
    batch, steps, _, heads, dim = Wx.shape
    if batch == 0 or steps == 0:
        raise ValueError(f"Wx has batch B = {batch} and T = {steps} time steps; at least one of each is needed")
    wanted = {
        "Wx": (batch, steps, cell.gates_w, heads, dim),
        "R": (cell.gates_r, heads, dim, dim),
        "b": (cell.gates_t, heads, dim),
        "states": (cell.states, batch, 1, heads, dim),
    }
    for name, array in arguments.items():
        if tuple(array.shape) != wanted[name]:
            raise ValueError(
                f"{name} must have shape {list(wanted[name])} for function {cell.name!r} and Wx {list(Wx.shape)}, "
                f"got {list(array.shape)}"
            )
    check_reset(reset, (batch, steps))
    if save not in ("gates", "states"):
        if isinstance(save, str):
            raise ValueError(f"save={save!r} is not one of gates, states, or a number of steps")
        check_positive("save", save)


def _cast(name, array, dtype, autocast):
    if dtype is None or array.dtype == jnp.dtype(dtype):
        return jnp.asarray(array)
    if not autocast:
        raise TypeError(f"{name} is {array.dtype}, but {jnp.dtype(dtype)} is asked for and autocast=False")
    return array.astype(dtype)


def _form(backend, cell, Wx, R, uniform, fallback):
    """The backend that will run: the one asked for, or the next one that can."""
    if backend in ("vanilla", "vanilla_fwbw"):
        return backend
    here = _auto.platform()
    if backend == "auto" and not available("rnn", here):
        return "vanilla_fwbw"
    fits = tile = False
    if uniform and (backend != "alternating" or available("rnn", here)):
        from pallas_kernels.rnn.tiles import fits as takes
        from pallas_kernels.rnn.tiles import tiles

        platform = here if available("rnn", here) else "gpu"
        batch, steps, _, heads, dim = Wx.shape
        widest = jnp.promote_types(Wx.dtype, R.dtype)
        fits = takes(platform, Wx.dtype, R.dtype)
        tile = fits and tiles(platform, cell, batch, steps, heads, dim, widest) is not None
    if backend == "alternating":
        return "alternating" if fits else "vanilla_fwbw"
    if tile:
        return "fused"
    if backend == "fused" and not fallback:
        why = f"no tile for head size {Wx.shape[-1]}" if fits else "it takes neither these dtypes nor a reset"
        raise ValueError(f"backend='fused' cannot run this ({why}) and fallback=False")
    return "alternating" if fits and available("rnn", here) else "vanilla_fwbw"


@dataclasses.dataclass(frozen=True)
class _Plan:
    """Everything static: the cell, dtypes, and what is done to h and its gradient. Time is the leading axis below."""

    cell: Any
    dtype_s: Any
    dtype_g: Any
    wide: Any
    on_cpu: bool
    gradient_recurrent_cut: bool
    gradient_recurrent_clipval: float | None
    forward_clipval: float | None
    save: str | int

    def einsum(self, form, a, b):
        """A product of arrays in storage dtypes, accumulated and returned in ``wide``."""
        if (
            self.on_cpu
        ):  # XLA's CPU runtime lacks 16-bit products with 32-bit sums; widening first gives the same numbers
            a, b = a.astype(self.wide), b.astype(self.wide)
        return jnp.einsum(form, a, b, preferred_element_type=self.wide)

    def products(self, weights, hidden):
        """R h of every recurrent gate, [Gr, ..., N, B, D], for ``weights`` of ``_outgoing``."""
        product = self.einsum("...nbj,njk->...nbk", hidden.astype(weights.dtype), weights)
        return jnp.moveaxis(product.reshape(*hidden.shape[:-1], -1, hidden.shape[-1]), -2, 0)

    def pointwise(self, b, wx, states, recurrent):
        """The step after the products, on tuples or on [states or gates, ..., N, B, D]: (states, gates to keep)."""
        new, gates = self.cell.pointwise(
            tuple(recurrent), tuple(wx.astype(self.wide)), tuple(b[:, :, None]), tuple(states)
        )
        if self.forward_clipval is not None:
            new = (jnp.clip(new[0], -self.forward_clipval, self.forward_clipval), *new[1:])
        return jnp.stack(new), gates


@functools.partial(jax.jit, static_argnums=(0, 1))
def _scan(form, plan, Wx, R, b, first, reset):
    # Time leads, then gates or states, then heads: a step's product is one batched product of [B, D] and [D, G D].
    wx = jnp.transpose(Wx, (1, 2, 3, 0, 4))
    begin = None if reset is None else reset.T
    run = _vanilla if form == "vanilla" else _by_hand
    every, last = run(plan, wx, R, b, jnp.swapaxes(first, 1, 2), begin)
    return jnp.transpose(every, (1, 3, 0, 2, 4)), jnp.swapaxes(last, 1, 2)[:, :, None]


def _outgoing(R):
    """R [Gr, N, Dout, Din] as what h of a head is multiplied with, [N, Din, Gr Dout]."""
    return jnp.transpose(R, (1, 3, 0, 2)).reshape(R.shape[1], R.shape[3], -1)


def _vanilla(plan, wx, R, b, first, begin):
    """The recurrence for JAX to differentiate."""
    weights = _outgoing(R)

    def step(states, now):
        wx, begin = now
        states = _restart(states, begin)
        hidden = states[0]
        if plan.gradient_recurrent_cut:
            hidden = lax.stop_gradient(hidden)
        elif plan.gradient_recurrent_clipval is not None:
            hidden = _clip_gradient(plan.gradient_recurrent_clipval, hidden)
        states, _ = plan.pointwise(b, wx, states, plan.products(weights, hidden))
        return states, states.astype(plan.dtype_s)

    last, every = lax.scan(step, first, (wx, begin))
    return every, last


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _clip_gradient(bound, values):
    return values


_clip_gradient.defvjp(lambda bound, values: (values, None), lambda bound, _, d: (jnp.clip(d, -bound, bound),))


def _restart(states, begin):
    """``states`` [S, N, B, D], zero where ``begin`` [B]."""
    return states if begin is None else jnp.where(begin[:, None], 0, states)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _by_hand(plan, wx, R, b, first, begin):
    """The recurrence with the gradient below."""
    states, last, _ = _run(plan, wx, R, b, first, begin, False)
    return states, last


def _run(plan, wx, R, b, first, begin, keep_gates):
    weights = _outgoing(R)

    def step(states, now):
        wx, begin = now
        states = _restart(states, begin)
        states, gates = plan.pointwise(b, wx, states, plan.products(weights, states[0]))
        return states, (states.astype(plan.dtype_s), jnp.stack(gates).astype(plan.dtype_g) if keep_gates else None)

    last, (states, gates) = lax.scan(step, first, (wx, begin))
    return states, last, gates


def _by_hand_forward(plan, wx, R, b, first, begin):
    states, last, gates = _run(plan, wx, R, b, first, begin, plan.save == "gates")
    kept = states if isinstance(plan.save, str) else states[plan.save - 1 :: plan.save]
    return (states, last), (wx, R, b, first, begin, kept, gates)


def _by_hand_backward(plan, residuals, cotangents):
    wx, R, b, first, begin, kept, gates = residuals
    d_states, d_carried = cotangents
    if isinstance(plan.save, str):
        d_wx, *sums, d_first = _stretch(plan, wx, R, b, first, begin, kept, gates, d_states, d_carried)
        return (d_wx, *_like(sums, (R, b)), d_first, None)

    # Whole chunks of ``save`` steps, then what is left; each starts from a kept state. Last to first.
    size, (whole, left) = plan.save, divmod(wx.shape[0], plan.save)
    starts = jnp.concatenate([first[None], kept.astype(plan.wide)])

    def again(start, wx, begin, d_states, d_carried):
        states, _, gates = _run(plan, wx, R, b, start, begin, True)
        return _stretch(plan, wx, R, b, start, begin, states, gates, d_states, d_carried)

    sums, d_wx_left = None, []
    if left:
        tail = jax.tree.map(lambda a: a[whole * size :], (wx, begin, d_states))
        d_wx, *sums, d_carried = again(starts[-1], *tail, d_carried)
        d_wx_left = [d_wx]
    if whole:
        chunks = jax.tree.map(lambda a: a[: whole * size].reshape(whole, size, *a.shape[1:]), (wx, begin, d_states))

        def chunk(carry, args):
            d_carried, total = carry
            d_wx, *sums, d_carried = again(*args, d_carried)
            return (d_carried, jax.tree.map(jnp.add, total, sums)), d_wx

        zero = [jnp.zeros(a.shape, plan.wide) for a in (R, b)] if sums is None else sums
        (d_carried, sums), d_wx = lax.scan(chunk, (d_carried, zero), (starts[:whole], *chunks), reverse=True)
        d_wx_left = [d_wx.reshape(-1, *wx.shape[1:]), *d_wx_left]
    return (jnp.concatenate(d_wx_left), *_like(sums, (R, b)), d_carried, None)


_by_hand.defvjp(_by_hand_forward, _by_hand_backward)


def _like(values, arrays):
    return [value.astype(array.dtype) for value, array in zip(values, arrays, strict=True)]


def _stretch(plan, wx, R, b, first, begin, states, gates, d_states, d_carried):
    """Gradients of consecutive steps: (d Wx, d R, d b, d of the states before them), sums in ``plan.wide``."""
    cell = plan.cell
    before = jnp.concatenate([first[None].astype(states.dtype), states[:-1]])
    if begin is not None:
        before = jnp.where(begin[:, None, None, :, None], 0, before)
    if gates is None:
        recurrent = plan.products(_outgoing(R), before[:, 0])
        rows = jnp.moveaxis(before, 1, 0).astype(plan.wide)
        kept = plan.pointwise(b, jnp.moveaxis(wx, 1, 0), rows, recurrent)[1]
        gates = jnp.stack(kept, axis=1).astype(plan.dtype_g)

    weights = jnp.swapaxes(R, 0, 1).reshape(R.shape[1], -1, R.shape[3])  # [N, Gr Dout, Din]

    def step(d_carried, now):
        gates, before, after, upstream, begin = now
        d_states = d_carried + upstream.astype(plan.wide)
        gates, before, after = (a.astype(plan.wide) for a in (gates, before, after))
        if plan.forward_clipval is not None:
            d_states = d_states.at[0].multiply(jnp.abs(after[0]) < plan.forward_clipval)
        d_gates, d_before = (jnp.stack(d) for d in cell.backward(d_states, gates, before, after))
        if not plan.gradient_recurrent_cut:
            through = jnp.moveaxis(_recurrent(cell, d_gates, 0), 0, -2).astype(R.dtype)
            through = through.reshape(*through.shape[:2], -1)
            through = plan.einsum("nbk,nkj->nbj", through, weights)
            bound = plan.gradient_recurrent_clipval
            d_before = d_before.at[0].add(through if bound is None else jnp.clip(through, -bound, bound))
        return _restart(d_before, begin), d_gates.astype(plan.dtype_g)

    d_first, d_gates = lax.scan(step, d_carried, (gates, before, states, d_states, begin), reverse=True)
    hidden = before[:, 0].astype(d_gates.dtype)
    d_R = plan.einsum("tgnbi,tnbj->gnij", _recurrent(cell, d_gates, 1), hidden)
    d_b = jnp.sum(d_gates, (0, 3), dtype=plan.wide)
    d_wx = d_gates if cell.simple_agg else d_gates[:, jnp.array(cell.input_gates)]
    return d_wx.astype(wx.dtype), d_R, d_b, d_first


def _recurrent(cell, gates, axis):
    """Of gates along ``axis`` those that R feeds."""
    return gates if cell.simple_agg else jnp.take(gates, jnp.array(cell.recurrent_gates), axis=axis)
