"""What the laws do not ask of the layers of Titans and TTT: ablations, what a segment recalls, TTT's step, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zoo
from zoo.layers.einfft import EinFFT
from zoo.scans import apply_memory

X = jax.random.normal(jax.random.key(0), (2, 9, 8))


def parameters(**options):
    module = zoo.create("titans_memory", dim=8, heads=2, **options)
    return jax.eval_shape(module.init, jax.random.key(0), X)["params"]


def test_ablations_leave_their_parameters_out():
    full = parameters(persistent=3)
    assert full["persistent"].shape == (3, 8) and full["memory_W1"].shape == (2, 16, 4)
    assert not {"memory_eta", "memory_eta_bias"} & set(parameters(momentum=False))
    assert not {"memory_alpha", "memory_alpha_bias"} & set(parameters(decay=False))
    assert not {"memory_kernel", "persistent"} & set(parameters(conv_size=0))
    assert parameters(depth=1)["memory_W0"].shape == (2, 4, 4) and "memory_W1" not in parameters(depth=1)
    assert {"memory_W3"} <= set(parameters(depth=4))
    # a number per output channel of both weights: 2 (16 + 4)
    assert parameters(gates="channel")["memory_theta"].shape == (8, 40)


def test_a_layer_without_momentum_is_one_whose_momentum_is_forgotten():
    module = zoo.create("titans_memory", dim=8, heads=2, expansion=1, chunk_size=4)
    params = jax.jit(module.init)(jax.random.key(1), X)["params"]
    params = {**params, "memory_eta": 0 * params["memory_eta"], "memory_eta_bias": params["memory_eta_bias"] - 1e4}
    without = {name: p for name, p in params.items() if "eta" not in name or "theta" in name}
    y = jax.jit(module.apply)({"params": params}, X)[0]
    np.testing.assert_allclose(jax.jit(module.clone(momentum=False).apply)({"params": without}, X)[0], y, atol=1e-6)


def test_ttt_takes_one_step_of_gradient_descent_per_chunk():
    """The weights after one chunk are W_0 minus the sum of eta_t grad l(W_0; x_t): one step on the whole chunk."""
    module = zoo.create("ttt_linear", dim=8, heads=2, chunk_size=16, rotary=False)
    params = jax.jit(module.init)(jax.random.key(1), X)["params"]
    params = {**params, "W0": params["W0"] + 0.3}
    _, state = jax.jit(module.apply)({"params": params}, X)
    k, v = (np.asarray(X @ params[name]).reshape(2, 9, 2, 4) for name in ("key", "value"))
    eta = jax.nn.sigmoid(X @ params["eta"]) / 4

    def loss(weights):
        def memory(use, z):
            n = use("W0", z) + weights["b0"][None, :, None]
            n = n - n.mean(-1, keepdims=True)
            return z + n / jnp.sqrt(jnp.mean(n**2, -1, keepdims=True) + 1e-6)

        rows = {name: jnp.broadcast_to(w, (2, *w.shape)) for name, w in weights.items()}
        f = apply_memory(memory, rows, jnp.moveaxis(jnp.asarray(k), 2, 1))
        return 0.5 * jnp.sum(jnp.moveaxis(eta, 2, 1)[..., None][:1] * (f - jnp.moveaxis(v, 2, 1))[:1] ** 2)

    weights = {name: params[name] for name in ("W0", "b0")}
    step = jax.jit(jax.grad(loss))(weights)
    for name in weights:
        np.testing.assert_allclose(state.descent.weights[name][0], weights[name] - step[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("titans_memory", {"chunk_size": 0}, "chunk_size must be a positive integer"),
        ("titans_memory", {"depth": 0}, "depth must be a positive integer"),
        ("titans_memory", {"theta_max": 0.0}, "theta_max must be positive"),
        ("titans_memory", {"norm_gain": True, "residual_norm": False}, "residual_norm=True"),
        ("titans_mag", {"window": 0}, "window must be a positive integer"),
        ("titans_mal", {"persistent": -1}, "persistent must be a number of tokens"),
        ("titans_mac", {"segment": 0}, "segment must be a positive integer"),
        ("titans_mac", {"memory": {"heads": 3}}, "not divisible by heads=3"),
        ("ttt_linear", {"eta_base": 0.0}, "eta_base must be positive"),
    ],
)
def test_wrong_options_say_what_would_be_right(as_users_see_it, name, options, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(zoo.create(name, dim=8, **options).init, jax.random.key(0), X)


def test_einfft_is_its_formula_and_sees_time_only_when_told():
    module = EinFFT(8, blocks=2, over_time=True)
    params = jax.jit(module.init)(jax.random.key(0), X)
    params = jax.tree.map(lambda p: p + 0.3 * jax.random.normal(jax.random.key(p.size), p.shape), params)
    p = {name: np.asarray(a, np.float64) for name, a in params["params"].items()}
    z = np.fft.fft2(np.asarray(X, np.float64), axes=(1, 2), norm="ortho").reshape(2, 9, 2, 4)
    for layer in (1, 2):
        kernel, bias = (p[f"real_{n}_{layer}"] + 1j * p[f"imaginary_{n}_{layer}"] for n in ("kernel", "bias"))
        z = np.einsum("btgi,gio->btgo", z, kernel) + bias
        parts = z.real, z.imag
        if layer == 1:
            parts = [np.maximum(a, 0) for a in parts]
        else:
            parts = [np.sign(a) * np.maximum(np.abs(a) - 0.01, 0) for a in parts]
        z = parts[0] + 1j * parts[1]
    want = np.fft.ifft2(z.reshape(2, 9, 8), axes=(1, 2), norm="ortho").real
    np.testing.assert_allclose(module.apply(params, X), want, atol=1e-4)
    y = EinFFT(8, blocks=2).apply(params, X)
    np.testing.assert_array_equal(EinFFT(8, blocks=2).apply(params, X.at[:, 5:].add(1))[:, :5], y[:, :5])
    mlp = {"name": "einfft", "blocks": 2, "over_time": True}
    with pytest.raises(ValueError, match="sees the future"):
        zoo.LanguageModel(vocab_size=5, dim=8, mlp=mlp).init(jax.random.key(0), jnp.zeros((1, 3), jnp.int32))
