"""GSS: a gated unit around a small diagonal state space model.

Mehta, Gupta, Cutkosky, Neyshabur (2022), Long Range Language Modeling via Gated State Spaces.

With x_t [D], inner width F and the width E of the state space model, which is the smaller one:

    v_t = gelu(W_v x_t) [F]       u_t = gelu(W_u x_t) [E]
    h_t = exp(Lambda) h_{t-1} + (exp(Lambda) - 1) / Lambda u_t       [E, N] complex; Lambda [N] for all channels
    s_t = Re sum_n C h_t + d u_t                                     C [E, N] complex, d [E]
    y_t = W_o (v_t (W_s s_t))                                        elementwise product of [F]

It is DSS (exp) with step size 1 and Lambda = -exp(Lambda_re) + i exp(Lambda_im), where Lambda_re, Lambda_im, C and d
start at random normal numbers. Forms and state as in S4D (``zoo.layers.diagonal_system``). The norm before and the
residual after are those of ``zoo.models.Block``. The linear maps have no biases.

Time O(B T (D F + D E + E F) + B E T (log T + N)); state: N complex numbers per channel of u and row.
"""

from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Complex, Float

from zoo.checks import check_positive, check_sequence, check_state
from zoo.dtypes import accumulator
from zoo.layers.diagonal_system import diagonal_system
from zoo.layers.discretization import discretize
from zoo.registry import register


@struct.dataclass
class GSSState:
    """Carried state: ``hidden`` [B, E, N] complex."""

    hidden: Complex[Array, "B E N"]


def gss(
    params: Mapping[str, Array],
    x: Float[Array, "B T D"],
    state: GSSState | None = None,
    *,
    reset: Bool[Array, "B T"] | None = None,
    form: str = "auto",
) -> tuple[Float[Array, "B T D"], GSSState]:
    """The layer of the module docstring.

    Args:
      params: ``gate`` [D, F], ``input`` [D, E], ``expand`` [E, F], ``output`` [F, D]; ``Lambda_re``, ``Lambda_im`` [N];
        ``C_re``, ``C_im`` [E, N]; ``skip`` [E].
      x: inputs; products run in their dtype.
      state: state before the first token; None for the start.
      reset: True at the first token of a new document.
      form: "auto", "kernel" or "scan", see ``zoo.layers.diagonal_system``.

    Returns:
      (y, state after the last token); y has x's dtype.
    """
    wide = accumulator(x.dtype)
    v, u = (jax.nn.gelu(x @ params[name].astype(x.dtype), approximate=False) for name in ("gate", "input"))
    u = u.astype(wide)
    real, imag, c_re, c_im = (params[name].astype(wide) for name in ("Lambda_re", "Lambda_im", "C_re", "C_im"))
    readout = jax.lax.complex(c_re, c_im)
    eigenvalues = jnp.broadcast_to(jax.lax.complex(-jnp.exp(real), jnp.exp(imag)), readout.shape)
    decay, gain = discretize(eigenvalues, jnp.ones(readout.shape, wide))
    initial = None if state is None else state.hidden
    s, last = diagonal_system(decay, gain, readout, u, initial, reset=reset, form=form)
    s = (s + params["skip"] * u).astype(x.dtype)
    y = (v * (s @ params["expand"].astype(x.dtype))) @ params["output"].astype(x.dtype)
    return y, GSSState(last)


@register("gss", variants={"default": {"state_dim": 3, "inner_dim": 10, "ssm_dim": 4}})
class GSS(nn.Module):
    """Gated state space layer: a diagonal state space model of reduced width inside of a gated unit.

    Attributes:
      dim: width D of input and output.
      inner_dim: width F of the gate; None: 3 D.
      ssm_dim: width E of the state space model; None: D / 4, at least 1.
      state_dim: number N of complex modes, the same for all channels.
      dtype: compute dtype of the products; the state space model runs in at least float32.
    """

    dim: int
    inner_dim: int | None = None
    ssm_dim: int | None = None
    state_dim: int = 256
    dtype: str = "float32"

    causal: ClassVar[bool] = True
    paper: ClassVar[str] = "Mehta et al. 2022, Long Range Language Modeling via Gated State Spaces"

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], state: GSSState | None = None, *, reset: Bool[Array, "B T"] | None = None
    ) -> tuple[Float[Array, "B T D"], GSSState]:
        check_sequence(x, self.dim, reset)
        inner, width = self._sizes()
        for name, value in (("inner_dim", inner), ("ssm_dim", width), ("state_dim", self.state_dim)):
            check_positive(name, value)
        if state is not None:
            check_state(state, self.initial_state(x.shape[0]))
        dense, normal = nn.initializers.lecun_normal(), nn.initializers.normal(1.0)
        declared = {
            "gate": (dense, (self.dim, inner)), "input": (dense, (self.dim, width)), "expand": (dense, (width, inner)),
            "output": (dense, (inner, self.dim)), "Lambda_re": (normal, (self.state_dim,)),
            "Lambda_im": (normal, (self.state_dim,)), "C_re": (normal, (width, self.state_dim)),
            "C_im": (normal, (width, self.state_dim)), "skip": (normal, (width,)),
        }  # fmt: skip
        params = {name: self.param(name, *how) for name, how in declared.items()}
        return gss(params, x.astype(self.dtype), state, reset=reset)

    def _sizes(self) -> tuple[int, int]:
        """(F, E)."""
        inner = 3 * self.dim if self.inner_dim is None else self.inner_dim
        return inner, max(1, self.dim // 4) if self.ssm_dim is None else self.ssm_dim

    def initial_state(self, batch_size: int, dtype: str | None = None) -> GSSState:
        """Zeros; the state is complex64 whatever ``dtype``."""
        return GSSState(jnp.zeros((batch_size, self._sizes()[1], self.state_dim), jnp.complex64))
