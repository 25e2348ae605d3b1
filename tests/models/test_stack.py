"""Stacks: feed-forward layers that follow a pattern of their own, mixtures of experts, batch normalisation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zoo
from zoo.layers import MLP, mixture_of_experts
from zoo.models import SequenceClassifier, Stack

X = jax.random.normal(jax.random.key(0), (2, 5, 8))
MOE = {"name": "moe", "experts": 3, "top_k": 2, "hidden_dim": 6, "shared_dim": 4}


def test_mixers_and_feed_forward_layers_follow_patterns_of_different_lengths():
    stack = Stack(dim=8, pattern=("lru", "lru", "gru"), mlp=("gelu", MOE), depth=6)
    assert [m if isinstance(m, str) else m["name"] for _, m in stack.blocks()] == ["gelu", "moe"] * 3
    params = jax.jit(stack.init)(jax.random.key(1), X)["params"]["layers"]
    places = stack.places()
    assert len(places) == 6
    for (mixer, mlp), (name, index) in zip(stack.blocks(), places):
        layer = jax.tree.map(lambda leaf, i=index: leaf[i], params[name])
        assert ("nu_log" in layer["mixer"]) == (mixer == "lru")
        assert ("router" in layer["mlp"]) == (mlp != "gelu")
    variables, call = {"params": {"layers": params, "final_norm": {"scale": jnp.ones(8)}}}, jax.jit(stack.apply)
    y, state = call(variables, X)
    first, carried = call(variables, X[:, :2])
    rest, last = call(variables, X[:, 2:], carried)
    np.testing.assert_allclose(jnp.concatenate([first, rest], axis=1), y, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), last, state)


def test_equal_neighbours_are_one_run_only_if_their_feed_forward_layers_are_equal():
    assert [name for name, _ in Stack(dim=8, pattern=("lru",), mlp="gelu", depth=4).places()] == ["run_0"] * 4
    names = [name for name, _ in Stack(dim=8, pattern=("lru",), mlp=("gelu", "none"), depth=4).places()]
    assert names == ["run_0", "run_1"] * 2


def naive_experts(p, x, top_k, renormalize):
    """Every token alone, in float64 NumPy."""
    y = np.zeros_like(x)
    for token in np.ndindex(x.shape[:-1]):
        scores = x[token] @ p["router"]
        probabilities = np.exp(scores - scores.max())
        probabilities /= probabilities.sum()
        chosen = np.argsort(-probabilities)[:top_k]
        total = probabilities[chosen].sum() if renormalize else 1.0
        for e in chosen:
            gate = x[token] @ p["gate"][e]
            hidden = gate / (1 + np.exp(-gate)) * (x[token] @ p["up"][e])
            y[token] += probabilities[e] / total * (hidden @ p["down"][e])
    return y


@pytest.mark.parametrize("renormalize", [False, True])
def test_experts_equal_a_loop_over_tokens_and_gradients_its_differences(renormalize):
    shapes = {"router": (8, 3), "gate": (3, 8, 6), "up": (3, 8, 6), "down": (3, 6, 8)}
    generator = np.random.default_rng(0)
    p = {name: generator.standard_normal(shape) for name, shape in shapes.items()}
    direction = {name: generator.standard_normal(shape) for name, shape in shapes.items()}
    x, weights = np.float64(X), generator.standard_normal(X.shape)

    def value(shift):
        moved = {name: p[name] + shift * direction[name] for name in p}
        return np.sum(naive_experts(moved, x, 2, renormalize) * weights)

    with jax.enable_x64(True):

        def loss(p):
            y, balance = mixture_of_experts(p, jnp.asarray(x), top_k=2, renormalize=renormalize)
            return jnp.sum(y * weights), (y, balance)

        grads, (y, balance) = jax.jit(jax.grad(loss, has_aux=True))(p)
        np.testing.assert_allclose(y, naive_experts(p, x, 2, renormalize), rtol=1e-9, atol=1e-12)
        along = sum(np.sum(np.asarray(grads[name]) * direction[name]) for name in p)
    np.testing.assert_allclose(along, (value(1e-6) - value(-1e-6)) / 2e-6, rtol=1e-6)
    assert 1 < balance < 3 * 2


def test_an_even_router_has_the_balancing_loss_k_and_the_stack_hands_it_out():
    shapes = {"router": (8, 4), "gate": (4, 8, 6), "up": (4, 8, 6), "down": (4, 6, 8)}
    even = {name: jnp.zeros(shape) for name, shape in shapes.items()}
    assert np.isclose(mixture_of_experts(even, X, top_k=2)[1], 2.0)
    stack = Stack(dim=8, pattern=("lru",), mlp=("none", MOE), depth=4)
    params = jax.jit(stack.init)(jax.random.key(1), X)
    _, out = stack.apply({"params": params["params"]}, X, mutable=["losses"])
    (balance,) = jax.tree.leaves(out["losses"])
    assert balance.shape == (2, 1) or balance.shape == (2,)
    assert np.all((balance > 1) & (balance < 6))


@pytest.mark.parametrize("norm_position", ["pre", "post"])
def test_batch_normalisation_trains_on_the_batch_and_evaluates_on_running_averages(norm_position):
    model = SequenceClassifier(num_outputs=3, dim=8, depth=2, mlp="gelu", norm="batch", norm_position=norm_position)
    x = 3 + 2 * jax.random.normal(jax.random.key(2), (16, 5, 4))
    variables = jax.jit(model.init)(jax.random.key(1), x)
    train = jax.jit(lambda v, x: model.apply(v, x, deterministic=False, mutable=["batch_stats"]))
    fresh = model.apply(variables, x)
    y, renewed = train(variables, x)
    assert not np.allclose(fresh, y, atol=1e-3)
    for _ in range(100):
        y, renewed = train({**variables, **renewed}, x)
    settled = model.apply({**variables, **renewed}, x)
    np.testing.assert_allclose(settled, y, rtol=0.02, atol=0.02)
    one = model.apply({**variables, **renewed}, x[:1])  # no row sees another once averages are fixed
    np.testing.assert_allclose(one, settled[:1], atol=1e-5)


def test_batch_normalisation_averages_over_devices():
    model = SequenceClassifier(num_outputs=3, dim=8, norm="batch", norm_axis="devices")
    x = jax.random.normal(jax.random.key(2), (4, 5, 4))
    variables = model.init(jax.random.key(1), x)
    both = jax.pmap(
        lambda x: model.apply(variables, x, deterministic=False, mutable=["batch_stats"]), axis_name="devices"
    )
    y, renewed = both(x.reshape(2, 2, 5, 4))
    want, want_renewed = model.clone(norm_axis=None).apply(variables, x, deterministic=False, mutable=["batch_stats"])
    np.testing.assert_allclose(y.reshape(4, 3), want, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[1], b, atol=1e-5), renewed, want_renewed)


def test_capped_logits_and_scaled_embeddings():
    tokens = jnp.arange(6)[None]
    plain = zoo.LanguageModel(vocab_size=7, dim=8, tie_embeddings=True)
    params = plain.init(jax.random.key(0), tokens)
    logits = plain.apply(params, tokens)[0]
    capped = plain.clone(logit_cap=0.5).apply(params, tokens)[0]
    np.testing.assert_allclose(capped, 0.5 * jnp.tanh(logits / 0.5), rtol=1e-6)
    table = params["params"]["embedding"]
    wide = {"params": {**params["params"], "embedding": table * 8**0.5}}
    scaled = plain.clone(embedding_scale=1.0).apply(wide, tokens)[0]
    np.testing.assert_allclose(scaled, logits * 8**0.5, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Stack(dim=8, mlp="swigglu"), "swiglu"),
        (lambda: Stack(dim=8, mlp=()), "empty tuple"),
        (lambda: Stack(dim=8, mlp={"name": "moe", "expert": 2}), "experts"),
        (lambda: Stack(dim=8, mlp={"name": "moe", "experts": 2, "top_k": 3}), "top_k must be from 1 to experts=2"),
        (lambda: Stack(dim=8, norm="bach"), "batch"),
    ],
)
def test_wrong_patterns_say_what_would_be_right(make, words, as_users_see_it):
    with pytest.raises(ValueError, match=words):
        make().init(jax.random.key(0), X)


def test_a_language_model_refuses_batch_normalisation(as_users_see_it):
    with pytest.raises(ValueError, match="future"):
        zoo.LanguageModel(vocab_size=7, dim=8, norm="batch").init(jax.random.key(0), jnp.zeros((1, 3), int))


def test_gated_layers_follow_their_nonlinearity():
    params = MLP(8, 6, "geglu_tanh", use_bias=True).init(jax.random.key(0), X)
    p = {k: v["kernel"] for k, v in params["params"].items()}
    want = (jax.nn.gelu(X @ p["gate"]) * (X @ p["up"])) @ p["down"]
    np.testing.assert_allclose(MLP(8, 6, "geglu_tanh", use_bias=True).apply(params, X), want, atol=1e-5)
    assert set(params["params"]["up"]) == {"kernel", "bias"}
