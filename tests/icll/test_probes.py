"""Probes find what was put there, and nothing where there is nothing; attention weights are those of the layer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zoo
from zoo.analysis import attention_mass, fit_probe, hidden_states, induction_weights, probe_examples
from zoo.mixers import ngram_weights

SEPARATOR, PAD = 4, 0
RANDOM = np.random.default_rng(0)
TOKENS = RANDOM.choice([1, 2, 3, SEPARATOR], (20, 24), p=[0.4, 0.3, 0.2, 0.1])
STATES = RANDOM.integers(0, 3, TOKENS.shape)


def seen_after(tokens):
    """[B, T, 5]: how often each symbol followed the current one before, as a share."""
    shares = np.zeros((*tokens.shape, 5))
    for row, t in np.ndindex(tokens.shape):
        ends = [p for p in range(t) if tokens[row, p] == tokens[row, t] and tokens[row, p + 1] != SEPARATOR]
        for p in ends:
            shares[row, t, tokens[row, p + 1]] += 1 / len(ends)
    return shares.astype(np.float32)


PLANTED = {"count": seen_after(TOKENS), "seen": seen_after(TOKENS), "state": np.eye(3, dtype=np.float32)[STATES]}


@pytest.mark.parametrize(
    ("question", "kind", "least"), [("count", "linear", 0.9), ("seen", "mlp", 0.9), ("state", "mlp", 0.95)]
)
def test_a_probe_finds_what_was_planted_and_nothing_in_noise(question, kind, least):
    options = {"separator": SEPARATOR, "pad": PAD}
    planted = probe_examples(question, PLANTED[question], TOKENS, STATES, **options)
    assert fit_probe(jax.random.key(0), planted, kind=kind, width=8).score >= least
    noise = planted._replace(hidden=np.random.default_rng(1).standard_normal(planted.hidden.shape).astype(np.float32))
    assert fit_probe(jax.random.key(0), noise, kind=kind, width=8, weight_decay=1.0).score < least - 0.2


def test_examples_are_half_and_half_and_split_by_rows():
    examples = probe_examples("seen", PLANTED["seen"], TOKENS, order=2, separator=SEPARATOR, pad=PAD)
    assert 0.35 < examples.target.mean() < 0.65 and 0.1 < examples.held_out.mean() < 0.3
    with pytest.raises(ValueError, match="states"):
        probe_examples("state", PLANTED["seen"], TOKENS)
    with pytest.raises(ValueError, match="question"):
        probe_examples("colour", PLANTED["seen"], TOKENS)


def test_hidden_states_and_attention_are_the_models_own():
    attention = {"name": "attention", "heads": 2, "window": 6}
    model = zoo.LanguageModel(vocab_size=5, dim=8, pattern=("lru", attention, attention), mlp="none", final_norm=False)
    tokens = jnp.asarray(TOKENS[:2, :10])
    params = jax.jit(model.init)(jax.random.key(0), tokens)
    layers = hidden_states(model, params, tokens)
    assert len(layers) == 3
    logits = layers[-1] @ params["params"]["output"]["kernel"]
    np.testing.assert_allclose(logits, model.apply(params, tokens)[0], atol=1e-5)
    weights = attention_mass(model, params, tokens)
    assert set(weights) == {1, 2}
    np.testing.assert_allclose(jnp.sum(weights[1], axis=-1), 1, rtol=1e-5)
    assert float(jnp.max(jnp.abs(jnp.triu(weights[1], 1)))) == 0 and float(weights[2][0, 0, 9, 3]) == 0
    own = jax.tree.map(lambda a: a[0, 0], params["params"]["stack"]["layers"]["run_1"])
    x = layers[0]
    inside = x / jnp.sqrt(jnp.mean(x**2, axis=-1, keepdims=True) + 1e-6) * own["mixer_norm"]["scale"]
    values = jnp.einsum("btd,dhk->bthk", inside, own["mixer"]["value"])
    read = jnp.einsum("bhts,bshk,hkd->btd", weights[1], values, own["mixer"]["output"])
    np.testing.assert_allclose(x + read, layers[1], atol=1e-5)


def test_a_static_head_looks_where_an_induction_head_would():
    tokens = jnp.asarray(TOKENS)
    weights = ngram_weights(tokens, 2)[:, None]
    assert float(induction_weights(weights, tokens, order=2)) == pytest.approx(1)
    everywhere = jnp.tril(jnp.ones((24, 24))) / jnp.arange(1, 25)[:, None]
    assert float(induction_weights(jnp.broadcast_to(everywhere, (20, 1, 24, 24)), tokens, order=2)) < 0.3
