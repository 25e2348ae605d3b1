"""Gates that are exponentials, kept in range by a running maximum.

The recurrence s_t = exp(g_t) s_{t-1} + exp(i_t) u_t, with i_t of either sign, overflows where s~_t = exp(-m_t) s_t does
not, with

    m_t = max(m_{t-1} + g_t, i_t)

the log of the largest weight that any step so far has in s_t (Milakov and Gimelshein 2018; Beck et al. 2024, xLSTM):

    s~_t = exp(g_t + m_{t-1} - m_t) s~_{t-1} + exp(i_t - m_t) u_t

Both exponents are at most 0, up to rounding, and one of them is 0. They are log decay and factor of any linear scan of
this package. s_t does not depend on m, so no gradient passes through m, and a rounding of m changes nothing: it cancels.
"""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from zoo.checks import check_floating


def stabilized_gates(
    log_decay: Float[Array, "B T ..."], log_inputs: Float[Array, "B T ..."], initial: Float[Array, "B ..."]
) -> tuple[Float[Array, "B T ..."], Float[Array, "B T ..."], Float[Array, "B T ..."]]:
    """Log decay and log factor of the inputs for the state exp(-m) s, and m, along axis 1.

    Args:
      log_decay: g, [B, T, ...]; -inf starts anew.
      log_inputs: i, [B, T, ...], finite.
      initial: [B, ...], m before the first step: -inf where the state is zero.

    Returns:
      (g_t + m_{t-1} - m_t, i_t - m_t, m_t), each [B, T, ...].

    Raises:
      TypeError: an argument is not floating-point.
      ValueError: shapes differ.
    """
    for name, array in (("log_decay", log_decay), ("log_inputs", log_inputs), ("initial", initial)):
        check_floating(name, array)
    if log_decay.shape != log_inputs.shape:
        raise ValueError(
            f"log_decay must have the shape of log_inputs {list(log_inputs.shape)}, got {list(log_decay.shape)}"
        )
    if initial.shape != (log_inputs.shape[0], *log_inputs.shape[2:]):
        raise ValueError(f"initial must have the shape of one step of log_inputs, got {list(initial.shape)}")
    g, i, start = (lax.stop_gradient(a) for a in (log_decay, log_inputs, initial))
    i = i.at[:, 0].max(start + g[:, 0])

    def compose(first, second):
        return first[0] + second[0], jnp.maximum(first[1] + second[0], second[1])

    maximum = i if i.shape[1] == 1 else lax.associative_scan(compose, (g, i), axis=1)[1]
    before = jnp.concatenate([start[:, None], maximum[:, :-1]], axis=1)
    return log_decay + (before - maximum), log_inputs - maximum, maximum


def previous_steps(initial: Float[Array, "B ..."], states: Float[Array, "B T ..."]) -> Float[Array, "B T ..."]:
    """The state before every step: ``initial``, then all of ``states`` but the last."""
    return jnp.concatenate([initial[:, None].astype(states.dtype), states[:, :-1]], axis=1)
