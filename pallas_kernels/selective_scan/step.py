"""One step of the selective scan and its transpose, on [N, D] tiles: the body of the kernels of both platforms.

x, delta and their cotangents are rows [1, D]; b, c and theirs are columns [N, 1]; keep is None, a scalar or [1, 1].
"""

import jax.numpy as jnp


def decay_of(delta, a, keep):
    """exp(delta a), or 0 where the incoming state is not kept; [N, D]."""
    decay = jnp.exp(delta * a)
    return decay if keep is None else decay * keep


def forward(state, x, delta, a, b, keep):
    """The next state [N, D]."""
    return decay_of(delta, a, keep) * state + (delta * x) * b


def backward(carry, before, x, delta, a, b, c, keep, y_bar):
    """The transpose of one step: from the cotangent of its state as later steps see it, and that of y.

    Args:
      carry: [N, D].
      before: [N, D], the state before the step.
      x, delta, a, b, c, keep: of the step.
      y_bar: [1, D].

    Returns:
      (carry for the step before, x_bar, delta_bar, a_bar [N, D], b_bar, c_bar).
    """
    decay = decay_of(delta, a, keep)
    kept = decay * before
    drive = delta * x
    carry = carry + y_bar * c
    c_bar = jnp.sum(y_bar * (kept + drive * b), axis=1, keepdims=True)
    b_bar = jnp.sum(carry * drive, axis=1, keepdims=True)
    drive_bar = jnp.sum(carry * b, axis=0, keepdims=True)
    exponent_bar = carry * kept
    delta_bar = jnp.sum(exponent_bar * a, axis=0, keepdims=True) + drive_bar * x
    return decay * carry, drive_bar * delta, delta_bar, exponent_bar * delta, b_bar, c_bar
