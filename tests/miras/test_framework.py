"""The models that Miras unites, each as a configuration, equal their own recurrences; everything in 64-bit floats.

Where the zoo has the recurrence, it is the zoo's; else it is a plain loop.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo.layers.memory_mlp import initial_memory, memory_mlp
from zoo.scans import (
    BIASES,
    Miras,
    MirasGates,
    delta_product,
    gated_delta_rule,
    linear_attention,
    linear_scan,
    matrix_memory,
    memory_descent,
    miras_read,
    miras_scan,
    miras_state,
    miras_step,
    miras_weights,
    vector_memory,
)
from zoo.scans.chunked.miras import L2, GradientDescent, ImplicitDescent, Momentum, MultiStep, NonParametric

B, T, H, K, V = 2, 7, 2, 3, 4
HALF = L2(factor=1.0)  # |e|^2 / 2, as delta rules are written


@pytest.fixture(autouse=True)
def _wide():
    with jax.enable_x64(True):
        yield


def drawn(*shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape, jnp.float64)


def gate(*shape, seed=0):
    return jax.nn.sigmoid(drawn(*shape, seed=100 + seed))


def pairs(values=V):
    k = drawn(B, T, H, K, seed=2)
    return drawn(B, T, H, K, seed=1), k / jnp.linalg.norm(k, axis=-1, keepdims=True), drawn(B, T, H, values, seed=3)


def zeros(*shape):
    return {"W0": jnp.zeros((H, *shape))}


ONES = np.ones((B, T, H))


def run(parts, arrays, gates, weights=None, **options):
    weights = zeros(K, V) if weights is None else weights
    return jax.jit(lambda *a: miras_scan(parts, *a, gates, weights, **options))(*arrays)


def close(got, want):
    assert np.allclose(got, want, rtol=1e-9, atol=1e-10), float(np.max(np.abs(np.asarray(got) - want)))


def test_linear_attention():
    q, k, v = pairs()
    y, state = run(Miras(bias="dot"), (q, k, v), MirasGates(ONES))
    want, last = linear_attention(q, k, v)
    close(y, want)
    close(state.memory["W0"], last)


@pytest.mark.parametrize("model", ["lightning and retnet: one decay", "mamba2: a decay for each token"])
def test_scalar_decay(model):
    decay = np.broadcast_to([0.9, 0.5], (B, T, H)) if "retnet" in model else gate(B, T, H)
    q, k, v = pairs()
    y, _ = run(Miras(bias="dot", retention="l2"), (q, k, v), MirasGates(ONES, jnp.asarray(decay)))
    close(y, linear_attention(q, k, v, jnp.log(decay))[0])


def test_retnet_with_a_vector():
    q, k, v = pairs(K)
    decay = gate(B, T, H)
    y, _ = run(Miras(vector_memory, "dot", "l2"), (q, k, v), MirasGates(ONES, decay), zeros(K))
    close(y, q * linear_scan(decay[..., None], k * v)[0])


@pytest.mark.parametrize("model", ["gla", "hgrn2"])
def test_decay_of_every_key_channel(model):
    decay = gate(B, T, H, K)
    q, k, v = pairs()
    k = 1 - decay if model == "hgrn2" else k  # the table calls HGRN2's bias l1; its write is the dot product's
    y, _ = run(Miras(bias="dot", retention="l2", decay_axis="input"), (q, k, v), MirasGates(ONES, decay))
    close(y, linear_attention(q, k, v, jnp.log(decay))[0])


def test_deltanet():
    q, k, v = pairs()
    beta = gate(B, T, H)
    y, _ = run(Miras(bias=HALF), (q, k, v), MirasGates(beta))
    close(y, gated_delta_rule(q, k, v, beta)[0])


def test_gated_deltanet():
    q, k, v = pairs()
    beta, decay = gate(B, T, H), gate(B, T, H, seed=1)
    y, _ = run(Miras(matrix_memory, HALF, "l2", GradientDescent("decayed")), (q, k, v), MirasGates(beta, decay))
    close(y, gated_delta_rule(q, k, v, beta, jnp.log(decay))[0])


@pytest.mark.parametrize("channels", [False, True])
def test_longhorn(channels):
    """The implicit step, with one beta or one for every value, is the delta rule with its own step; and the true minimum."""
    q, k, v = pairs()
    k = 2 * k
    beta = gate(B, T, H, V) if channels else gate(B, T, H)
    parts = Miras(matrix_memory, HALF, "none", ImplicitDescent())
    y, _ = run(parts, (q, k, v), MirasGates(beta))
    step = beta / (1 + beta * jnp.sum(k**2, -1, keepdims=channels))
    if not channels:
        close(y, gated_delta_rule(q, k, v, step)[0])
        return
    # every value channel as a head of its own
    wide = [jnp.repeat(a, V, axis=2) for a in (q, k)]
    close(y, gated_delta_rule(*wide, v.reshape(B, T, H * V, 1), step.reshape(B, T, H * V))[0].reshape(B, T, H, V))
    before = drawn(H, K, V, seed=5)
    begun = miras_state(parts, {"W0": before}, B)
    state = miras_step(parts, begun, k[:, 0], v[:, 0], MirasGates(beta[:, 0]))
    now, before = state.memory["W0"][0, 0], before[0]
    key, value, strength = k[0, 0, 0], v[0, 0, 0], beta[0, 0, 0]
    slope = (now - before) + jnp.outer(key, strength * (key @ now - value))  # of |W - W'|^2 / 2 + beta |W k - v|^2 / 2
    close(slope, np.zeros((K, V)))


def test_rwkv7_as_the_table_has_it():
    """M = M Diag(a) (I - b k k^T) + b v k^T, decayed at the keys before the error is taken."""
    q, k, v = pairs()
    beta, decay = gate(B, T, H), gate(B, T, H, K)
    parts = Miras(matrix_memory, HALF, "l2", GradientDescent("decayed"), decay_axis="input")
    y, _ = run(parts, (q, k, v), MirasGates(beta, decay))
    memory, want = np.zeros((B, H, K, V)), []
    for t in range(T):
        memory = memory * decay[:, t, ..., None]
        error = v[:, t] - np.einsum("bhk,bhkv->bhv", k[:, t], memory)
        memory = memory + np.einsum("bhk,bhv->bhkv", k[:, t], beta[:, t, :, None] * error)
        want.append(np.einsum("bhk,bhkv->bhv", q[:, t], memory))
    close(y, np.stack(want, 1))


def test_rwkv7():
    """M = M (Diag(w) - n (a n)^T) + v k^T: two of the generic steps, a removal at the key n and a dot product.

    The loop is to become the zoo's own RWKV-7 recurrence.
    """
    q, n, v = pairs()
    k, w, a = drawn(B, T, H, K, seed=4), gate(B, T, H, K), gate(B, T, H, K, seed=1)
    remove = Miras(matrix_memory, HALF, "l2", "gradient_descent", "input", "input")
    write = Miras(bias="dot")
    state = miras_state(remove, zeros(K, V), B)
    memory = np.zeros((B, H, K, V))
    for t in range(T):
        state = miras_step(remove, state, n[:, t], jnp.zeros((B, H, V)), MirasGates(a[:, t], w[:, t]))
        state = miras_step(write, state, k[:, t], v[:, t], MirasGates(jnp.ones((B, H))))
        removed = np.einsum("bhk,bhkv->bhv", n[:, t], memory)
        memory = memory * w[:, t, ..., None] - np.einsum("bhk,bhv->bhkv", a[:, t] * n[:, t], removed)
        memory = memory + np.einsum("bhk,bhv->bhkv", k[:, t], v[:, t])
        close(miras_read(write, state, q[:, t]), np.einsum("bhk,bhkv->bhv", q[:, t], memory))


def test_deltaproduct():
    """n steps for every token, the decay before the first."""
    steps = 3
    k = drawn(B, T, steps, H, K, seed=2)
    k = k / jnp.linalg.norm(k, axis=-1, keepdims=True)
    q, v = drawn(B, T, H, K, seed=1), drawn(B, T, steps, H, V, seed=3)
    beta, decay = 2 * gate(B, T, steps, H), gate(B, T, H, seed=1)
    y, _ = run(Miras(matrix_memory, HALF, "l2", MultiStep(steps)), (q, k, v), MirasGates(beta, decay))
    close(y, delta_product(q, k, v, beta, jnp.log(decay))[0])


@pytest.mark.parametrize("model", ["ttt_linear", "ttt_mlp", "titans"])
def test_memories_that_are_networks(model):
    """TTT in chunks of three (its mini-batches), Titans one step after another."""
    q, k, v = pairs(K)
    depth = 1 if model == "ttt_linear" else 2
    memory = memory_mlp(depth, activation="silu" if model == "titans" else "gelu_tanh", residual_norm=True)
    weights = jax.tree.map(jnp.float64, initial_memory(jax.random.key(0), depth, K, 2 * K, heads=H))
    step, decay, keep = (0.1 * gate(B, T, H), gate(B, T, H, seed=1), gate(B, T, H, seed=2))
    if model == "titans":
        parts = Miras(memory, "l2", "l2", Momentum())
        gates, chunk, more = MirasGates(step, decay, keep), 1, (1 - decay, keep)
    else:
        parts, gates, chunk, more = Miras(memory), MirasGates(step), 3, ()
    y, _ = run(parts, (q, k, v), gates, weights, chunk_size=chunk)
    close(y, memory_descent(memory, weights, q, k, v, step, *more, chunk_size=chunk)[0])


def test_softmax_attention():
    q, k, v = pairs()
    parts = Miras(algorithm=NonParametric(max_length=T))
    empty = {"keys": jnp.zeros((H, K)), "values": jnp.zeros((H, V))}
    y, state = run(parts, (q, k, v), MirasGates(), empty)
    scores = jnp.where(np.tril(np.ones((T, T), bool)), jnp.einsum("bthk,bshk->bhts", q, k), -jnp.inf)
    want = jnp.einsum("bhts,bshv->bthv", jax.nn.softmax(scores), v)
    close(y, want)
    short = Miras(algorithm=NonParametric(max_length=3))
    banded = jnp.where(np.tril(np.ones((T, T), bool)) & ~np.tril(np.ones((T, T), bool), -3), scores, -jnp.inf)
    want = jnp.einsum("bhts,bshv->bthv", jax.nn.softmax(banded), v)
    state = miras_state(short, empty, B)
    for t in range(T):
        state = miras_step(short, state, k[:, t], v[:, t], MirasGates())
        close(miras_read(short, state, q[:, t]), want[:, t])
    y, state = run(short, (q[:, :4], k[:, :4], v[:, :4]), MirasGates(), empty)
    later, _ = run(short, (q[:, 4:], k[:, 4:], v[:, 4:]), MirasGates(), empty, state=state)
    close(jnp.concatenate([y, later], 1), want)


def simplex(*shape, seed=0):
    return jax.nn.softmax(drawn(H, *shape, seed=seed), axis=1)


FORMS = {
    "moneta": (Miras(bias="lp", retention="lq"), "signed"),
    "yaad, with momentum": (Miras(bias="huber", retention="l2", algorithm="momentum"), "signed"),
    "memora": (Miras(bias="l2", retention="kl"), "simplex"),
    "memora, with momentum": (Miras(bias="l2", retention={"name": "kl", "c": 2.0}, algorithm="momentum"), "simplex 2"),
    "elastic net": (Miras(bias="value_shift", retention="elastic_net"), "signed"),
    "f-divergence": (Miras(bias="l1", retention={"name": "f_divergence", "f": "hellinger"}), "simplex"),
    "decayed": (Miras(bias="l2", retention={"name": "l2", "alpha": 3.0}, algorithm=GradientDescent("decayed")), "signed"),
}  # fmt: skip


# The others add a part that these, or the laws of the mixers, have with another.
QUICKLY = ("moneta", "memora, with momentum", "elastic net")


@pytest.mark.parametrize("name", [n if n in QUICKLY else pytest.param(n, marks=pytest.mark.slow) for n in FORMS])
def test_forms_agree(name):
    """Chunks side by side equal one step after another, with documents, cuts inside chunks, and gradients."""
    parts, kind = FORMS[name]
    q, k, v = pairs()
    weights = {"W0": 0.3 * drawn(H, K, V, seed=5) if kind == "signed" else simplex(K, V) * (2 if "2" in kind else 1)}
    every = {"step": 0.2, "decay": 0.9, "momentum": 0.6, "threshold": 1.0}
    gates = MirasGates(**{n: every[n] * gate(B, T, H, seed=i) for i, n in enumerate(parts.gates)})
    reset = np.zeros((B, T), bool)
    reset[0, 4] = True

    def forms(size, reset, cut):
        def slopes(method):
            def loss(q, k, v, weights):
                y, state = miras_scan(parts, q, k, v, gates, weights, chunk_size=size, reset=reset, method=method)
                return jnp.sum(jnp.sin(y)), (y, miras_weights(parts, state))

            return jax.grad(loss, (0, 1, 2, 3), has_aux=True)(q, k, v, weights)

        y, state = None, None
        for part in (slice(0, cut), slice(cut, T)):
            now = jax.tree.map(lambda a, part=part: a[:, part], (q, k, v, gates, reset))
            out, state = miras_scan(parts, *now[:4], weights, state, chunk_size=size, reset=now[4], method="chunked")
            y = out if y is None else jnp.concatenate([y, out], 1)
        whole = [slopes(method) for method in ("sequential", "chunked")]
        return *whole, (y, miras_weights(parts, state))

    one_by_one, chunked, cut = jax.jit(lambda: forms(3, jnp.asarray(reset), 5))()
    jax.tree.map(close, chunked, one_by_one)
    jax.tree.map(close, cut, one_by_one[1])
    single, chunk_of_one = jax.jit(
        lambda: [miras_scan(parts, q, k, v, gates, weights, method=m)[0] for m in ("sequential", "chunked")]
    )()
    close(chunk_of_one, single)
    assert not np.allclose(chunked[1][0], single, atol=1e-4), "chunks of three steps are another function"


def test_steps_are_the_scan():
    """The generic step, with channel gates and chunks, and the read-out of the weights."""
    parts = FORMS["memora"][0]
    q, k, v = pairs()
    gates = MirasGates(gate(B, T, H, V), gate(B, T, H, V, seed=1))
    weights = {"W0": simplex(K, V)}
    y, last = run(parts, (q, k, v), gates, weights, chunk_size=3)
    state = miras_state(parts, weights, B, chunk_size=3)
    for t in range(T):
        now = jax.tree.map(lambda a, t=t: a[:, t], gates)
        state = miras_step(parts, state, k[:, t], v[:, t], now, chunk_size=3)
        if t % 3 != 2:  # at the end of a chunk the weights are renewed after they are read
            close(miras_read(parts, state, q[:, t]), y[:, t])
    jax.tree.map(close, state, last)


def test_all_biases_run_with_the_mlp():
    """Every bias through the memory MLP, its gradient against autodiff of the whole loss where there is one."""
    memory = memory_mlp(2, activation="gelu", residual_norm=True)
    weights = jax.tree.map(jnp.float64, initial_memory(jax.random.key(0), 2, K, 2 * K, heads=1))
    k, v = drawn(1, 1, 1, K, seed=1), drawn(1, 1, 1, K, seed=2)

    def error(w):
        return memory(lambda name, z: z @ w[name][0], k[0, 0]) - v[0, 0]

    losses = {
        "dot": lambda e: -jnp.sum((e + v[0, 0]) * v[0, 0]),
        "l2": lambda e: jnp.sum(e**2),
        "lp": lambda e: jnp.sum(jnp.abs(e) ** 3),
        "l1": lambda e: jnp.sum(jnp.log(jnp.cosh(10 * e))) / 10,
        "huber": lambda e: jnp.sum(e**2),  # within the threshold
        "value_shift": lambda e: 0.5 * jnp.sum(e**2) + 0.1 * jnp.sqrt(jnp.sum(e**2)),
    }
    assert set(losses) == set(BIASES)
    gates = {name: MirasGates(np.ones((1, 1, 1))) for name in losses}
    gates["huber"] = gates["huber"]._replace(threshold=np.full((1, 1, 1), 9.0))

    @jax.jit
    def both(weights):
        states = {n: miras_scan(Miras(memory, n), k, k, v, gates[n], weights)[1].memory for n in losses}
        return states, {n: jax.grad(lambda w, n=n: losses[n](error(w)))(weights) for n in losses}

    states, slopes = both(weights)
    for name in losses:
        tolerance = 2e-3 if name == "lp" else 1e-9  # |e| and Sign(e) are smooth
        for n, slope in slopes[name].items():
            assert np.allclose(weights[n] - states[name][n][0], slope, rtol=tolerance, atol=tolerance), name
