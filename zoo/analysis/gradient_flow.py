"""How gradients travel through time: norms of the Jacobian ds_t/ds_0 of any recurrence, and what bounds them.

Hochreiter (1991); Bengio, Simard, Frasconi (1994); Pascanu, Mikolov, Bengio (2013). For h_t = act(W h_{t-1} + ...):

    dh_t/dh_0 = prod_{u=1..t} diag(act'(a_u)) W,      ||dh_t/dh_0||_2 <= (gamma sigma_max(W))^t

with gamma = sup |act'|: 1 for tanh, ReLU and identity, 1/4 for the logistic sigmoid. sigma_max < 1/gamma is enough for
gradients to vanish; a spectral radius above 1/gamma is necessary for them to explode.

Products are renormalised at every step and norms are returned as logarithms: 0.125^400 is a number here, not zero.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from zoo.checks import check_choice, check_positive
from zoo.layers import split_floating
from zoo.mixers import Elman

SLOPES = {"tanh": 1.0, "sigmoid": 0.25, "relu": 1.0, "identity": 1.0}


def jacobian_log_norms(
    step: Callable[[Any, Any, Any], Any],
    params: Any,
    inputs: Any,
    state: Any,
    *,
    select: Callable[[Any], Any] = lambda state: state,
) -> Float[Array, " T"]:
    """Logarithms of the spectral norms of ds_t/ds_0, t = 1 .. T, along one sequence.

    Args:
      step: ``step(params, x_t, state) -> state``; ``mixer_step`` makes one from a mixer.
      params: its parameters.
      inputs: pytree of arrays [T, ...]: x_t is one slice.
      state: the state s_0 (of one sequence; for a mixer, of a batch of one). Real leaves only; integers are constants.
      select: part of the state whose block of the Jacobian is measured, e.g. ``lambda s: s.cell``.

    Returns:
      natural logarithms [T]; -inf where the Jacobian is exactly zero. Cost O(T S^3) for S numbers of state.
    """
    floating, others, join = split_floating(state)
    flat, unravel = ravel_pytree(floating)
    if jnp.iscomplexobj(flat):
        raise ValueError("jacobian_log_norms needs a real state")
    places = ravel_pytree(select(join(unravel(jnp.arange(flat.size, dtype=flat.dtype)), others)))[0].astype(int)

    def body(carry, x):
        flat, others, product, log_scale = carry

        def run(flat):
            new, new_others, _ = split_floating(step(params, x, join(unravel(flat), others)))
            return ravel_pytree(new)[0], new_others

        flat, push, others = jax.linearize(run, flat, has_aux=True)
        product = jax.vmap(push, in_axes=1, out_axes=1)(product)
        size = jnp.max(jnp.abs(product))
        size = jnp.where(size > 0, size, 1)
        product, log_scale = product / size, log_scale + jnp.log(size)
        block = product[places][:, places]
        return (flat, others, product, log_scale), jnp.log(jnp.linalg.norm(block, 2)) + log_scale

    start = (flat, others, jnp.eye(flat.size, dtype=flat.dtype), jnp.zeros((), flat.dtype))
    return jax.lax.scan(body, start, inputs)[1]


def mixer_step(module: Any) -> Callable[[Any, Array, Any], Any]:
    """``step(params, x_t [D], state of a batch of one) -> state`` of any causal mixer or stack of mixers."""

    def step(params, x, state):
        return module.apply(params, x[None, None], state)[1]

    return step


def log_norm_bound(weight: Float[Array, "H H"], activation: str, time: int) -> Float[Array, " T"]:
    """log (gamma sigma_max(W))^t for t = 1 .. time: no Jacobian of the recurrence exceeds it."""
    check_choice("activation", activation, SLOPES)
    check_positive("time", time)
    return jnp.arange(1, time + 1) * jnp.log(SLOPES[activation] * jnp.linalg.norm(weight, 2))


def weight_sweep(
    key: jax.Array,
    *,
    scales: Sequence[float] = (0.5, 1.0, 2.0),
    activations: Sequence[str] = tuple(SLOPES),
    dim: int = 32,
    time: int = 40,
    input_std: float = 1e-3,
) -> dict[str, dict[float, Float[Array, " T"]]]:
    """Jacobian log-norms of Elman networks with W_hh = scale times an orthogonal matrix, under small random inputs.

    Small inputs and zero biases keep tanh in its linear range, where its Jacobian is W_hh itself: the norm is
    scale^t. A sigmoid's slope is 1/4 there, a ReLU lets about half of the directions through.

    Returns:
      {activation: {scale: log norms [time]}}.
    """
    check_positive("time", time)
    key_w, key_u, key_x = jax.random.split(key, 3)
    orthogonal = jax.random.orthogonal(key_w, dim)
    fixed = {"input_kernel": jax.random.normal(key_u, (dim, dim)) * dim**-0.5, "bias": jnp.zeros(dim)}
    x = input_std * jax.random.normal(key_x, (time, dim))
    norms: dict[str, dict[float, Array]] = {}
    for activation in activations:
        rows = _elman_profiles(Elman(dim, activation=activation), fixed, orthogonal, x, jnp.asarray(scales))
        norms[activation] = {scale: rows[i] for i, scale in enumerate(scales)}
    return norms


@functools.partial(jax.jit, static_argnums=0)
def _elman_profiles(network, fixed, orthogonal, x, scales):
    def profile(scale):
        params = {"params": {**fixed, "recurrent_kernel": scale * orthogonal}}
        return jacobian_log_norms(mixer_step(network), params, x, network.initial_state(1))

    return jax.vmap(profile)(scales)
