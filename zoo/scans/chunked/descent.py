"""A memory that learns at test time: gradient descent with momentum and decay on its weights, token by token.

    S_t = eta_t S_{t-1} - theta_t grad l(M_a(t); k_t, v_t)        S: momentum, a tree like M
    M_t = (1 - alpha_t) M_{t-1} + S_t                             M: weights of a memory, see ``zoo.scans.chunked.memory``
    y_t = M_t(q_t)                                                read after the write
    l(M; k, v) = || M(k) - v ||^2                                 a sum over channels: its gradient has the factor 2

Behrouz, Zhong and Mirrokni (2025), Titans, arXiv 2501.00663; with alpha = eta = 0 Sun et al. (2024), Learning to (Learn
at Test Time), arXiv 2407.04620. A document is cut in chunks of b tokens. a(t) is the last token of the chunk before: all
gradients of a chunk are taken at its anchor M_a, and b = 1 is plain descent, one step per token. Chunks count from the
first token of the document, so that where a sequence is cut changes nothing; the state holds the anchor and the place in
the chunk.

Shapes, with H memories per row:

    q, k              [B, T, H, K]
    v                 [B, T, H, V]
    theta, alpha, eta [B, T, H]; or by weight {name: [B, T, H, N]}, one number per output channel of that weight
    weights           M_0 by name, matrices [H, I, O] and vectors [H, N]

Forms, all with the same numbers up to rounding:

    sequential   T steps, the meaning
    scan         chunk by chunk: the weights of every token, [C, I, O] numbers, by two linear recurrences
    chunked      chunk by chunk, without the weights of every token. Inside a chunk S and M are linear in what they were
                 and in the gradients h_j^T delta_j, so that for any rows z_i

                     z_i M_i = A_i (z_i M) + B_i (z_i S) - sum_{j<=i} c_ij theta_j (h_j . z_i) delta_j

                 A_i, B_i, c_ij are responses of the two-number recurrence m_i = (1 - alpha_i) m_{i-1} + s_i, s_i = eta_i
                 s_{i-1} + e_i to m_0 = 1, to s_0 = 1 and to e_j = 1. Layer by layer this reads the memory of every token:
                 O(C^2) numbers instead of O(C I O), in matrix products. Vectors are made for every token, [C, N]
                 numbers. Gates per channel are left to "scan"

Documents: at a ``reset`` the memory starts anew from ``fresh`` (default M_0, S = 0), exactly. A call that begins anywhere
(with a ``state``), or has resets, is cut in blocks of at most b tokens, of which each meets at most one border of a chunk
that is not the first token of a document: gradients before and behind it are taken one after the other, which costs twice
the time.

A token with ``mask`` False is not written and moves nothing: M and S stay as they are. (theta = alpha = 0 and eta = 1
would not do that: M would go on by S.) It still counts in its chunk.

Everything is computed in at least float32. Derivatives of any order go through the inner gradients (what the memory
learns is differentiated with respect to how it learns). Reverse mode stores the inputs and the states at the borders of
blocks.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from zoo.checks import check_choice, check_floating, check_positive, check_reset
from zoo.dtypes import accumulator
from zoo.scans.chunked.memory import (
    Loss,
    Memory,
    apply_memory,
    matmul,
    squared_error,
    squared_norms,
    token_gradients,
)
from zoo.scans.linear import linear_scan

METHODS = ("auto", "sequential", "scan", "chunked")
GATES_PER = ("token", "chunk")
Gate = Float[Array, "B T H"] | Mapping[str, Float[Array, "B T H _"]]


class DescentState(NamedTuple):
    """What is carried from token to token.

    Attributes:
      weights: M, by name [B, H, ...].
      momentum: S, likewise; stays 0 without momentum.
      anchor: the weights at which the gradients of the chunk in progress are taken.
      phase: [B] int32, tokens of the chunk in progress; 0: the next token begins one, and ``anchor`` is not read again.
      gates: (theta, alpha, eta) of the chunk in progress where gates hold for a chunk, else None.
    """

    weights: dict[str, Float[Array, "B H ..."]]
    momentum: dict[str, Float[Array, "B H ..."]]
    anchor: dict[str, Float[Array, "B H ..."]]
    phase: Int[Array, " B"]
    gates: Any = None


def start_descent(weights: Mapping[str, Float[Array, "H ..."]], batch: int) -> DescentState:
    """The state before the first token: M = anchor = ``weights`` [H, ...] in every row, S = 0."""
    rows = {name: jnp.broadcast_to(w, (batch, *w.shape)).astype(accumulator(w.dtype)) for name, w in weights.items()}
    return DescentState(rows, jax.tree.map(jnp.zeros_like, rows), rows, jnp.zeros(batch, jnp.int32))


def memory_descent(
    memory: Memory,
    weights: Mapping[str, Float[Array, "H ..."]],
    q: Float[Array, "B T H K"],
    k: Float[Array, "B T H K"],
    v: Float[Array, "B T H V"],
    theta: Gate,
    alpha: Gate | None = None,
    eta: Gate | None = None,
    state: DescentState | None = None,
    *,
    chunk_size: int = 64,
    reset: Bool[Array, "B T"] | None = None,
    fresh: DescentState | None = None,
    lead: int = 0,
    mask: Bool[Array, "B T"] | None = None,
    gates_per: str = "token",
    max_gradient_norm: float | None = None,
    loss: Loss = squared_error,
    aligned: bool = False,
    truncate: bool = False,
    method: str = "auto",
) -> tuple[Float[Array, "B T H V"], DescentState]:
    """Runs the descent of the module docstring along axis 1.

    Args:
      memory: the memory as a function ``memory(use, x)``, see ``zoo.scans.chunked.memory`` and ``zoo.layers.memory_mlp``.
      weights: M_0 by name, [H, ...].
      q: read with; T >= 1.
      k: written under.
      v: what is written.
      theta: step sizes, >= 0.
      alpha: what is forgotten, in [0, 1]; None: nothing.
      eta: what is kept of the momentum, in [0, 1]; None: nothing, S is not computed.
      state: state before the first token; None: the start (M_0, S = 0), which is faster than the same as a state.
      chunk_size: tokens b per chunk; part of the definition.
      reset: True at the first token of a new document.
      fresh: state at the beginning of a document, leading axis 1 or B; None: ``start_descent(weights, 1)``.
      lead: tokens that ``fresh`` has read: its phase is ``lead % chunk_size``.
      mask: False at tokens that are not to be written.
      gates_per: "chunk": theta, alpha and eta of a chunk are those of its first token.
      max_gradient_norm: a token's gradient u, over all weights, becomes u / sqrt(1 + |u|^2 / max^2), shorter than max;
        None: as it is.
      loss: (predictions [B, H, C, V], targets) -> one number, a sum over tokens.
      aligned: ``state`` is known to stand between two chunks in every row (phase 0), which saves time.
      truncate: no derivative goes through M, S and the anchor from one block of chunk_size tokens of the call to the next.
      method: one of ``METHODS``; "auto": sequential for one token, "scan" with gates per channel, else chunked.

    Returns:
      y: [B, T, H, V] in the result type of q, k and v.
      state: the state after the last token.

    Raises:
      TypeError: an argument is not floating-point.
      ValueError: shapes do not fit, T = 0, chunk_size < 1, or an unknown method.
    """
    channels = _check(weights, q, k, v, theta, alpha, eta, state, method, gates_per)
    check_positive("chunk_size", chunk_size)
    check_reset(reset, q.shape[:2])
    if method == "chunked" and channels:
        raise ValueError("method='chunked' has one gate per memory; gates per channel need method='scan'")
    batch, steps = q.shape[:2]
    dtype = jnp.result_type(q, k, v)
    kept = [a.dtype for a in jax.tree.leaves((q, k, v, theta, alpha, eta, dict(weights)))]
    carried = accumulator(*kept)
    weights = {name: w.astype(carried) for name, w in weights.items()}
    fresh = start_descent(weights, 1) if fresh is None else fresh
    general = (state is not None and not aligned) or reset is not None
    started = state is not None
    state = start_descent(weights, batch) if state is None else state
    if method == "auto":
        method = "sequential" if steps == 1 else "scan" if channels else "chunked"

    place = _places(state.phase, steps, chunk_size, reset, lead)
    gates = jax.tree.map(lambda g: g.astype(carried), (theta, alpha, eta))
    last = None
    if gates_per == "chunk":
        gates, last = _gates_of_chunks(gates, place, reset, state.gates if started else None, fresh.gates)

    # A document that begins inside a block must not reach its second chunk there.
    size = chunk_size - lead % chunk_size if reset is not None else chunk_size
    size = min(size, steps)
    theta, alpha, eta = gates
    on = jnp.ones((batch, steps), bool) if mask is None else mask
    begins = place == 0 if general or method == "sequential" else None

    def cut(array):
        """[B, T] -> [blocks, B, size]; [B, T, H, ...] -> [blocks, B, H, size, ...]."""
        array = jnp.pad(array, [(0, 0), (0, -steps % size)] + [(0, 0)] * (array.ndim - 2))
        array = jnp.moveaxis(array.reshape(batch, -1, size, *array.shape[2:]), 1, 0)
        return jnp.moveaxis(array, 2, 3) if array.ndim > 3 else array

    wide = [a.astype(carried) for a in (q, k, v)]
    inputs = jax.tree.map(cut, (*wide, theta, alpha, eta, on, begins, reset))
    carry = (state.weights, state.momentum, state.anchor)
    restart = (fresh.weights, fresh.momentum, fresh.anchor if lead % chunk_size else fresh.weights)
    options = _Options(memory, loss, max_gradient_norm, restart, {name: w.ndim == 3 for name, w in weights.items()})
    block = {"sequential": _steps, "scan": _scan_block, "chunked": _chunked_block}[method]

    def body(carry, now):
        return block(options, lax.stop_gradient(carry) if truncate else carry, now)

    if inputs[0].shape[0] == 1:
        carry, y = body(carry, jax.tree.map(lambda a: a[0], inputs))
        y = y[None]
    else:
        carry, y = lax.scan(jax.checkpoint(body, prevent_cse=False), carry, inputs)
    y = jnp.moveaxis(y, 3, 2)  # [blocks, B, size, H, V]
    y = jnp.moveaxis(y, 0, 1).reshape(batch, -1, *y.shape[3:])[:, :steps]
    return y.astype(dtype), DescentState(*carry, (place[:, -1] + 1) % chunk_size, last)


class _Options(NamedTuple):
    """What every block needs: ``restart`` is (M, S, anchor) of a new document, ``matrices`` tells matrices from vectors."""

    memory: Memory
    loss: Loss
    max_norm: float | None
    restart: tuple
    matrices: dict[str, bool]


def _places(phase, steps, chunk, reset, lead):
    """[B, T]: place of every token in its chunk, from 0."""
    step = jnp.arange(steps, dtype=jnp.int32)
    place = phase[:, None] + step
    if reset is not None:
        first = lax.cummax(jnp.where(reset, step, -1), axis=1)
        place = jnp.where(first >= 0, lead + step - first, place)
    return place % chunk


def _gates_of_chunks(gates, place, reset, before, fresh):
    """Every token's gates become those of its chunk's first token; also returns those of the last token."""
    steps = place.shape[1]
    begins = place == 0
    if reset is not None:
        if fresh is not None:
            inside = reset & ~begins
            gates = jax.tree.map(lambda g, f: jnp.where(_like(inside, g), f[:, None], g), gates, fresh)
        begins = begins | reset
    first = lax.cummax(jnp.where(begins, jnp.arange(steps), -1), axis=1)

    def hold(gate, earlier):
        held = jnp.take_along_axis(gate, _like(jnp.maximum(first, 0), gate), axis=1)
        return held if earlier is None else jnp.where(_like(first >= 0, gate), held, earlier[:, None])

    held = jax.tree.map(lambda g: hold(g, None), gates) if before is None else jax.tree.map(hold, gates, before)
    return held, jax.tree.map(lambda g: g[:, -1], held)


def _like(rows, array):
    """[B, T] with axes of 1 up to the rank of ``array``."""
    return rows.reshape(*rows.shape, *(1,) * (array.ndim - 2))


def _choose(condition: Bool[Array, " B"], yes: Any, no: Any) -> Any:
    """Row by row one of two trees whose leaves have leading axis B (or 1)."""

    def choose(a, b):
        return jnp.where(condition.reshape(-1, *(1,) * (b.ndim - 1)), a, b)

    return jax.tree.map(choose, yes, no)


def _of(gate, name, array):
    """``gate`` (with axes [B, H] or [B, C, H] in front, or a mapping of such with channels) shaped to multiply ``array``."""
    if not isinstance(gate, Mapping):
        return gate.reshape(*gate.shape, *(1,) * (array.ndim - gate.ndim))
    gate = gate[name]
    return gate if gate.ndim == array.ndim else gate[..., None, :]


def _gradients(options, anchor, k, v, theta):
    """(h, delta, theta): factors of the tokens' gradients at ``anchor``, and step sizes that keep them short enough."""
    h, delta = token_gradients(options.memory, anchor, k, v, options.loss)
    if options.max_norm is not None:
        short = lax.rsqrt(1 + squared_norms(h, delta, anchor) / options.max_norm**2)
        theta = jax.tree.map(lambda t: t * short.reshape(*short.shape, *(1,) * (t.ndim - 3)), theta)
    return h, delta, theta


