"""Probes: what hidden states know of n-grams and automata, and whether attention looks where an induction head would.

As in Akyurek, Wang, Kim and Andreas (2024), In-Context Language Learning, arXiv 2401.12973. A probe is a small model that
reads a hidden state h and a question, fitted on some rows and judged on others:

    count    how often did symbol a follow the last n - 1 tokens, as a share of all that followed? R^2
    seen     has a followed them at all? accuracy, half of the examples each
    state    are two positions of a row in the same state of the automaton? accuracy, half of the examples each

With a = P h and b the embedding of the symbol, or P h' of the other position, probes are

    linear   w . (a * b) + c: linear in h for every question
    mlp      v . tanh(W [a, b, a * b] + d) + c

``induction_weights``: the share of attention that goes to tokens behind earlier occurrences of the current n-gram, where
there are any: 1 for a static n-gram head of that order.
"""

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, Key

from zoo.checks import check_choice, check_positive
from zoo.layers.attention import project_heads
from zoo.mixers.attention import Attention
from zoo.mixers.ngram_head import ngram_weights
from zoo.models.stack import Block, make_mixer

QUESTIONS = ("count", "seen", "state")
PROBES = ("linear", "mlp")


class ProbeExamples(NamedTuple):
    """Examples of a probe.

    Attributes:
      hidden: [N, D] hidden states.
      question: [N] int, a symbol; or [N, D] hidden states of the other position.
      target: [N], a share in [0, 1], or 0 and 1.
      held_out: [N] bool, judged and not fitted: the rows of the last fifth.
      binary: whether targets are 0 and 1.
    """

    hidden: Float[np.ndarray, "N D"]
    question: Any
    target: Float[np.ndarray, " N"]
    held_out: Bool[np.ndarray, " N"]
    binary: bool


class ProbeResult(NamedTuple):
    """``score`` on the held-out examples, R^2 or the accuracy of a binary probe; ``fitted_score`` on the others."""

    score: float
    fitted_score: float
    params: Any


def hidden_states(model: Any, params: Any, tokens: Int[Array, "B T"]) -> list[Float[Array, "B T D"]]:
    """Outputs of every layer of a ``LanguageModel``, bottom to top."""
    return [x for x, _ in _captured(model, params, tokens)]


def attention_mass(model: Any, params: Any, tokens: Int[Array, "B T"]) -> dict[int, Float[Array, "B H T T"]]:
    """Attention weights of the layers that are ``zoo.mixers.Attention``, by their number from the bottom."""
    stack = model.stack()
    found = {}
    inner = params["params"]["stack"]["layers"]
    captured = _captured(model, params, tokens)
    for layer, (spec, (run, index)) in enumerate(zip(stack.layers(), stack.places(), strict=True)):
        mixer = make_mixer(spec, stack.dim, stack.dtype)
        if isinstance(mixer, Attention):
            own = jax.tree.map(lambda a, i=index: a[i], inner[run]["mixer"])
            found[layer] = _weights(mixer, own, captured[layer][1])
    return found


