"""RegBench: languages of random automata, learned in context from a few strings of each.

Akyurek, Wang, Kim and Andreas (2024), In-Context Language Learning: Architectures and Algorithms, arXiv 2401.12973.

Automata. A probabilistic finite automaton (PFA) has n states, n drawn from ``states``, and an alphabet of k symbols, k drawn
from ``alphabet``, the symbols from all there are. Every state has m outgoing edges, m drawn from ``edges``, with different
symbols to different states, not to itself, all equally probable. State 0 is the start, all states accept. Then equivalent
states are merged, states out of reach dropped, and the rest numbered in breadth-first order from the start, symbols in
order: two automata that differ by the names of their states only become the same table, and are one in ``distinct``.

The published code draws m from 1, 2, 3 (an exclusive upper end), the paper says 1 to 4: ``edges`` is (1, 3) or (1, 4).

Rows. A row is a number of strings of one automaton, from the start state each, joined by "|"; their number and lengths are
drawn from ``strings`` and ``lengths``. Tokens are "." (padding, 0), the symbols (1, 2, ...), "|" (the last), which is the
order of their characters. The next token is asked for, but not where it is "|" or padding; the first symbol of the first
string is never asked for. Training, validation and test rows are of different automata.

Automata and their rows are made on the host, for many automata at once: thousands of them take a second. Fresh rows are
made on the device.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Integer, Key

from zoo.checks import check_choice, check_positive
from zoo.tasks.base import Batch, Task

SPLITS = ("train", "validation", "test")
PAD = 0
PAD_CHARACTER, SEPARATOR_CHARACTER = ".", "|"
_CHUNK = 4096
_EPS = 1e-7


def _check_range(name, bounds):
    low, high = bounds
    check_positive(f"{name}[0]", low)
    if high < low:
        raise ValueError(f"{name} must be (least, most), got {bounds}")


@dataclasses.dataclass(frozen=True)
class AutomatonSampler:
    """What random automata look like; ranges include both ends.

    Attributes:
      symbols: all symbols there are.
      states, alphabet, edges: see the module docstring.
      self_loops: an edge may lead to its own state.
      minimize: merge equivalent states. Without it states out of reach are dropped all the same.
    """

    symbols: int = 18
    states: tuple[int, int] = (4, 12)
    alphabet: tuple[int, int] = (4, 18)
    edges: tuple[int, int] = (1, 3)
    self_loops: bool = False
    minimize: bool = True

    def __post_init__(self):
        check_positive("symbols", self.symbols)
        for name in ("states", "alphabet", "edges"):
            _check_range(name, getattr(self, name))
        if self.alphabet[1] > self.symbols:
            raise ValueError(f"alphabet goes up to {self.alphabet[1]}, but there are only symbols={self.symbols}")
        if self.alphabet[0] < self.edges[1]:
            raise ValueError(
                f"edges={self.edges} with different symbols need an alphabet of as many, got {self.alphabet}"
            )
        others = self.states[0] - (not self.self_loops)
        if others < self.edges[1]:
            raise ValueError(
                f"edges={self.edges} to different states need as many other states, got states={self.states}"
            )

    def sample(self, rng: np.random.Generator, count: int) -> Int[np.ndarray, "N S A"]:
        """``count`` automata as tables: the next state for every state and symbol, -1 where there is no edge."""
        most_states, most_edges = self.states[1], self.edges[1]
        sizes = rng.integers(self.states[0], self.states[1] + 1, count)
        letters = rng.integers(self.alphabet[0], self.alphabet[1] + 1, count)
        outgoing = rng.integers(self.edges[0], self.edges[1] + 1, (count, most_states))
        rank = np.argsort(np.argsort(rng.random((count, self.symbols))))
        inside = rank < letters[:, None]  # the alphabet
        draws = np.where(inside[:, None], rng.random((count, most_states, self.symbols)), np.inf)
        symbols = np.argsort(draws)[..., :most_edges]
        state = np.arange(most_states)
        allowed = np.broadcast_to((state < sizes[:, None])[:, None], (count, most_states, most_states))
        if not self.self_loops:
            allowed = allowed & (state != state[:, None])
        draws = np.where(allowed, rng.random((count, most_states, most_states)), np.inf)
        targets = np.argsort(draws)[..., :most_edges]
        real = (np.arange(most_edges) < outgoing[..., None]) & (state < sizes[:, None])[..., None]
        table = np.full((count, most_states, self.symbols), -1, np.int8)
        n, s, e = np.nonzero(real)
        table[n, s, symbols[n, s, e]] = targets[n, s, e]
        return canonical(minimized(table) if self.minimize else table)

    def distinct(self, count: int, seed: int = 0) -> Int[np.ndarray, "N S A"]:
        """The first ``count`` different automata of ``seed``; more of them begin with the same."""
        rng = np.random.default_rng(seed)
        found: dict[bytes, np.ndarray] = {}
        for _ in range(64 + 2 * count // _CHUNK):
            for table in self.sample(rng, _CHUNK):
                found.setdefault(table.tobytes(), table)
            if len(found) >= count:
                return np.stack(list(found.values())[:count])
        raise ValueError(f"found only {len(found)} different automata of {self}, but {count} are wanted")


def minimized(table: Int[np.ndarray, "N S A"]) -> Int[np.ndarray, "N S A"]:
    """Merges equivalent states: edges lead to the first of them; what is then out of reach is left for ``canonical``.

    Two states are equivalent when the same symbols leave both, to equivalent states. All edges of a state being equally
    probable, equivalent states have the same distributions over strings.
    """
    return np.concatenate([_minimized(table[i : i + _CHUNK]) for i in range(0, len(table), _CHUNK)])


def _minimized(table):
    edge = table >= 0
    rows = np.arange(len(table))[:, None, None]
    equal = np.all(edge[:, :, None] == edge[:, None], axis=-1)
    while True:
        finer = equal.copy()
        for a in range(table.shape[2]):
            both = edge[:, :, None, a] & edge[:, None, :, a]
            finer &= ~both | equal[rows, table[:, :, None, a], table[:, None, :, a]]
        if np.array_equal(finer, equal):
            break
        equal = finer
    first = np.argmax(equal, axis=-1).astype(table.dtype)
    merged = np.take_along_axis(first, np.maximum(table, 0).reshape(len(table), -1), axis=1).reshape(table.shape)
    return np.where(edge, merged, -1).astype(table.dtype)


def canonical(table: Int[np.ndarray, "N S A"]) -> Int[np.ndarray, "N S A"]:
    """The same automata with states numbered breadth-first from state 0, symbols in order; others are dropped (-1)."""
    count, states, symbols = table.shape
    rows = np.arange(count)
    number = np.full((count, states), -1, table.dtype)
    number[:, 0] = 0
    queue = np.zeros((count, states), int)
    reached = np.ones(count, int)
    for place in range(states):
        now = queue[:, place]
        for a in range(symbols):
            target = table[rows, now, a]
            new = (place < reached) & (target >= 0) & (number[rows, target] < 0)
            which = rows[new]
            number[which, target[new]] = reached[new]
            queue[which, reached[new]] = target[new]
            reached[new] += 1
    moved = np.take_along_axis(table, queue[:, :, None], axis=1)
    named = np.take_along_axis(number, np.maximum(moved, 0).reshape(count, -1), axis=1).reshape(table.shape)
    live = (np.arange(states) < reached[:, None])[:, :, None]
    return np.where((moved >= 0) & live, named, -1).astype(table.dtype)


def sample_strings(
    key: Key[Array, ""],
    table: Int[Array, "S A"],
    *,
    strings: tuple[int, int],
    lengths: tuple[int, int],
    time: int,
) -> tuple[Int[Array, " T"], Int[Array, " T"]]:
    """A row of strings of one automaton, joined by the separator and padded or cut to ``time`` tokens.

    Returns:
      (tokens, states): the state after every token; the start state after a separator, -1 after padding.
    """
    key_count, key_lengths, key_edges = jax.random.split(key, 3)
    separator = table.shape[1] + 1
    count = jax.random.randint(key_count, (), strings[0], strings[1] + 1)
    length = jax.random.randint(key_lengths, (strings[1],), lengths[0], lengths[1] + 1)
    choice = jax.random.uniform(key_edges, (time,))
    edges = table >= 0
    degree = jnp.sum(edges, axis=1)
    rank = jnp.cumsum(edges, axis=1) - 1

    def step(carry, uniform):
        state, string, place = carry
        over = string >= count
        ended = place >= length[jnp.minimum(string, strings[1] - 1)]
        pick = jnp.minimum((uniform * degree[state]).astype(jnp.int32), degree[state] - 1)
        symbol = jnp.argmax(edges[state] & (rank[state] == pick))
        moved = table[state, symbol].astype(jnp.int32)
        over = over | (ended & (string == count - 1))  # no separator behind the last string
        token = jnp.where(over, PAD, jnp.where(ended, separator, symbol + 1))
        carry = (
            jnp.where(ended, 0, moved),
            jnp.where(over, count, string + ended),
            jnp.where(ended, 0, place + 1),
        )
        return carry, (token.astype(jnp.int32), jnp.where(over, -1, carry[0]))

    start = (jnp.int32(0), jnp.int32(0), jnp.int32(0))
    _, (tokens, states) = jax.lax.scan(step, start, choice)
    return tokens, states


def next_symbol_distribution(table: Int[Array, "S A"], states: Int[Array, "*T"]) -> Float[Array, "*T V"]:
    """True probabilities of the next token, V = A + 2: uniform over the symbols that leave the state; 0 where it is -1.

    That a string ends is not modelled.
    """
    edges = jnp.asarray(table) >= 0
    # a state that was dropped has no edges, and is never asked for
    probs = edges / jnp.maximum(jnp.sum(edges, axis=-1, keepdims=True), 1)
    rows = jnp.where((states >= 0)[..., None], probs[jnp.maximum(states, 0)], 0)
    return jnp.pad(rows, (*((0, 0),) * (rows.ndim - 1), (1, 1)))


def states_after(table: Int[Array, "S A"], tokens: Int[Array, " T"]) -> Int[Array, " T"]:
    """The state after every token of a row: start state after a separator, -1 after padding or what has no edge."""
    separator = table.shape[1] + 1

    def step(state, token):
        symbol = jnp.clip(token - 1, 0, table.shape[1] - 1)
        moved = jnp.where(state >= 0, table[jnp.maximum(state, 0), symbol].astype(jnp.int32), -1)
        state = jnp.where(token == separator, 0, jnp.where(token == PAD, -1, moved))
        return state, state

    return jax.lax.scan(step, jnp.int32(0), tokens)[1]


class Rows(NamedTuple):
    """What a split is made from: ``automata`` [N, S, A], and of their own rows ``tokens`` and ``states`` [N, T + 1]."""

    automata: Int[Array, "N S A"]
    tokens: Integer[Array, "N T"]
    states: Int[Array, "N T"]


def sample_rows(
    rng: np.random.Generator,
    tables: Int[np.ndarray, "N S A"],
    *,
    strings: tuple[int, int],
    lengths: tuple[int, int],
    time: int,
) -> tuple[Integer[np.ndarray, "N T"], Int[np.ndarray, "N T"]]:
    """One row for each automaton on the host, step by step for all of them at once; as ``sample_strings``, other draws."""
    rows = np.arange(len(tables))
    separator = tables.shape[2] + 1
    count = rng.integers(strings[0], strings[1] + 1, len(tables))
    length = rng.integers(lengths[0], lengths[1] + 1, (len(tables), strings[1]))
    edges = tables >= 0
    degree = edges.sum(axis=2)
    symbols = np.argsort(~edges, axis=2, kind="stable")[:, :, : degree.max()]  # those with an edge come first
    tokens = np.zeros((len(tables), time), np.uint8 if separator < 256 else np.int32)
    states = np.full((len(tables), time), -1, np.int8)
    state, string, place = (np.zeros(len(tables), int) for _ in range(3))
    for t in range(time):
        ended = place >= length[rows, np.minimum(string, strings[1] - 1)]
        over = (string >= count) | (ended & (string == count - 1))  # no separator behind the last string
        pick = (rng.random(len(tables)) * degree[rows, state]).astype(int)
        symbol = symbols[rows, state, pick]
        state = np.where(ended, 0, tables[rows, state, symbol])
        tokens[:, t] = np.where(over, PAD, np.where(ended, separator, symbol + 1))
        states[:, t] = np.where(over, -1, state)
        string = np.where(over, count, string + ended)
        place = np.where(ended, 0, place + 1)
        state = np.where(over, 0, state)
    return tokens, states


class Truth(NamedTuple):
    """What is known of a row: ``probs`` [T, V] of the next token, ``states`` [T] after each token, ``automaton`` []."""

    probs: Float[Array, "*B T V"]
    states: Int[Array, "*B T"]
    automaton: Int[Array, "*B"]


@dataclasses.dataclass(frozen=True)
class RegBench(Task):
    """Next symbols of a random regular language, from strings of it in the same row.

    Batch: ``inputs``, ``targets`` int32 [time]; ``mask`` where the target is a symbol; ``extra`` a ``Truth``. Every example
    takes a random automaton of its split. As published, an automaton has one row, always the same, unless ``fresh``.

    Attributes:
      automata: what they look like.
      train, held_out: how many automata there are for training, and for validation and for test each.
      split: "train", "validation" or "test".
      strings, lengths: ranges of the number of strings in a row and of their lengths, both ends included.
      time: tokens read; None: as many as the longest row has, less one.
      fresh: draw new strings for every example.
      seed: of the automata and their rows. Those held out do not depend on ``train``.
    """

    automata: AutomatonSampler = AutomatonSampler()
    train: int = 5000
    held_out: int = 500
    split: str = "train"
    strings: tuple[int, int] = (10, 19)
    lengths: tuple[int, int] = (1, 49)
    time: int | None = None
    fresh: bool = False
    seed: int = 0

    def __post_init__(self):
        check_positive("train", self.train)
        check_positive("held_out", self.held_out)
        check_choice("split", self.split, SPLITS)
        for name in ("strings", "lengths"):
            _check_range(name, getattr(self, name))
        if self.time is not None:
            check_positive("time", self.time)

    @property
    def vocab_size(self) -> int:
        return self.automata.symbols + 2

    @property
    def separator(self) -> int:
        """Token between strings, the last one."""
        return self.automata.symbols + 1

    @property
    def steps(self) -> int:
        """Tokens read."""
        return self.strings[1] * (self.lengths[1] + 1) - 2 if self.time is None else self.time

    @property
    def count(self) -> int:
        """Automata of the split."""
        return self.train if self.split == "train" else self.held_out

    def data(self) -> Rows:
        """The automata of the split and their own rows."""
        return _rows(dataclasses.replace(self, fresh=False))

    def example(self, key: Key[Array, ""], data: Rows) -> Batch:
        if not self.fresh:
            return self.row(jax.random.randint(key, (), 0, len(data.automata)), data)
        key_index, key_row = jax.random.split(key)
        return self.row(jax.random.randint(key_index, (), 0, len(data.automata)), data, key_row)

    def row(self, index: Int[Array, ""], data: Rows, key: Key[Array, ""] | None = None) -> Batch:
        """A row of automaton ``index``: its own, or with ``key`` a fresh one."""
        data = jax.tree.map(jnp.asarray, data)
        table = data.automata[index]
        if key is None:
            tokens, states = data.tokens[index].astype(jnp.int32), data.states[index].astype(jnp.int32)
        else:
            tokens, states = sample_strings(key, table, strings=self.strings, lengths=self.lengths, time=self.steps + 1)
        targets = tokens[1:]
        mask = (targets != PAD) & (targets != self.separator)
        truth = Truth(next_symbol_distribution(table, states[:-1]), states[:-1], jnp.asarray(index, jnp.int32))
        return Batch(tokens[:-1], targets, mask, extra=truth)

    def every_row(self, count: int | None = None) -> Batch:
        """The rows of all automata of the split, or of the first ``count``."""
        rows = jnp.arange(self.count if count is None else min(count, self.count))
        return jax.jit(jax.vmap(self.row, (0, None)))(rows, self.data())

    def encode(self, text: str) -> Int[np.ndarray, " T"]:
        """Tokens of ``text`` such as "abc|ab."; ValueError for a character that is none."""
        characters = self.characters()
        unknown = sorted(set(text) - set(characters))
        if unknown:
            raise ValueError(f"text has {unknown[0]!r}, which is none of {characters!r}")
        return np.array([characters.index(c) for c in text], np.int32)

    def decode(self, tokens: Integer[np.ndarray, " T"]) -> str:
        """The text of ``tokens``, without padding at its end."""
        return "".join(self.characters()[int(t)] for t in tokens).rstrip(PAD_CHARACTER)

    def characters(self) -> str:
        """One character per token; ValueError where there are more symbols than letters."""
        if self.automata.symbols > 26:
            raise ValueError(f"text has letters for 26 symbols, but there are {self.automata.symbols}")
        return PAD_CHARACTER + "abcdefghijklmnopqrstuvwxyz"[: self.automata.symbols] + SEPARATOR_CHARACTER


@functools.lru_cache(maxsize=4)
def _automata(sampler, count, seed):
    return sampler.distinct(count, seed)


@functools.lru_cache(maxsize=8)
def _rows(task):
    places = {"test": 0, "validation": task.held_out, "train": 2 * task.held_out}
    start = places[task.split]
    automata = _automata(task.automata, task.train + 2 * task.held_out, task.seed)[start : start + task.count]
    rng = np.random.default_rng((task.seed, SPLITS.index(task.split)))
    tokens, states = sample_rows(rng, automata, strings=task.strings, lengths=task.lengths, time=task.steps + 1)
    return Rows(automata, tokens, states)


def dfa_accuracy(
    probs: Float[Array, "*B V"], truth: Float[Array, "*B V"], mask: Bool[Array, "*B"] | None = None
) -> Float[Array, ""]:
    """Greedy accuracy: share of positions whose most probable token has a positive true probability.

    ``probs`` may be logits.
    """
    best = jnp.argmax(probs, axis=-1)
    return _mean(jnp.take_along_axis(truth, best[..., None], axis=-1)[..., 0] > 0, mask)


def total_variation(
    p: Float[Array, "*B V"], q: Float[Array, "*B V"], mask: Bool[Array, "*B"] | None = None
) -> Float[Array, ""]:
    """Mean total variation distance, half the L1 distance (published code logs the whole, see ``l1_distance``)."""
    return l1_distance(p, q, mask) / 2


def l1_distance(
    p: Float[Array, "*B V"], q: Float[Array, "*B V"], mask: Bool[Array, "*B"] | None = None
) -> Float[Array, ""]:
    """Mean of sum |p - q|: between predictors, or a predictor and the truth."""
    return _mean(jnp.sum(jnp.abs(p - q), axis=-1), mask)


def truth_cross_entropy(
    probs: Float[Array, "*B V"], truth: Float[Array, "*B V"], mask: Bool[Array, "*B"] | None = None, eps: float = _EPS
) -> Float[Array, ""]:
    """Mean of - sum truth log(probs + eps), in nats; ``eps`` is for predictors that say 0."""
    return _mean(-jnp.sum(truth * jnp.log(probs + eps), axis=-1), mask)


def truth_divergence(
    probs: Float[Array, "*B V"], truth: Float[Array, "*B V"], mask: Bool[Array, "*B"] | None = None, eps: float = _EPS
) -> Float[Array, ""]:
    """Mean Kullback-Leibler divergence of the truth from the prediction, in nats; ``eps`` is for predictors that say 0."""
    return _mean(jnp.sum(truth * (jnp.log(truth + eps) - jnp.log(probs + eps)), axis=-1), mask)


def _mean(values, mask):
    values = jnp.asarray(values, jnp.result_type(float, values))
    if mask is None:
        return jnp.mean(values)
    return jnp.sum(jnp.where(mask, values, 0)) / jnp.maximum(jnp.sum(mask), 1)