def _steps(options, carry, inputs):
    """A block token by token. inputs [B, H, C, ...] and [B, C] -> y [B, H, C, V]."""
    heads, rows = inputs[:6], inputs[6:]

    def step(carry, now):
        q, k, v, theta, alpha, eta, on, begins, reset = now
        if reset is not None:
            carry = _choose(reset, options.restart, carry)
        m, s, anchor = carry
        anchor = _choose(begins, m, anchor)
        k, v, theta = jax.tree.map(lambda a: a[:, :, None], (k, v, theta))
        h, delta, theta = _gradients(options, anchor, k, v, theta)
        theta = jax.tree.map(lambda a: a[:, :, 0], theta)
        new_m, new_s = {}, {}
        for name in m:
            u = _whole(h[name], delta[name], options.matrices[name])[:, :, 0]
            new_s[name] = -_of(theta, name, u) * u
            if eta is not None:
                new_s[name] = new_s[name] + _of(eta, name, u) * s[name]
            new_m[name] = new_s[name] + (m[name] if alpha is None else (1 - _of(alpha, name, u)) * m[name])
        if eta is None:
            new_s = s
        m, s = _choose(on, (new_m, new_s), (m, s))
        return (m, s, anchor), apply_memory(options.memory, m, q[:, :, None])[:, :, 0]

    timed = (
        *jax.tree.map(lambda a: jnp.moveaxis(a, 2, 0), heads),
        *jax.tree.map(lambda a: jnp.moveaxis(a, 1, 0), rows),
    )
    carry, y = lax.scan(step, carry, timed)
    return carry, jnp.moveaxis(y, 0, 2)


