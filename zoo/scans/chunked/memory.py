"""What a memory that is written at test time is: a function of named weights, and its gradient of every token.

A memory y = M(x) is given as a function ``memory(use, x)`` of rows x [*B, C, K]: it calls ``use(name, z)`` once for every
weight that it has, and gets back what that weight makes of the rows z. There are two kinds of weights:

    a matrix [*B, I, O]    use(name, z) = z W        z [*B, C, I]
    a vector [*B, N]       use(name, z) = z * w      z [*B, C, N]; a bias is a vector that multiplies ones

Everything else in the memory (nonlinearities, norms, residuals) is free. A two-layer memory:

    def memory(use, x):
        return use("W1", jax.nn.silu(use("W0", x)))

So the memory is written down once, and the scans decide which weights a row meets: the same for all rows
(``apply_memory``), others for every row, or other weights for every row that are never made (``zoo.scans.memory_descent``).

Every weight is linear in ``use``, so that the gradient of token j's loss is an outer product (a product, for a vector) of
two rows, h_j the input of ``use`` and delta_j the derivative of the loss with respect to its output:

    d loss_j / d W = h_j^T delta_j      ``token_gradients`` returns (h, delta) for all weights and tokens
"""

from collections.abc import Callable, Mapping
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

Use = Callable[[str, Array], Array]
Memory = Callable[[Use, Array], Array]
Loss = Callable[[Array, Array], Array]
matmul = partial(jnp.matmul, precision=lax.Precision.HIGHEST)


def squared_error(prediction: Float[Array, "*B C V"], target: Float[Array, "*B C V"]) -> Float[Array, ""]:
    """||prediction - target||^2 summed over channels and tokens: its gradient has the factor 2."""
    return jnp.sum((prediction - target) ** 2)


def apply_weight(weight: Float[Array, "..."], z: Float[Array, "*B C I"]) -> Float[Array, "*B C O"]:
    """One weight for all C rows: z W for a matrix [*B, I, O], z * w for a vector [*B, I]."""
    return matmul(z, weight) if weight.ndim == z.ndim else z * weight[..., None, :]


def apply_memory(
    memory: Memory, weights: Mapping[str, Float[Array, "..."]], x: Float[Array, "*B C K"]
) -> Float[Array, "*B C V"]:
    """M(x) with the same ``weights`` for all C rows."""
    return memory(lambda name, z: apply_weight(weights[name], z), x)


def token_gradients(
    memory: Memory,
    weights: Mapping[str, Float[Array, "..."]],
    k: Float[Array, "*B C K"],
    v: Float[Array, "*B C V"],
    loss: Loss = squared_error,
) -> tuple[dict[str, Float[Array, "*B C _"]], dict[str, Float[Array, "*B C _"]]]:
    """Gradients of every token's loss at the same ``weights``, as factors.

    Back-propagation stops at the outputs of ``use``: the weights' gradients, [C, I, O] numbers, are never made.

    Args:
      memory: as in the module docstring.
      weights: by name, matrices [*B, I, O] and vectors [*B, N].
      k: inputs of the memory.
      v: what it should answer.
      loss: (prediction, target) -> one number, a sum over tokens.

    Returns:
      (h, delta) by name: the gradient of token j is h_j^T delta_j for a matrix and h_j * delta_j for a vector.
    """

    def run(shifts):
        inputs = {}

        def use(name, z):
            inputs[name] = z
            return apply_weight(weights[name], z) + shifts[name]

        return loss(memory(use, k), v), inputs

    shifts = {name: jnp.zeros((*k.shape[:-1], w.shape[-1]), w.dtype) for name, w in weights.items()}
    value, pullback, inputs = jax.vjp(run, shifts, has_aux=True)
    (errors,) = pullback(jnp.ones_like(value))
    return inputs, errors


def squared_norms(
    inputs: Mapping[str, Float[Array, "*B C _"]],
    errors: Mapping[str, Float[Array, "*B C _"]],
    weights: Mapping[str, Float[Array, "..."]],
) -> Float[Array, "*B C"]:
    """Squared length of every token's gradient over all weights, from its factors."""
    total = 0.0
    for name, h in inputs.items():
        delta = errors[name]
        if weights[name].ndim == h.ndim:
            total = total + jnp.sum(h**2, axis=-1) * jnp.sum(delta**2, axis=-1)
        else:
            total = total + jnp.sum((h * delta) ** 2, axis=-1)
    return total