def _weights(mixer, params, x):
    steps = jnp.arange(x.shape[1])
    places = jnp.broadcast_to(steps, x.shape[:2]) if mixer.positions == "rotary" else None
    q, k, _ = project_heads(params, x, places, mixer.base, mixer.rotary_fraction, mixer.rotary_scaling)
    k = jnp.repeat(k, q.shape[2] // k.shape[2], axis=2)
    logits = jnp.einsum("bthk,bshk->bhts", q, k) * q.shape[-1] ** -0.5
    seen = (steps <= steps[:, None]) & (steps > steps[:, None] - mixer.window)
    return jax.nn.softmax(jnp.where(seen, logits, -jnp.inf), axis=-1)


def _captured(model, params, tokens):
    """(output of the block, input of its mixer) of every layer."""

    def wanted(module, method):
        return method == "__call__" and (isinstance(module, Block) or module.name == "mixer_norm")

    @jax.jit
    def run(params, tokens):
        _, aside = model.apply(params, tokens, capture_intermediates=wanted, mutable=["intermediates"])
        return aside["intermediates"]["stack"]["layers"]

    captured = run(params, tokens)
    found = []
    for name, index in model.stack().places():
        here = captured[name]
        output, inside = here["__call__"][0][0], here["mixer_norm"]["__call__"][0]
        found.append((output[index], inside[index]))
    return found


def induction_weights(
    weights: Float[Array, "B H T T"],
    tokens: Int[Array, "B T"],
    *,
    order: int = 1,
    mask: Bool[Array, "B T"] | None = None,
) -> Float[Array, ""]:
    """Mean share of attention on tokens behind earlier occurrences of the last ``order`` tokens, of the best head.

    The mean is over positions that have such an occurrence, and are in ``mask``.
    """
    matches = ngram_weights(tokens, order) > 0
    share = jnp.sum(jnp.where(matches[:, None], weights, 0), axis=-1)  # [B, H, T]
    counted = jnp.any(matches, axis=-1)
    if mask is not None:
        counted &= mask
    total = jnp.maximum(jnp.sum(counted), 1)
    return jnp.max(jnp.sum(jnp.where(counted[:, None], share, 0), axis=(0, 2)) / total)


def probe_examples(
    question: str,
    hidden: Float[np.ndarray, "B T D"],
    tokens: Int[np.ndarray, "B T"],
    states: Int[np.ndarray, "B T"] | None = None,
    *,
    order: int = 2,
    separator: int | None = None,
    pad: int | None = None,
    per_row: int = 16,
    seed: int = 0,
) -> ProbeExamples:
    """Examples for one of ``QUESTIONS``.

    Args:
      question: see the module docstring.
      hidden: of the rows.
      tokens: the rows.
      states: of the automaton after every token, -1 where there is none; "state" needs them.
      order: n of the n-grams.
      separator, pad: tokens that are never asked for, and that no n-gram goes across.
      per_row: examples per row, at most.
      seed: of the draw.

    Raises:
      ValueError: an unknown question, ``order`` below 2, or "state" without states.
    """
    check_choice("question", question, QUESTIONS)
    check_positive("order - 1", order - 1)
    random = np.random.default_rng(seed)
    chosen: list[tuple[int, int, int, float]] = []
    if question == "state":
        if states is None:
            raise ValueError("question='state' needs states")
        for row in range(len(tokens)):
            chosen += _state_pairs(random, row, states[row], per_row)
    else:
        for row in range(len(tokens)):
            chosen += _symbol_questions(random, question, row, tokens[row], order, (separator, pad), per_row)
    if not chosen:
        raise ValueError("the rows have no examples for this question")
    rows, places, asked, target = (np.array(column) for column in zip(*chosen, strict=True))
    held_out = rows >= len(tokens) * 4 // 5
    other = hidden[rows, asked] if question == "state" else asked
    return ProbeExamples(hidden[rows, places], other, target.astype(np.float32), held_out, question != "count")


def _state_pairs(random, row, states, count):
    places = np.flatnonzero(states >= 0)
    if len(places) < 2:
        return []
    found = []
    for n in range(count):
        a = random.choice(places)
        same = (states[places] == states[a]) & (places != a)
        others = places[same] if n % 2 == 0 else places[states[places] != states[a]]
        if len(others):
            b = random.choice(others)
            found.append((row, int(a), int(b), float(states[a] == states[b])))
    return found


def _symbol_questions(random, question, row, tokens, order, stops, count):
    """(row, position, symbol, target): half of the symbols have followed, half not, where there are both."""
    special = np.isin(tokens, [s for s in stops if s is not None])
    kinds = np.unique(tokens[~special])
    found = []
    late = np.flatnonzero(~special)
    late = late[late >= len(tokens) // 4]
    for n, t in enumerate(random.permutation(late)[:count]):
        gram = tokens[t - order + 2 : t + 1]
        if t < order - 2 or special[t - order + 2 : t + 1].any():
            continue
        ends = [p for p in range(order - 2, t) if np.array_equal(tokens[p - order + 2 : p + 1], gram)]
        followers = np.array([tokens[p + 1] for p in ends if not special[p + 1]], int)
        seen = np.unique(followers)
        pool = seen if n % 2 == 0 else np.setdiff1d(kinds, seen)
        if not len(pool):
            continue
        a = int(random.choice(pool))
        share = float(np.mean(followers == a)) if len(followers) else 0.0
        found.append((row, int(t), a, share if question == "count" else float(share > 0)))
    return found


class _Probe(nn.Module):
    kind: str
    width: int
    symbols: int

    @nn.compact
    def __call__(self, hidden, question):
        project = nn.Dense(self.width, name="project")
        a = project(hidden)
        b = project(question) if question.ndim == 2 else nn.Embed(self.symbols, self.width, name="symbols")(question)
        if self.kind == "linear":
            return nn.Dense(1, name="output")(a * b)[..., 0]
        inner = jnp.tanh(nn.Dense(self.width, name="inner")(jnp.concatenate([a, b, a * b], axis=-1)))
        return nn.Dense(1, name="output")(inner)[..., 0]


@functools.partial(jax.jit, static_argnames=("probe", "binary", "steps"))
def _fit(key, hidden, question, target, weight, learning_rate, weight_decay, *, probe, binary, steps):
    optimizer = optax.adamw(optax.cosine_decay_schedule(1.0, steps), weight_decay=weight_decay)
    params = probe.init(key, hidden, question)

    def loss(params):
        said = probe.apply(params, hidden, question)
        each = optax.sigmoid_binary_cross_entropy(said, target) if binary else (said - target) ** 2
        return jnp.sum(weight * each) / jnp.sum(weight)

    def step(carry, _):
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        updates = jax.tree.map(lambda u: learning_rate * u, updates)
        return (optax.apply_updates(params, updates), state), None

    (params, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), None, length=steps)
    return params, probe.apply(params, hidden, question)


def fit_probe(
    key: Key[Array, ""],
    examples: ProbeExamples,
    *,
    kind: str = "mlp",
    width: int | None = None,
    steps: int = 300,
    learning_rate: float = 1e-2,
    weight_decay: float = 1e-2,
) -> ProbeResult:
    """Fits a probe on the examples that are not held out, all at once by AdamW, and judges it on those that are.

    Hidden states are scaled to mean 0 and deviation 1 per channel of the fitted examples.
    """
    check_choice("kind", kind, PROBES)
    check_positive("steps", steps)
    fitted = ~examples.held_out
    if not fitted.any() or fitted.all():
        raise ValueError("examples need fitted and held-out rows, at least five rows in all")
    mean = examples.hidden[fitted].mean(axis=0)
    scale = examples.hidden[fitted].std(axis=0) + 1e-6

    def prepared(a):
        return jnp.asarray((a - mean) / scale) if a.ndim == 2 else jnp.asarray(a)

    hidden, question = prepared(examples.hidden), prepared(examples.question)
    symbols = int(np.max(examples.question)) + 1 if examples.question.ndim == 1 else 1
    probe = _Probe(kind, examples.hidden.shape[1] if width is None else width, symbols)
    weight, target = jnp.asarray(fitted, jnp.float32), jnp.asarray(examples.target)
    params, said = _fit(
        key, hidden, question, target, weight, jnp.float32(learning_rate), jnp.float32(weight_decay), probe=probe,
        binary=examples.binary, steps=steps,
    )  # fmt: skip
    said = np.asarray(said)

    def score(where):
        truth = examples.target[where]
        if examples.binary:
            return float(np.mean((said[where] > 0) == (truth > 0.5)))
        variance = np.mean((truth - truth.mean()) ** 2)
        return float(1 - np.mean((said[where] - truth) ** 2) / max(variance, 1e-12))

    return ProbeResult(score(examples.held_out), score(fitted), params)