def _whole(h, delta, matrix):
    """Every token's gradient [B, H, C, I, O] or [B, H, C, N] from its factors."""
    return h[..., :, None] * delta[..., None, :] if matrix else h * delta


class _Borders(NamedTuple):
    """Where a block is cut, [B, C] bool: tokens behind the border of a chunk in the document that the block begins with;
    tokens of later documents (None: no resets); the last token before the border; and which rows have a border, [B]."""

    behind: Array
    later: Array | None
    edge: Array
    any: Array


def _borders(begins, reset):
    later = None if reset is None else jnp.cumsum(reset, axis=1) > 0
    border = begins if later is None else begins & ~later
    behind = jnp.cumsum(border, axis=1) > 0
    edge = jnp.pad(border[:, 1:], ((0, 0), (0, 1)))
    return _Borders(behind if later is None else behind & ~later, later, edge, jnp.any(edge, axis=1))


def _cut_gradients(options, borders, anchor, middle, k, v, theta):
    """Gradients of a block: before its border at ``anchor``, behind it at ``middle(...)``, in later documents at theirs.

    ``middle`` is given the first of these, which are right up to the border.
    """
    first = _gradients(options, anchor, k, v, theta)
    anchor_behind = middle(*first)
    found = _tokens(borders.behind, _gradients(options, anchor_behind, k, v, theta), first)
    if borders.later is None:
        return found, anchor_behind
    batch = k.shape[0]
    start = jax.tree.map(lambda a: jnp.broadcast_to(a, (batch, *a.shape[1:])), options.restart[2])
    return _tokens(borders.later, _gradients(options, start, k, v, theta), found), anchor_behind


