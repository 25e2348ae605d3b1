"""State collapse: what happens to recurrent states, and to the loss, past the length a model was trained on.

Chen, Zhang, Hu, Han, Liu, Sun (2024), Stuffed Mamba: State Collapse and State Capacity of RNN-Based Long-Context Modeling,
arXiv 2410.07145. A state that is too large for its training length is never taught to forget. Longer inputs then drive the
mean and the variance of some heads out of the range of training, through a few channels, and the loss with them.

Reading a model        ``stream`` reads tokens in segments, the state carried; ``layer_states`` makes one array of the
                       states of all layers; ``selections`` gives step sizes, keys and rates of Mamba-2's layers
Statistics of states   ``state_statistics``, ``channel_variance``, ``state_histograms``, ``exploding_heads``,
                       ``exploding_channels``
Forgetting             ``memory_retention``, ``insertion``
Loss                   ``loss_by_position``, ``collapse_ratio``, ``state_collapse``
Capacity               ``forgetting_length``, ``recall_length``, ``fit_linear``, ``fit_exponential``

Everything on arrays is a pure function; what takes ``training_length`` and a threshold is an operational definition, and the
thresholds are arguments.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from zoo.checks import check_positive, check_tokens

Either = Array | np.ndarray


class Statistics(NamedTuple):
    """Numbers over the last axes of an array: ``mean``, unbiased ``variance``, ``rms`` (the root of the mean square, which
    the paper's code calls a norm), ``median`` (of an even count the lower of the middle two)."""

    mean: Float[Array, "..."]
    variance: Float[Array, "..."]
    rms: Float[Array, "..."]
    median: Float[Array, "..."]


def state_statistics(states: Float[Either, "..."], axes: int = 2) -> Statistics:
    """Statistics over the last ``axes`` axes: of states [..., H, N, P] per head.

    Raises:
      ValueError: fewer than two entries to take them over.
    """
    check_positive("axes", axes)
    flat = jnp.asarray(states).reshape(*states.shape[: states.ndim - axes], -1)
    count = flat.shape[-1]
    if count < 2:
        raise ValueError(f"an unbiased variance needs at least two entries, got states of shape {list(states.shape)}")
    mean = jnp.mean(flat, axis=-1)
    variance = jnp.sum((flat - mean[..., None]) ** 2, axis=-1) / (count - 1)
    return Statistics(
        mean, variance, jnp.sqrt(jnp.mean(flat**2, axis=-1)), jnp.sort(flat, axis=-1)[..., (count - 1) // 2]
    )


def channel_variance(states: Float[Either, "T ..."]) -> Float[Array, "..."]:
    """Unbiased variance over time (axis 0, at least two times) of every channel of ``states``."""
    if states.shape[0] < 2:
        raise ValueError(f"a variance over time needs at least two times, got {states.shape[0]}")
    return jnp.var(states, axis=0, ddof=1)


def state_histograms(
    early: Float[Either, "..."], late: Float[Either, "..."], bins: int = 64
) -> tuple[Int[np.ndarray, " E"], Int[np.ndarray, " E"], Float[np.ndarray, " E+1"]]:
    """Counts of the entries of states at two times, over the same ``bins`` bins: (early, late, edges)."""
    check_positive("bins", bins)
    early, late = np.asarray(early).ravel(), np.asarray(late).ravel()
    edges = np.histogram_bin_edges(np.concatenate([early, late]), bins)
    return np.histogram(early, edges)[0], np.histogram(late, edges)[0], edges


def exploding_heads(
    variance: Float[Either, "K ..."], positions: Int[Either, " K"], training_length: int, factor: float = 10.0
) -> Bool[Array, "..."]:
    """Heads whose variance past ``training_length`` exceeds ``factor`` times its maximum up to there.

    Args:
      variance: of every head's state (``state_statistics``) at K positions.
      positions: tokens read at each of them.
      training_length: tokens that the model was trained on.
      factor: the threshold.

    Raises:
      ValueError: no position up to ``training_length``, or none past it, or a ``factor`` that is not positive.
    """
    within = np.asarray(positions) <= training_length
    if within.all() or not within.any():
        raise ValueError(f"positions must lie on both sides of training_length={training_length}")
    if not factor > 0:
        raise ValueError(f"factor must be positive, got {factor}")
    variance = jnp.asarray(variance)
    return jnp.max(variance[~within], axis=0) > factor * jnp.max(variance[within], axis=0)


def exploding_channels(
    states: Float[Either, "K ..."], positions: Int[Either, " K"], training_length: int, factor: float = 10.0
) -> Bool[Array, "..."]:
    """Channels (n, p) whose |h_np| past ``training_length`` exceeds ``factor`` times its maximum up to there.

    ``states`` holds the states at K ``positions``; the share of exploding channels is the mean of the result.
    """
    return exploding_heads(jnp.abs(states), positions, training_length, factor)


def memory_retention(
    delta: Float[Either, "*B T H"], A: Float[Either, "*B H"], retention_scale: Any = 1.0
) -> Float[Array, "*B T H"]:
    """What is left of the first token in every head: alpha_{1:t} = exp(A (delta_1 + ... + delta_t)).

    Times ``retention_scale``^t for a model whose decays are scaled. Sums of step sizes, never products of decays.
    """
    total = jnp.asarray(A)[..., None, :] * jnp.cumsum(delta, axis=-2)
    steps = jnp.arange(1, delta.shape[-2] + 1, dtype=total.dtype)[:, None]
    return jnp.exp(total + steps * jnp.log(jnp.asarray(retention_scale, total.dtype)))


def insertion(delta: Float[Either, "*B T H"], keys: Float[Either, "*B T G N"]) -> Float[Array, "*B T H N"]:
    """What a token is written with, delta_t B_t of every head; take ``state_statistics(..., axes=1)`` of it."""
    heads = delta.shape[-1]
    return delta[..., None] * jnp.repeat(keys, heads // keys.shape[-2], axis=-2)


def layer_states(state: Any, select: Callable[[Any], Any] = lambda layer: layer.hidden) -> Float[Array, "L B ..."]:
    """The recurrent states of all layers of a ``Stack`` or a ``LanguageModel``, bottom to top.

    Args:
      state: as the model returns it.
      select: from a mixer's state to what is wanted of it, with a leading batch axis.

    Raises:
      ValueError: layers whose states differ in shape.
    """
    runs = []
    for run in getattr(state, "layers", state):
        chosen = select(run)
        nested = jnp.ndim(run.age) == 3  # [repetitions, run, B] where equal neighbours are scanned together
        runs.append(chosen if nested else chosen[:, None])
    shapes = {run.shape[2:] for run in runs}
    if len(shapes) > 1:
        raise ValueError(f"the layers' states differ in shape: {sorted(shapes)}")
    every = jnp.concatenate(runs, axis=1)
    return every.reshape(-1, *every.shape[2:])


class Selections(NamedTuple):
    """Mamba-2's step sizes ``delta`` [L, B, T, H], ``keys`` B [L, B, T, G, N] and rates ``A`` [L, H] of all L layers."""

    delta: Float[Array, "L B T H"]
    keys: Float[Array, "L B T G N"]
    A: Float[Array, "L H"]


def selections(model: Any, params: Any, tokens: Int[Array, "B T"], state: Any = None) -> Selections:
    """What the layers of a model of ``mamba2`` mixers make of ``tokens``; ValueError when it has none."""
    _, sown = model.apply(params, tokens, state, mutable=["diagnostics"])
    found: dict[str, list] = {"delta": [], "keys": [], "A": []}
    rank = {"delta": 3, "keys": 4, "A": 1}  # of one layer; a run has one or two axes of layers before
    for path, leaf in jax.tree_util.tree_leaves_with_path(sown):
        name = path[-2].key if len(path) > 1 and hasattr(path[-2], "key") else ""
        if name in found:
            found[name].append(leaf if leaf.ndim - rank[name] == 2 else leaf[:, None])
    if not found["delta"]:
        raise ValueError("the model has no mamba2 mixer that shows its step sizes")
    every = {name: jnp.concatenate(runs, axis=1) for name, runs in found.items()}
    return Selections(**{name: runs.reshape(-1, *runs.shape[2:]) for name, runs in every.items()})


class Streamed(NamedTuple):
    """What ``stream`` returns.

    Attributes:
      losses: [B, T - 1], of predicting token t + 1 at t, in nats.
      measured: what ``measure`` returned after every whole segment, stacked on axis 0.
      positions: [K] tokens read at each of them.
      state: after the last token but one.
    """

    losses: Float[Array, "B S"]
    measured: Any
    positions: Int[np.ndarray, " K"]
    state: Any


def stream(
    model: Any,
    params: Any,
    tokens: Int[Array, "B T"],
    *,
    every: int = 128,
    measure: Callable[[Any], Any] = layer_states,
    state: Any = None,
) -> Streamed:
    """Reads ``tokens`` in segments of ``every``, with the state carried, and looks at it after each.

    Memory is that of one segment, so a million tokens are read on any machine.

    Args:
      model: ``apply(params, tokens, state) -> (logits, state)`` and ``initial_state``.
      params: its variables.
      tokens: T >= 2; all but the last are read, all but the first are predicted.
      every: tokens per segment.
      measure: ``measure(state) -> pytree``; default: all layers' states [L, B, H, N, P].
      state: what was read before.
    """
    check_tokens("tokens", tokens)
    check_positive("every", every)
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    batch, steps = inputs.shape
    if steps == 0:
        raise ValueError("a stream needs at least two tokens")
    state = model.initial_state(batch) if state is None else state
    whole = steps // every

    def read(state, segment):
        logits, state = model.apply(params, segment[0], state)
        picked = jnp.take_along_axis(jax.nn.log_softmax(logits), segment[1][..., None], axis=-1)[..., 0]
        return state, -picked

    def step(state, segment):
        state, losses = read(state, segment)
        return state, (losses, measure(state))

    parts, measured = [], None
    if whole:
        cut = [jnp.moveaxis(a[:, : whole * every].reshape(batch, whole, every), 1, 0) for a in (inputs, targets)]
        state, (losses, measured) = jax.lax.scan(step, state, tuple(cut))
        parts.append(jnp.moveaxis(losses, 0, 1).reshape(batch, -1))
    if steps % every:
        state, losses = read(state, (inputs[:, whole * every :], targets[:, whole * every :]))
        parts.append(losses)
    return Streamed(jnp.concatenate(parts, axis=1), measured, every * np.arange(1, whole + 1), state)


def loss_by_position(
    losses: Float[Either, "B T"], width: int = 128
) -> tuple[Int[np.ndarray, " K"], Float[np.ndarray, " K"], Float[np.ndarray, " K"]]:
    """Per-token losses over rows and spans of ``width`` tokens: (last position of each span, mean loss, perplexity)."""
    check_positive("width", width)
    losses = np.asarray(losses, np.float64)
    ends = np.minimum(np.arange(width, losses.shape[1] + width, width), losses.shape[1])
    mean = np.array([np.mean(part) for part in np.split(losses, ends[:-1], axis=1)])
    return ends, mean, np.exp(np.minimum(mean, 700.0))


def collapse_ratio(losses: Float[Either, " T"], training_length: int, *, window: int = 128) -> Float[Array, ""]:
    """Mean loss of the last ``window`` positions over the largest mean loss of as many consecutive ones within training.

    Args:
      losses: per position, averaged over sequences, longer than ``training_length``.
      training_length: tokens that the model was trained on.
      window: positions that are averaged; at most ``training_length`` of them are.

    Raises:
      ValueError: no more positions than ``training_length``, or a window that is not positive.
    """
    check_positive("training_length", training_length)
    check_positive("window", window)
    if losses.ndim != 1 or losses.shape[0] <= training_length:
        raise ValueError(f"losses must be [T] with T > training_length={training_length}, got {list(losses.shape)}")
    window = min(window, training_length)
    within = jnp.convolve(losses[:training_length], jnp.full(window, 1 / window, losses.dtype), "valid")
    return jnp.mean(losses[-window:]) / jnp.max(within)


def state_collapse(
    losses: Float[Either, " T"], training_length: int, *, window: int = 128, factor: float = 2.0
) -> bool:
    """Whether ``collapse_ratio`` exceeds ``factor``: the paper's criterion. Losses that are not finite are a collapse."""
    if not factor > 0:
        raise ValueError(f"factor must be positive, got {factor}")
    return not bool(collapse_ratio(losses, training_length, window=window) <= factor)


def forgetting_length(lengths: Any, collapsed: Any) -> float:
    """T_forget: the smallest training length without a collapse; infinity where every one collapsed.

    Raises:
      ValueError: no length, or not as many verdicts as lengths.
    """
    return min((n for n, bad in _pairs(lengths, collapsed) if not bad), default=float("inf"))


def recall_length(contexts: Any, accuracies: Any, threshold: float = 0.95) -> float:
    """T_recall: the largest context whose passkey accuracy exceeds ``threshold``; 0 where none does."""
    return max((n for n, accuracy in _pairs(contexts, accuracies) if accuracy > threshold), default=0)


def _pairs(first, second):
    if len(first) != len(second) or not len(first):
        raise ValueError(f"need as many values as lengths, at least one: got {len(second)} and {len(first)}")
    return zip(first, second)


class Fit(NamedTuple):
    """A law fitted by least squares: ``coefficients`` by name, ``r_squared``, and the law as a function."""

    coefficients: dict[str, float]
    r_squared: float
    law: Callable[[Any], Any]


def fit_linear(x: Any, y: Any) -> Fit:
    """Fits y = slope x + offset to two lists of numbers.

    The paper: T_forget in thousands of tokens = 5.172 N_S - 4.469, N_S in millions of numbers.

    Raises:
      ValueError: fewer than two different x, or numbers that are not finite.
    """
    x, y = _points(x, y, 2)
    slope, offset = np.polyfit(x, y, 1)

    def law(x):
        return slope * np.asarray(x) + offset

    return Fit({"slope": float(slope), "offset": float(offset)}, _r_squared(y, law(x)), law)


def fit_exponential(x: Any, y: Any) -> Fit:
    """Fits y = scale (base^x - 1) + offset to two lists of numbers.

    The paper: T_recall in thousands of tokens = 4.756 (1.365^N_S - 1) - 0.742.

    For a given base the rest is linear; the base is searched for, from nearly straight to e^20 over the range of x.

    Raises:
      ValueError: fewer than three different x, or numbers that are not finite.
    """
    x, y = _points(x, y, 3)
    span = np.max(x) - np.min(x)

    def solve(rate):
        columns = np.stack([np.expm1(rate * x), np.ones_like(x)], axis=1)
        size = np.max(np.abs(columns), axis=0)
        found = np.linalg.lstsq(columns / size, y, rcond=None)[0] / size
        return found, float(np.sum((columns @ found - y) ** 2))

    low, high = np.log(1e-3), np.log(20.0)
    for _ in range(12):  # a grid on the logarithm of the rate, made finer around the best
        grid = np.linspace(low, high, 41)
        best = grid[np.argmin([solve(np.exp(g) / span)[1] for g in grid])]
        step = (high - low) / 40
        low, high = best - step, best + step
    rate = np.exp(best) / span
    (scale, offset), _ = solve(rate)

    def law(x):
        return scale * np.expm1(rate * np.asarray(x)) + offset

    coefficients = {"scale": float(scale), "base": float(np.exp(rate)), "offset": float(offset)}
    return Fit(coefficients, _r_squared(y, law(x)), law)


def _points(x, y, least):
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if x.shape != y.shape or x.ndim != 1 or len(np.unique(x)) < least:
        raise ValueError(f"a fit needs two lists of equal length with at least {least} different x, got {x} and {y}")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError(f"a fit needs finite numbers, got {x} and {y}")
    return x, y


def _r_squared(y, fitted):
    """Share of the variance that is explained; 1 where there is none and the fit is exact."""
    left, there = np.sum((y - fitted) ** 2), np.sum((y - np.mean(y)) ** 2)
    if there == 0:
        return 1.0 if left <= 1e-20 * np.sum(y**2) else 0.0
    return float(1 - left / there)
