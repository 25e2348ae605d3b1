"""The delta_rule kernels: numbers of both platforms against a float64 oracle, and lowering for hardware that is not here."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.compat import lower_for
from pallas_kernels.delta_rule import delta_rule, gpu, tpu
from pallas_kernels.delta_rule.reference import reference
from pallas_kernels.delta_rule.tiles import fits, tiles
from tests.oracles import scans as oracle
from zoo.scans import compiling_for, gated_delta_rule

PLATFORMS = ("gpu", "tpu")


def make(batch, steps, groups, heads, keys, values, *, decays=None, beta=None, same=False, seed=0, dtype=np.float32):
    """q, k, v, beta, log_decay, initial, and cotangents of y and last; keys have length 1.

    ``decays``: log decays to draw from, () for None; ``beta``: all of them, else 0 to 2; ``same``: one key at all steps.
    """
    rng = np.random.default_rng(seed)
    state = np.promote_types(dtype, np.float32)
    q, k = rng.normal(size=(2, batch, steps, groups, keys))
    k = np.broadcast_to(k[:, :1], k.shape) if same else k
    k = k / np.linalg.norm(k, axis=-1, keepdims=True)
    v, y_bar = rng.normal(size=(2, batch, steps, heads, values))
    initial, last_bar = rng.normal(size=(2, batch, heads, keys, values))
    beta = rng.uniform(0, 2, size=(batch, steps, heads)) if beta is None else np.full((batch, steps, heads), beta)
    log_decay = -rng.exponential(size=beta.shape) if not decays else rng.choice(decays, size=beta.shape)
    q, k, v, y_bar = (jnp.asarray(a, dtype) for a in (q, k, v, y_bar))
    beta, log_decay, initial, last_bar = (jnp.asarray(a, state) for a in (beta, log_decay, initial, last_bar))
    return q, k, v, beta, None if decays == () else log_decay, initial, y_bar, last_bar


def with_gradient(function):
    @jax.jit
    def both(*arguments):
        outputs, pullback = jax.vjp(function, *arguments[:6])
        return outputs, pullback(arguments[6:])

    return both


RUN = {p: with_gradient(functools.partial(delta_rule, platform=p, interpret=True)) for p in PLATFORMS}


def check(got, arguments, digits=2.0**-23, additions=None):
    """Every output and gradient: off by less than the rounding of T + K additions of the largest number there."""
    exact = [None if a is None else np.asarray(a, np.float64) for a in arguments]
    want = oracle.delta_rule(*exact[:6]), oracle.delta_rule_gradient(*exact)
    additions = additions or arguments[0].shape[1] + arguments[0].shape[3]
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert g.shape == w.shape
        np.testing.assert_allclose(np.asarray(g, np.float64), w, rtol=0, atol=additions * digits * np.abs(w).max())


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize(
    ("sizes", "decays"),
    [((2, 37, 2, 4, 72, 40), None), ((1, 1, 1, 3, 16, 5), ())],
    ids=["blocks_of_keys_and_columns", "one_step"],
)
def test_odd_sizes_equal_the_oracle(platform, sizes, decays):
    arguments = make(*sizes, decays=decays)
    check(RUN[platform](*arguments), arguments)


SEVERAL_CHUNKS = (1, 150, 1, 2, 5, 3)  # the last one not whole


@pytest.mark.parametrize("platform", PLATFORMS)
def test_extreme_decays_stay_finite_and_right(platform):
    arguments = make(*SEVERAL_CHUNKS, decays=[0, -50, -1e-3, -0.5, -np.inf, -1e-30], seed=1)
    check(RUN[platform](*arguments), arguments)


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("beta", [0, 1, 1.9, 2])
def test_a_key_that_repeats_stays_right(platform, beta):
    """The powers of the triangular system's matrix reach 2^C and beyond, its inverse no more than 2.

    Of the product of two such inverses with what stands between them, every sum has terms up to 2 x 2 times the result.
    """
    arguments = make(*SEVERAL_CHUNKS, decays=[0.0], beta=beta, same=True)
    check(RUN[platform](*arguments), arguments, additions=4 * 155)


@pytest.mark.parametrize("platform", PLATFORMS)
def test_chunks_of_four_blocks_are_inverted(platform):
    """Chunks as long as those of 16-bit arrays, in float32.

    Rounding L alone changes M by M dL M: C^2 / 2 terms of random sign, each up to 2 x 2 x 2 x 2^-24, so that one standard
    deviation is 2.8 C 2^-23. Four are allowed.
    """
    q, k, _, beta, decay, *_ = make(1, 64, 1, 1, 4, 3, beta=2, same=True, decays=[0.0, -1e-3])
    plan = tiles(platform, 1, 64, 4, 3, jnp.bfloat16)
    assert plan.chunk == 64
    if platform == "gpu":
        got = gpu.inverses(k, beta, decay, plan, interpret=True)
    else:
        got = tpu.prepare(q, k, beta, decay, plan, interpret=True)[0]
    between = np.cumsum(np.asarray(decay, float)[0, :, 0])
    lower = 2 * np.tril(np.exp(between[:, None] - between[None]), -1)  # one key of length 1, beta = 2
    np.testing.assert_allclose(got.reshape(64, 64), np.linalg.inv(np.eye(64) + lower), atol=12 * 64 * 2.0**-23)


@pytest.mark.parametrize("platform", PLATFORMS)
def test_bfloat16_is_stored_but_not_accumulated(platform):
    """Products round their operands to 8 bits; sums over time stay float32.

    The gradient of a log decay adds up the rounding of the 64 steps of a chunk: in the mean 8 times that of a step.
    """
    arguments = make(1, 150, 1, 1, 8, 8, dtype=jnp.bfloat16)
    got = RUN[platform](*arguments)
    assert got[0][0].dtype == jnp.bfloat16 and got[0][1].dtype == jnp.float32
    assert [g.dtype for g in got[1]] == [a.dtype for a in arguments[:6]]
    check(got, arguments, 2.0**-8, additions=8)


def test_the_reference_equals_the_oracle():
    arguments = make(2, 70, 2, 4, 3, 5)
    check(with_gradient(reference)(*arguments), arguments)


def test_what_fits_no_tile_runs_the_reference(monkeypatch, float64):
    """Wide states and float64: the same numbers without a kernel."""
    assert not fits("gpu", 300, 4, jnp.float32) and not fits("tpu", 4, 600, jnp.float32)
    assert not fits("gpu", 4, 4, jnp.float64)
    for module in (gpu, tpu):
        monkeypatch.setattr(module, "forward", None)
    arguments = make(1, 5, 1, 1, 2, 2, dtype=np.float64)
    check(with_gradient(functools.partial(delta_rule, platform="gpu"))(*arguments), arguments, 2.0**-50)


def test_few_rows_are_spread_over_more_programs():
    many, few = (tiles("gpu", rows, 4096, 128, 128, jnp.bfloat16) for rows in (256, 8))
    assert few.width < many.width


def test_the_scan_takes_the_kernel_on_accelerators_only():
    arguments = make(1, 37, 1, 2, 5, 3)[:6]
    y, last = gated_delta_rule(*arguments, method="pallas")
    for got, want in zip((y, last), gated_delta_rule(*arguments, method="sequential"), strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=42 * 2.0**-23 * np.abs(want).max())
    for platform, has in {"cpu": False, "gpu": True, "tpu": True}.items():
        with compiling_for(platform):
            jaxpr = jax.make_jaxpr(lambda *a: gated_delta_rule(*a))(*arguments)
        assert ("pallas_call" in str(jaxpr)) == has


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_forward_and_backward_lower_for_hardware_that_is_not_here(platform, dtype):
    q, v = (jax.ShapeDtypeStruct((2, 300, heads, n), dtype) for heads, n in ((2, 64), (4, 128)))
    gate = jax.ShapeDtypeStruct((2, 300, 4), jnp.float32)
    state = jax.ShapeDtypeStruct((2, 4, 64, 128), jnp.float32)
    function = functools.partial(delta_rule, platform={"cuda": "gpu"}.get(platform, platform), interpret=False)

    def both(q, k, v, beta, decay, state, y_bar, last_bar):
        return jax.vjp(function, q, k, v, beta, decay, state)[1]((y_bar, last_bar))

    text = lower_for(platform, both, q, q, v, gate, gate, state, v, state)
    assert text.count({"cuda": "triton", "tpu": "tpu_custom_call"}[platform]) >= {"cuda": 5, "tpu": 3}[platform]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": (2, 3, 1, 5)}, "k must have the shape of q"),
        ({"q": (2, 0, 1, 4)}, "time >= 1"),
        ({"v": (2, 3, 4, 5), "q": (2, 3, 3, 4), "k": (2, 3, 3, 4)}, "multiple of 3"),
        ({"beta": (2, 3)}, r"beta must have shape \[2, 3, 2\], got \[2, 3\]"),
        ({"log_decay": (2, 3, 2, 4)}, r"log_decay must have shape \[2, 3, 2\], got \[2, 3, 2, 4\]"),
        ({"initial": (2, 2, 5, 4)}, r"initial must have shape \[2, 2, 4, 5\]"),
        ({"platform": "rocm"}, "not one of gpu, tpu"),
    ],
)
def test_wrong_arguments_are_refused(as_users_see_it, change, message):
    shapes = {"q": (2, 3, 1, 4), "k": (2, 3, 1, 4), "v": (2, 3, 2, 5), "beta": (2, 3, 2), "log_decay": (2, 3, 2)}
    arguments = {name: jnp.ones(shape) for name, shape in shapes.items()}
    arguments |= {n: jnp.ones(c) if isinstance(c, tuple) else c for n, c in change.items()}
    with pytest.raises(ValueError, match=message):
        delta_rule(**arguments)