def _tokens(condition, yes, no):
    """Token by token one of two trees with leaves [B, H, C, ...]."""

    def choose(a, b):
        return jnp.where(condition.reshape(condition.shape[0], 1, -1, *(1,) * (b.ndim - 3)), a, b)

    return jax.tree.map(choose, yes, no)


def _next_anchor(options, borders, begins, anchor, behind):
    """The anchor after a block."""
    rows = jnp.any(borders.behind, axis=1) if borders.later is None else jnp.any(begins & ~borders.later, axis=1)
    anchor = _choose(rows, behind, anchor)
    return anchor if borders.later is None else _choose(borders.later[:, -1], options.restart[2], anchor)


def _scan_block(options, carry, inputs):
    """A block with the weights of every token. Shapes as in ``_steps``."""
    q, k, v, theta, alpha, eta, on, begins, reset = inputs
    m, s, anchor = carry
    alpha, eta = (jax.tree.map(lambda a: jnp.moveaxis(a, 2, 1), g) for g in (alpha, eta))

    def trajectory(h, delta, theta):
        """M and S after every token, [B, C, H, ...]."""
        theta = jax.tree.map(lambda a: jnp.moveaxis(a, 2, 1), theta)
        all_m, all_s = {}, {}
        for name in m:
            u = jnp.moveaxis(_whole(h[name], delta[name], options.matrices[name]), 2, 1)
            live, new = (None if r is None else r.reshape(*r.shape, *(1,) * (u.ndim - 2)) for r in (on, reset))
            moved = jnp.where(live, -_of(theta, name, u) * u, 0)
            if eta is not None:
                moved = _recurrence(
                    jnp.where(live, _of(eta, name, u), 1), moved, s[name], options.restart[1][name], new
                )
                all_s[name] = moved
            stays = jnp.ones_like(live, u.dtype) if alpha is None else jnp.where(live, 1 - _of(alpha, name, u), 1)
            moved = jnp.where(live, moved, 0)
            all_m[name] = _recurrence(stays, moved, m[name], options.restart[0][name], new)
        return all_m, all_s

    if begins is None:
        anchor = m
        found = _gradients(options, m, k, v, theta)
    else:
        borders = _borders(begins, reset)

        def middle(h, delta, theta):
            after, _ = trajectory(h, delta, theta)
            edge = jax.tree.map(lambda a: jnp.einsum("bc,bc...->b...", borders.edge.astype(a.dtype), a), after)
            return _choose(borders.any, edge, m)

        found, behind = _cut_gradients(options, borders, anchor, middle, k, v, theta)
        anchor = _next_anchor(options, borders, begins, anchor, behind)
    all_m, all_s = trajectory(*found)

    def use(name, z):
        weight = jnp.moveaxis(all_m[name], 1, 2)
        return matmul(z[..., None, :], weight)[..., 0, :] if options.matrices[name] else z * weight

    y = options.memory(use, q)
    m = jax.tree.map(lambda a: a[:, -1], all_m)
    return (m, s if eta is None else jax.tree.map(lambda a: a[:, -1], all_s), anchor), y


