"""Which precision is used where: one rule for the whole zoo.

Parameters are float32. Projections run in a module's compute ``dtype``. Whatever is carried through time (states,
decays, softmax statistics) is accumulated in ``accumulator(dtype)``: at least float32, and float64 or complex128 when
the input already is.
"""

import jax.numpy as jnp
from jax.typing import DTypeLike


def accumulator(*dtypes: DTypeLike) -> jnp.dtype:
    """Returns the dtype in which a recurrence over values of ``dtypes`` is accumulated (at least float32)."""
    return jnp.promote_types(jnp.result_type(*dtypes), jnp.float32)
