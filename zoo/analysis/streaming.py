"""What streaming costs: a sequence read one token at a time, the state carried along."""

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from zoo.analysis.counting import flops


def stream(module: Any, params: Any, x: Float[Array, "B T D"]) -> tuple[Float[Array, "B T D"], Any]:
    """Calls ``module`` on one token after another, in one compiled loop; returns (outputs, final state).

    Args:
      module: a mixer or a ``zoo.models.Stack``: ``apply(params, x, state) -> (y, state)``.
      params: its variables.
      x: inputs.
    """

    def step(state, x_t):
        y, state = module.apply(params, x_t[:, None], state)
        return state, y[:, 0]

    state, ys = jax.lax.scan(step, module.initial_state(x.shape[0]), jnp.moveaxis(x, 1, 0))
    return jnp.moveaxis(ys, 0, 1), state


def bytes_of(state: Any) -> int:
    """Bytes of all arrays in a carried state."""
    return sum(leaf.size * np.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(state))


def step_flops(module: Any, params: Any, dim: int) -> int:
    """Floating-point operations of one token in one row, with the state at hand."""
    x = jax.ShapeDtypeStruct((1, 1, dim), jnp.float32)
    return flops(lambda p, x, s: module.apply(p, x, s), params, x, jax.eval_shape(lambda: module.initial_state(1)))


def stream_seconds(module: Any, params: Any, tokens: int, dim: int, *, repeats: int = 7) -> float:
    """Wall-clock seconds to stream ``tokens`` tokens of one row: the fastest of ``repeats``, without compiling."""
    x = jnp.zeros((1, tokens, dim))
    run = jax.jit(lambda p, x: stream(module, p, x)[0])
    jax.block_until_ready(run(params, x))
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(run(params, x))
        seconds.append(time.perf_counter() - start)
    return min(seconds)