def _recurrence(decay, inputs, initial, fresh, reset):
    """h_i = decay_i h_{i-1} + inputs_i along axis 1, with ``fresh`` in the place of h_{i-1} at a reset."""
    if reset is not None:
        inputs = inputs + jnp.where(reset, decay * fresh[:, None], 0)
        decay = jnp.where(reset, 0, decay)
    return linear_scan(decay, inputs, initial)[0]


def _chunked_block(options, carry, inputs):
    """A block in matrix products. Shapes as in ``_steps``."""
    q, k, v, theta, alpha, eta, on, begins, reset = inputs
    m, s, anchor = carry
    theta = jnp.where(on[:, None], theta, 0)
    of_m, of_s = _responses(alpha, eta, on, reset, theta)
    sources = {"m": m, "s": s, "new_m": options.restart[0], "new_s": options.restart[1]}

    def after(response, row, h, delta, theta):
        """Weights after the token that ``row`` takes from [B, H, C, ...]."""
        shares = {name: row(share) for name, share in response.items()}
        written = shares.pop("written") * theta

        def weight(name):
            total = sum(
                _of(share, name, sources[source][name]) * sources[source][name] for source, share in shares.items()
            )
            if options.matrices[name]:
                return total - matmul(jnp.swapaxes(h[name], -1, -2), written[..., None] * delta[name])
            return total - jnp.sum(written[..., None] * h[name] * delta[name], axis=-2)

        return {name: weight(name) for name in m}

    if begins is None:
        anchor = m
        h, delta, theta = _gradients(options, m, k, v, theta)
    else:
        borders = _borders(begins, reset)

        def middle(h, delta, theta):
            edge = borders.edge.astype(theta.dtype)
            before = after(of_m, lambda r: jnp.einsum("bc,bhc...->bh...", edge, r), h, delta, theta)
            return _choose(borders.any, before, m)

        (h, delta, theta), behind = _cut_gradients(options, borders, anchor, middle, k, v, theta)
        anchor = _next_anchor(options, borders, begins, anchor, behind)

    shares = dict(of_m)
    written = shares.pop("written") * theta[..., None, :]

    def use(name, z):
        if not options.matrices[name]:
            now = sum(share[..., None] * sources[source][name][:, :, None] for source, share in shares.items())
            return z * (now - matmul(written, h[name] * delta[name]))
        read = sum(share[..., None] * matmul(z, sources[source][name]) for source, share in shares.items())
        return read - matmul(written * matmul(z, jnp.swapaxes(h[name], -1, -2)), delta[name])

    y = options.memory(use, q)

    def last(r):
        return r[:, :, -1]

    new_s = s if eta is None else after(of_s, last, h, delta, theta)
    return (after(of_m, last, h, delta, theta), new_s, anchor), y


