"""Parameters of diagonal state space models with conjugate pairs, one system per channel.

Gu, Gupta, Goel, Re (2022), On the Parameterization and Initialization of Diagonal State Space Models. A system has
N/2 stored modes: Lambda, B, C [D, N/2] complex and a step size dt_d = exp(log_dt_d).

Initial eigenvalues, n = 0 .. N/2 - 1:

    lin     -1/2 + i pi n                          inv   -1/2 + i (N / pi) (N / (2n + 1) - 1)
    legs    the diagonal part of HiPPO-LegS        real  -(n + 1); the factor 2 stays
    random  real part -exp(g) / 2, imaginary part (N / 2) g', with g, g' standard normal

Re Lambda = -exp(log_neg_re) stays negative. B starts at 1, C is complex normal, log_dt uniform between log dt_min and
log dt_max.
"""

import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex

from zoo.checks import check_choice, check_positive
from zoo.layers.discretization import discretize
from zoo.layers.dplr import dplr
from zoo.layers.step_sizes import check_step_sizes, log_step_sizes

LAMBDA_INITS = ("lin", "inv", "legs", "real", "random")


def s4d_system(
    params: Mapping[str, Array], discretization: str = "zoh", dtype: Any = jnp.float32
) -> tuple[Complex[Array, "D N"], Complex[Array, "D N"], Complex[Array, "D N"]]:
    """(Abar, Bbar, 2 C): the arguments of ``zoo.layers.diagonal_system``, in the complex form of ``dtype``."""
    names = ("log_neg_re", "Lambda_im", "B_re", "B_im", "C_re", "C_im")
    log_neg_re, imag, b_re, b_im, c_re, c_im = (params[name].astype(dtype) for name in names)
    eigenvalues = jax.lax.complex(-jnp.exp(log_neg_re), imag)
    step = jnp.broadcast_to(jnp.exp(params["log_dt"].astype(dtype))[:, None], eigenvalues.shape)
    decay, gain = discretize(eigenvalues, step, discretization)
    return decay, gain * jax.lax.complex(b_re, b_im), 2 * jax.lax.complex(c_re, c_im)


def s4d_eigenvalues(init: str, modes: int) -> np.ndarray:
    """The initial eigenvalues [N/2] of the module docstring, all but "random"; N/2 = ``modes``."""
    check_choice("lambda_init", init, LAMBDA_INITS[:-1])
    n = np.arange(modes)
    if init == "lin":
        return -0.5 + 1j * np.pi * n
    if init == "inv":
        return -0.5 + 1j * (2 * modes / np.pi) * (2 * modes / (2 * n + 1) - 1)
    if init == "real":
        return -(n + 1) + 0j
    return dplr("legs", 2 * modes).eigenvalues


def s4d_parameters(
    module: nn.Module,
    channels: int,
    *,
    state_dim: int,
    lambda_init: str,
    dt_min: float,
    dt_max: float,
    directions: int = 1,
) -> dict[str, Array]:
    """Declares ``log_neg_re``, ``Lambda_im``, ``B_re``, ``B_im``, ``C_re``, ``C_im`` [D, N/2] and ``log_dt`` [D].

    Args:
      module: who owns the parameters.
      channels: D.
      state_dim: N, even.
      lambda_init: one of ``LAMBDA_INITS``.
      dt_min, dt_max: range of the step sizes.
      directions: 2 gives ``C_re`` and ``C_im`` a leading axis of two.

    Raises:
      ValueError: an option is not as above.
    """
    check_positive("state_dim", state_dim)
    if state_dim % 2:
        raise ValueError(f"state_dim must be even (half of it is stored), got {state_dim}")
    check_choice("lambda_init", lambda_init, LAMBDA_INITS)
    check_step_sizes(dt_min, dt_max)
    shape = (channels, state_dim // 2)

    def eigenvalue(part):
        def init(key):
            if lambda_init == "random":
                normal = jax.random.normal(key, shape)
                return normal + math.log(0.5) if part == "re" else shape[1] * normal
            values = s4d_eigenvalues(lambda_init, shape[1])
            values = np.log(-values.real) if part == "re" else values.imag
            return jnp.broadcast_to(jnp.asarray(values, jnp.float32), shape)

        return init

    normal = nn.initializers.normal(0.5**0.5)
    c_shape = shape if directions == 1 else (directions, *shape)
    return {
        "log_neg_re": module.param("log_neg_re", eigenvalue("re")),
        "Lambda_im": module.param("Lambda_im", eigenvalue("im")),
        "B_re": module.param("B_re", nn.initializers.ones, shape),
        "B_im": module.param("B_im", nn.initializers.zeros, shape),
        "C_re": module.param("C_re", normal, c_shape),
        "C_im": module.param("C_im", normal, c_shape),
        "log_dt": module.param("log_dt", log_step_sizes(dt_min, dt_max), shape[:1]),
    }
