"""Baum-Welch in context: a hidden Markov model of automaton edges, fitted to the strings of a row so far.

The baseline of Akyurek, Wang, Kim and Andreas (2024), In-Context Language Learning, arXiv 2401.12973. The hidden state is an
edge (q, q') between two of S automaton states, number q S + q' of S^2; it emits the symbol. From (q, q') only (q', q'') can
follow, and the first edge leaves the start state 0 for another: numbers 1 .. S - 1. Expectation maximisation from random
parameters:

    gamma_t(i) = P(state_t = i | string),  xi_t(i, j) = P(state_t = i, state_{t+1} = j | string)
    A_ij <- sum xi_t(i, j) / (sum gamma_t(i) + eps),  B_ia <- sum gamma_t(i) where a was seen,  pi_i <- mean gamma_0(i)

then forbidden entries are set to eps, eps is added everywhere, and rows are scaled to sum 1. (The sum under A_ij goes over
all steps but the last of the longest string, as in published code; with the scaling that only moves the weight of eps.)
Symbol 0, padding, is never emitted.

The next symbol is predicted by the forward probabilities of the string in progress, with a fit for every position: this
costs O(iterations T S^4) per position, so a few positions or small S.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int, Key

from zoo.checks import check_positive, check_tokens
from zoo.scans import forward_backward


@struct.dataclass
class EdgeHMM:
    """Parameters in logarithms: ``log_initial`` [S^2], ``log_transition`` [S^2, S^2], ``log_emission`` [S^2, V]."""

    log_initial: Float[Array, " H"]
    log_transition: Float[Array, "H H"]
    log_emission: Float[Array, "H V"]


def forbidden_transitions(states: int) -> Bool[np.ndarray, "H H"]:
    """True where edge (q, q') cannot be followed by (r, r'): r is not q', or q is q' (no automaton has such an edge)."""
    q, to = np.divmod(np.arange(states**2), states)
    return (to[:, None] != q) | (q == to)[:, None]


def random_edge_hmm(key: Key[Array, ""], states: int, vocab_size: int, *, eps: float = 1e-5) -> EdgeHMM:
    """Random parameters to begin with."""
    check_positive("states", states)
    check_positive("vocab_size", vocab_size)
    key_a, key_b = jax.random.split(key)
    hidden = states**2
    a = jnp.where(forbidden_transitions(states), eps, jax.random.uniform(key_a, (hidden, hidden)) + eps)
    b = jax.random.uniform(key_b, (hidden, vocab_size)) + eps
    return edge_hmm(a, b, jnp.ones(hidden) - eps, states=states, eps=eps)


def edge_hmm(
    transition: Float[Array, "H H"],
    emission: Float[Array, "H V"],
    initial: Float[Array, " H"],
    *,
    states: int,
    eps: float = 1e-5,
) -> EdgeHMM:
    """Scales rows to sum 1, with eps for every initial state that no start leads to."""
    number = jnp.arange(len(initial))
    initial = jnp.where((number > 0) & (number < states), initial, eps)
    rows = [
        transition / jnp.sum(transition, axis=1, keepdims=True),
        emission / jnp.sum(emission, axis=1, keepdims=True),
    ]
    return EdgeHMM(jnp.log(initial / jnp.sum(initial)), jnp.log(rows[0]), jnp.log(rows[1]))


def baum_welch(
    hmm: EdgeHMM,
    observations: Int[Array, "N L"],
    lengths: Int[Array, " N"],
    *,
    states: int,
    iterations: int = 10,
    eps: float = 1e-5,
    forbidden: Bool[Array, "H H"] | None = None,
    published_emissions: bool = False,
    method: str = "auto",
) -> EdgeHMM:
    """Parameters after ``iterations`` of expectation maximisation on strings.

    Args:
      hmm: to begin with.
      observations: symbols in [0, V), padded behind ``lengths`` with anything.
      lengths: of the strings; rows of length 0 are left out.
      states: S.
      iterations: how many.
      eps: floor.
      forbidden: transitions that there are not; None: ``forbidden_transitions(states)``.
      published_emissions: as published code has it, which adds with repeated indices: of the strings that have the same
        symbol at the same step, only the last one counts for B. No step of expectation maximisation; for comparison.
      method: of ``zoo.scans.forward_backward``.
    """
    check_positive("states", states)
    if hmm.log_initial.shape[0] != states**2:
        raise ValueError(f"hmm has {hmm.log_initial.shape[0]} hidden states, but states={states} has {states**2} edges")
    forbidden = forbidden_transitions(states) if forbidden is None else forbidden
    there = lengths > 0
    count = jnp.maximum(jnp.sum(there), 1)
    steps = jnp.arange(observations.shape[1])
    symbols = jnp.clip(observations, 0, hmm.log_emission.shape[1] - 1)
    valid = there[:, None] & (steps < lengths[:, None])
    # up to the last step but one of the longest string
    leaves = valid & (steps < jnp.max(lengths) - 1)
    counted = valid
    if published_emissions:
        later = jnp.arange(len(lengths)) > jnp.arange(len(lengths))[:, None]
        counted &= ~jnp.any((symbols[:, None] == symbols) & later[..., None], axis=1)

    def iterate(_, hmm):
        likelihood = jnp.moveaxis(hmm.log_emission[:, symbols], 0, -1)
        forward, backward, total = forward_backward(
            hmm.log_initial, hmm.log_transition, likelihood, jnp.maximum(lengths, 1), method=method
        )
        gamma = jnp.where(valid[..., None], jnp.exp(forward + backward - total[:, None, None]), 0)
        initial = jnp.sum(gamma[:, 0], axis=0) / count
        one_hot = jax.nn.one_hot(symbols, hmm.log_emission.shape[1], dtype=gamma.dtype) * counted[..., None]
        emission = jnp.einsum("nls,nlv->sv", gamma, one_hot) + eps
        emission = emission.at[:, 0].set(eps)
        # xi_t(i, j) = a_t(i) A_ij [l_{t+1}(j) b_{t+1}(j)] / total, a product of two vectors but for A
        ahead = jnp.where(valid[:, 1:, None], likelihood[:, 1:] + backward[:, 1:], -jnp.inf)
        scale = jax.lax.stop_gradient(jnp.max(forward[:, :-1], axis=-1))
        scale = jnp.where(jnp.isfinite(scale), scale, 0)
        left = jnp.exp(forward[:, :-1] - scale[..., None])
        right = jnp.exp(ahead + (scale - total[:, None])[..., None])
        between = jnp.exp(hmm.log_transition) * jnp.einsum("nli,nlj->ij", left, jnp.where(valid[:, 1:, None], right, 0))
        visits = jnp.sum(jnp.where(leaves[..., None], gamma, 0), axis=(0, 1))
        transition = jnp.where(forbidden, eps, between / (visits[:, None] + eps)) + eps
        return edge_hmm(transition, emission, initial + eps, states=states, eps=eps)

    return jax.lax.fori_loop(0, iterations, iterate, hmm)


def next_symbol(hmm: EdgeHMM, prefix: Int[Array, " L"], length: Int[Array, ""] | None = None) -> Float[Array, " V"]:
    """Distribution of the symbol after the first ``length`` (None: all) of ``prefix``; of the first symbol where it is 0."""
    length = jnp.asarray(len(prefix) if length is None else length)
    likelihood = jnp.moveaxis(hmm.log_emission[:, jnp.clip(prefix, 0, hmm.log_emission.shape[1] - 1)], 0, -1)
    forward, _, _ = forward_backward(
        hmm.log_initial, hmm.log_transition, likelihood[None], jnp.maximum(length, 1)[None]
    )
    now = forward[0, jnp.maximum(length, 1) - 1]
    moved = jax.nn.logsumexp(now[:, None] + hmm.log_transition, axis=0)
    state = jnp.where(length > 0, moved, hmm.log_initial)
    return jax.nn.softmax(jax.nn.logsumexp(state[:, None] + hmm.log_emission, axis=0))


def in_context_baum_welch(
    key: Key[Array, ""],
    tokens: Int[np.ndarray, "B T"],
    positions: Int[np.ndarray, "B P"],
    *,
    states: int,
    vocab_size: int,
    separator: int,
    iterations: int = 10,
    eps: float = 1e-5,
) -> Float[Array, "B P V"]:
    """Probabilities of the token after each of ``positions`` of a row, from a fit to everything up to it.

    Args:
      key: of the random parameters, the same at every position.
      tokens: rows, padded with 0 at their ends.
      positions: where, not on padding.
      states: S.
      vocab_size: V; token 0 is padding.
      separator: token between strings.
      iterations, eps: of ``baum_welch``.
    """
    check_tokens("tokens", tokens)
    check_positive("iterations", iterations)
    strings, lengths, numbers, places = split_strings(np.asarray(tokens), separator)
    at = np.asarray(positions)
    now = tuple(jnp.asarray(np.take_along_axis(a, at, axis=1)) for a in (numbers, places))
    begin = random_edge_hmm(key, states, vocab_size, eps=eps)

    @jax.jit
    def run(begin, strings, lengths, numbers, places):
        def row(given):
            strings, lengths, numbers, places = given
            fit = functools.partial(_predict, begin, strings, lengths, states=states, iterations=iterations, eps=eps)
            return jax.lax.map(lambda where: fit(*where), (numbers, places))

        return jax.lax.map(row, (strings, lengths, numbers, places))

    return run(begin, jnp.asarray(strings), jnp.asarray(lengths), *now)


def _predict(hmm, strings, lengths, number, place, *, states, iterations, eps):
    """Prediction inside string ``number`` after ``place`` symbols of it."""
    order = jnp.arange(len(lengths))
    known = jnp.where(order < number, lengths, jnp.where(order == number, place, 0))
    fitted = baum_welch(hmm, strings, known, states=states, iterations=iterations, eps=eps)
    return next_symbol(fitted, strings[number], place)


def split_strings(
    tokens: Int[np.ndarray, "B T"], separator: int
) -> tuple[Int[np.ndarray, "B N L"], Int[np.ndarray, "B N"], Int[np.ndarray, "B T"], Int[np.ndarray, "B T"]]:
    """Strings of rows padded with 0: (strings, their lengths, string of every position, symbols of it up to there).

    A separator belongs to the string that begins behind it, with no symbols yet. Strings are padded with 0 to the longest.
    """
    time = np.arange(tokens.shape[1])
    ends = tokens == separator
    number = np.cumsum(ends, axis=1)
    start = np.maximum.accumulate(np.where(ends, time, -1), axis=1)
    place = time - start
    inside = ~ends & (tokens != 0)
    row = np.nonzero(inside)[0]
    lengths = np.zeros((len(tokens), int(number.max()) + 1), np.int32)
    np.maximum.at(lengths, (row, number[inside]), place[inside])
    strings = np.zeros((*lengths.shape, max(int(lengths.max()), 1)), np.int32)
    strings[row, number[inside], place[inside] - 1] = tokens[inside]
    return strings, lengths, number.astype(np.int32), place.astype(np.int32)
