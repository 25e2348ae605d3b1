"""The laws can fail: each of these mixers breaks one promise, and the law meant for it notices."""

from collections.abc import Callable
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

from tests.laws.laws import DIM, LAWS, Subject
from zoo.checks import check_sequence, check_state
from zoo.registry import _ENTRIES, register


@struct.dataclass
class LeakyState:
    hidden: jax.Array


def leaky(decay, x, hidden, reset):
    """h_t = decay h_{t-1} + x_t, y = h: the sound mixer that the broken ones depart from."""

    def step(h, inputs):
        x_t, r_t = inputs
        h = jnp.where(r_t[:, None], 0, h) * decay + x_t
        return h, h

    last, y = jax.lax.scan(step, hidden, (x.swapaxes(0, 1), reset.swapaxes(0, 1)))
    return y.swapaxes(0, 1), last


@jax.custom_vjp
def wrong_gradient(x):
    return x


wrong_gradient.defvjp(lambda x: (x, None), lambda _, g: (1.01 * g,))

BREAKS: dict[str, Callable] = {
    "none": leaky,
    "leaks the future": lambda d, x, h, r: leaky(d, x + 1e-3 * jnp.roll(x, -1, axis=1), h, r),
    "forgets the state at a cut": lambda d, x, h, r: leaky(d, x, jnp.zeros_like(h), r),
    "mixes the batch": lambda d, x, h, r: leaky(d, x + 1e-3 * jnp.mean(x, axis=0), h, r),
    "ignores reset": lambda d, x, h, r: leaky(d, x, h, jnp.zeros_like(r)),
    "wrong gradient": lambda d, x, h, r: leaky(d, wrong_gradient(x), h, r),
    "wrong value": lambda d, x, h, r: leaky(d * (1 + 1e-6), x, h, r),
    "builds a T x T matrix": lambda d, x, h, r: (
        leaky(d, x, h, r)[0] + 0 * jnp.sum(jnp.cumsum(x[:, :, None] * x[:, None], axis=1), axis=(2,)),
        leaky(d, x, h, r)[1],
    ),
}


class Leaky(nn.Module):
    """A leaky sum with a fault to order."""

    dim: int
    fault: str = "none"
    dtype: str = "float32"

    causal: ClassVar[bool] = True
    paper: ClassVar[str] = "none: a test subject"

    def __eq__(self, other):
        return self.fault != "has a setting that describe does not know" and self.fault == other.fault

    @nn.compact
    def __call__(self, x, state=None, *, reset=None):
        if self.fault != "checks nothing":
            check_sequence(x, self.dim, reset)
            if state is not None:
                check_state(state, self.initial_state(x.shape[0]))
        decay = self.param("decay", nn.initializers.constant(0.9), (self.dim,))
        x = x.astype(self.dtype)
        hidden = self.initial_state(x.shape[0]).hidden if state is None else state.hidden
        reset = jnp.zeros(x.shape[:2], bool) if reset is None else reset
        dtype = jnp.promote_types(x.dtype, jnp.float32)
        y, last = BREAKS.get(self.fault, leaky)(decay.astype(dtype), x.astype(dtype), hidden.astype(dtype), reset)
        if self.fault == "gives NaN when long" and x.shape[1] > 1000:
            y = y * jnp.nan
        if self.fault == "rounds too coarsely" and self.dtype == "bfloat16":
            y = jnp.round(y)
        if self.fault == "ignores its compute dtype":
            return y.astype(jnp.float32), LeakyState(last)
        return y.astype(x.dtype), LeakyState(last)

    def initial_state(self, batch_size, dtype=None):
        return LeakyState(jnp.zeros((batch_size, self.dim)))


def oracle(module, params, x, reset):
    y, h = np.zeros_like(x), np.zeros(x.shape[::2])
    for t in range(x.shape[1]):
        h = np.where(reset[:, t, None], 0, h) * params["decay"] + x[:, t]
        y[:, t] = h
    return y


def obeys(fault: str, law: str) -> bool:
    try:
        LAWS[law](Subject(Leaky(DIM, fault), oracle))
    except AssertionError:
        return False
    return True


@pytest.fixture(autouse=True)
def registered_only_here(as_users_see_it):
    register("leaky_for_tests", variants={})(Leaky)
    yield
    _ENTRIES.pop("leaky_for_tests")


@pytest.mark.parametrize("law", LAWS)
def test_a_sound_mixer_obeys_every_law(law):
    assert obeys("none", law)


@pytest.mark.parametrize(
    ("fault", "law"),
    [
        ("leaks the future", "causality"),
        ("forgets the state at a cut", "cut"),
        ("mixes the batch", "batch"),
        ("ignores reset", "reset"),
        ("wrong gradient", "oracle_and_gradient"),
        ("wrong value", "oracle_and_gradient"),
        ("ignores its compute dtype", "precision"),
        ("rounds too coarsely", "precision"),
        ("has a setting that describe does not know", "describe"),
        ("builds a T x T matrix", "long"),
        ("gives NaN when long", "long"),
        ("checks nothing", "errors"),
    ],
)
def test_a_broken_mixer_is_caught(fault, law):
    assert not obeys(fault, law)
