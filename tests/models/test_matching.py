"""The matching classifier: one encoder for both sequences, which do not see each other before they are compared."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo.models import MatchingClassifier, SequenceClassifier

MIXER = {"name": "bidirectional", "mixer": "lru"}
ENCODER = {"dim": 8, "vocab_size": 5, "pattern": (MIXER,), "mlp": "none", "norm": "layer"}
MODEL = MatchingClassifier(num_outputs=3, encoder=ENCODER, hidden_dim=32)


@pytest.fixture(scope="module")
def case():
    inputs = jax.random.randint(jax.random.key(0), (4, 2, 9), 0, 5)
    lengths = jnp.array([[9, 9], [3, 9], [9, 1], [5, 7]])
    params = jax.jit(MODEL.init)(jax.random.key(1), inputs, lengths)
    return jax.jit(MODEL.apply), params, inputs, lengths


def test_logits_follow_from_the_encodings_of_the_two_sequences(case):
    apply, params, inputs, lengths = case
    encoder = SequenceClassifier(num_outputs=None, **ENCODER)
    own = {"params": params["params"]["encoder"]}
    a, b = (np.asarray(jax.jit(encoder.apply)(own, inputs[:, i], lengths[:, i])) for i in range(2))
    assert a.shape == (4, 8) and "head" not in own["params"]
    y = np.concatenate([a, b, a * b, a - b], axis=1)
    for name in ("hidden_0", "hidden_1", "head"):
        weights = jax.tree.map(np.asarray, params["params"][name])
        y = y @ weights["kernel"] + weights["bias"]
        y = y if name == "head" else np.maximum(y, 0)
    assert [params["params"][n]["bias"].shape for n in ("hidden_0", "hidden_1", "head")] == [(32,), (16,), (3,)]
    assert np.allclose(apply(params, inputs, lengths), y, atol=1e-5)


def test_padding_and_other_rows_are_not_seen(case):
    apply, params, inputs, lengths = case
    logits = apply(params, inputs, lengths)
    beyond = jnp.arange(9) >= lengths[..., None]
    other = apply(params, jnp.where(beyond, (inputs + 1) % 5, inputs).at[3].set(0), lengths)
    assert np.ptp(logits) > 0.1 and np.allclose(logits[:3], other[:3], atol=1e-5)
    assert not np.allclose(logits[3], other[3], atol=1e-3)


@pytest.mark.parametrize(
    ("change", "shape", "words"),
    [
        ({}, (4, 9), "batch, 2, time"),
        ({}, (4, 3, 9), "batch, 2, time"),
        ({"encoder": {**ENCODER, "pooling": "none"}}, (4, 2, 9), "must pool"),
        ({"encoder": {**ENCODER, "num_outputs": 2}}, (4, 2, 9), "must not set 'num_outputs'"),
        ({"hidden_dim": 1}, (4, 2, 9), "hidden_dim must be at least 2"),
        ({"num_outputs": 0}, (4, 2, 9), "num_outputs must be"),
    ],
)
def test_wrong_shapes_and_options_are_refused(change, shape, words, as_users_see_it):
    model = MODEL.clone(**change)
    with pytest.raises(ValueError, match=words):
        model.init(jax.random.key(0), jnp.zeros(shape, jnp.int32))
    with pytest.raises(ValueError, match="lengths must have"):
        MODEL.init(jax.random.key(0), jnp.zeros((4, 2, 9), jnp.int32), jnp.ones(4, jnp.int32))