def _responses(alpha, eta, on, reset, theta):
    """What M and S after every token owe to where the block began and to what was written: two dictionaries.

    "m", "s" [B, H, C]: to M and S before the block; "new_m", "new_s" [B, H, C]: to those of a document that begins in the
    block; "written" [B, H, C, C]: to every token's step, 0 above the diagonal, sign left out.
    """
    on = on[:, None].astype(theta.dtype)
    stays = jnp.ones_like(theta) if alpha is None else 1 - on * alpha
    begun = None if reset is None else jnp.cumsum(reset, axis=1)[:, None]
    starts = None if reset is None else reset[:, None].astype(theta.dtype)

    def products(kept):
        """[B, H, C, C]: products over the tokens behind j up to i; none across documents."""
        step = jnp.arange(kept.shape[-1])
        later = step[:, None] > step
        found = jnp.tril(jnp.cumprod(jnp.where(later, kept[..., :, None], 1), axis=-2))
        return found if begun is None else jnp.where(begun[..., :, None] == begun[..., None, :], found, 0)

    def from_start(kept):
        """[B, H, C]: products from the beginning of the block, in the document that it begins with."""
        found = jnp.cumprod(kept, axis=-1)
        return found if begun is None else jnp.where(begun == 0, found, 0)

    def times(a, b):
        return matmul(a, b[..., None])[..., 0]

    forget = products(stays)
    of_m, of_s = {"m": from_start(stays)}, {}
    if reset is not None:
        of_m["new_m"] = times(forget, starts * stays)
    if eta is None:
        of_m["written"] = forget
        return of_m, of_s
    kept = 1 - on * (1 - eta)
    of_s = {"s": from_start(kept), "written": products(kept)}
    if reset is not None:
        of_s["new_s"] = times(of_s["written"], starts * kept)
    of_m |= {name: times(forget, on * share) for name, share in of_s.items() if name != "written"}
    of_m["written"] = matmul(forget, on[..., None] * of_s["written"])
    return of_m, of_s


def _check(weights, q, k, v, theta, alpha, eta, state, method, gates_per):
    """Checks the arguments of ``memory_descent``; returns whether gates are per channel."""
    check_choice("method", method, METHODS)
    check_choice("gates_per", gates_per, GATES_PER)
    for name, array in {"q": q, "k": k, "v": v}.items():
        check_floating(name, array)
        if array.ndim != 4:
            raise ValueError(f"{name} must have shape [batch, time, heads, width], got {list(array.shape)}")
    batch, steps, heads, _ = q.shape
    if steps == 0:
        raise ValueError("q has no time steps (T = 0); a scan needs at least one")
    if k.shape != q.shape:
        raise ValueError(f"k must have q's shape {list(q.shape)}, got {list(k.shape)}")
    if v.shape[:3] != q.shape[:3]:
        raise ValueError(f"v must have shape {[batch, steps, heads, 'V']}, got {list(v.shape)}")
    kinds = set()
    for gate, value in {"theta": theta, "alpha": alpha, "eta": eta}.items():
        if value is None:
            continue
        kinds.add(isinstance(value, Mapping))
        if isinstance(value, Mapping):
            wanted = {name: (batch, steps, heads, w.shape[-1]) for name, w in weights.items()}
            got = {name: tuple(g.shape) for name, g in value.items()}
        else:
            wanted, got = (batch, steps, heads), tuple(value.shape)
        if got != wanted:
            raise ValueError(f"{gate} must have shape {wanted}, got {got}")
    if len(kinds) > 1:
        raise ValueError("theta, alpha and eta must all be one per memory or all one per channel")
    if state is not None:
        wanted = {name: (batch, *w.shape) for name, w in weights.items()}
        for part in ("weights", "momentum", "anchor"):
            got = {name: tuple(w.shape) for name, w in getattr(state, part).items()}
            if got != wanted:
                raise ValueError(f"state.{part} must have shapes {wanted}, got {got}")
        if tuple(state.phase.shape) != (batch,):
            raise ValueError(f"state.phase must have shape {[batch]}, got {list(state.phase.shape)}")
    return True in kinds
