"""H3: two state space models and two gates, a language model's layer between attention and S4.

Fu, Dao, Saab, Thomas, Rudra, Re (2022), Hungry Hungry Hippos: Towards Language Modeling with State Space Models.

With x_t [D], H heads of width P = D / H:

    q_t, k_t, v_t = W_q x_t, W_k x_t, W_v x_t             [H, P] each
    k'_t  = sum_{l < taps} S_l k_{t-l} + D_k k_t          the shift SSM: a down-shift matrix as A, e_1 as B, and so its
                                                          kernel is C = S [taps, D] itself
    kv_t  = k'_t v_t^T                                    [P, P] per head
    s_t   = SSM(kv)_t + D_s kv_t                          one diagonal SSM (S4D) per head, for all P^2 entries alike
    y_t   = W_o (s_t^T q_t)                               summed over the index of k'

The shift SSM lets k'_t remember what stood a few tokens before v_t, the diagonal one keeps the pairs, q_t looks them
up. With head width 1 all products are elementwise. The projections have no biases.

Forms of the two SSMs: FFT convolutions for whole sequences, a recurrence with documents and in decoding
(``zoo.layers.diagonal_system``, ``zoo.layers.long_convolution``). Initialisation: S normal with variance 1 / taps,
D_k and D_s normal, the SSM as in S4D.

Time O(B T (D^2 + D P (log T + N))), memory O(B T D P); state per row: N/2 complex numbers for each of the D P entries
of kv, and the last taps - 1 keys.
"""

from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Complex, Float

from zoo.checks import check_divides, check_positive, check_sequence, check_state
from zoo.dtypes import accumulator
from zoo.layers.diagonal_system import diagonal_system
from zoo.layers.long_convolution import causal_convolution
from zoo.layers.s4d_system import s4d_parameters, s4d_system
from zoo.registry import register


@struct.dataclass
class H3State:
    """Carried state: ``hidden`` [B, P, P, H, N/2] complex, of each entry of kv; ``keys`` [B, taps - 1, D]."""

    hidden: Complex[Array, "B P P H N"]
    keys: Float[Array, "B K D"]


def h3(
    params: Mapping[str, Array],
    x: Float[Array, "B T D"],
    state: H3State | None = None,
    *,
    reset: Bool[Array, "B T"] | None = None,
) -> tuple[Float[Array, "B T D"], H3State]:
    """The layer of the module docstring.

    Args:
      params: ``query``, ``key``, ``value``, ``output`` [D, D]; ``shift`` [taps, D], ``shift_skip`` [D]; ``skip`` [H]
        and, per head, the parameters of S4D: ``log_neg_re``, ``Lambda_im``, ``B_re``, ``B_im``, ``C_re``, ``C_im``
        [H, N/2], ``log_dt`` [H].
      x: inputs; projections run in their dtype.
      state: state before the first token; None for the start.
      reset: True at the first token of a new document.

    Returns:
      (y, state after the last token); y has x's dtype.
    """
    (batch, time, dim), wide = x.shape, accumulator(x.dtype)
    heads = params["skip"].shape[0]
    width = dim // heads
    q, k, v = (x @ params[name].astype(x.dtype) for name in ("query", "key", "value"))
    shifted, keys = causal_convolution(k, params["shift"], None if state is None else state.keys, reset=reset)
    k = (shifted + params["shift_skip"] * k).astype(wide)
    q, k, v = (a.astype(wide).reshape(batch, time, heads, width) for a in (q, k, v))
    # rows of the SSM are the entries (i, j) of kv of every row of the batch
    kv = jnp.einsum("bthi,bthj->bijth", k, v).reshape(-1, time, heads)
    initial = None if state is None else state.hidden.reshape(-1, *state.hidden.shape[3:])
    rows = None if reset is None else jnp.repeat(reset, width * width, axis=0)
    kept, hidden = diagonal_system(*s4d_system(params, "zoh", wide), kv, initial, reset=rows)
    kept = (kept + params["skip"] * kv).reshape(batch, width, width, time, heads)
    y = jnp.einsum("bthi,bijth->bthj", q, kept).reshape(batch, time, dim).astype(x.dtype)
    return y @ params["output"].astype(x.dtype), H3State(hidden.reshape(batch, width, width, heads, -1), keys)


@register(
    "h3",
    variants={
        "default": {"state_dim": 4, "head_dim": 1, "shift_size": 3, "dt_min": 0.05, "dt_max": 0.5},
        "heads": {"state_dim": 4, "head_dim": 4, "shift_size": 10, "dt_min": 0.05, "dt_max": 0.5},
    },
)
class H3(nn.Module):
    """H3: a shift and a diagonal state space model with two multiplicative gates.

    Attributes:
      dim: width D of input and output.
      state_dim: even state size N of the diagonal model, conjugate modes included.
      head_dim: width P of a head; divides ``dim``. The state grows with it.
      shift_size: taps of the shift model.
      lambda_init: initial eigenvalues, see ``zoo.layers.s4d_system``.
      dt_min: smallest step size at initialisation.
      dt_max: largest step size at initialisation.
      dtype: compute dtype of the projections; the state space models run in at least float32.
    """

    dim: int
    state_dim: int = 64
    head_dim: int = 1
    shift_size: int = 64
    lambda_init: str = "legs"
    dt_min: float = 0.001
    dt_max: float = 0.1
    dtype: str = "float32"

    causal: ClassVar[bool] = True
    paper: ClassVar[str] = "Fu et al. 2022, Hungry Hungry Hippos: Towards Language Modeling with State Space Models"

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], state: H3State | None = None, *, reset: Bool[Array, "B T"] | None = None
    ) -> tuple[Float[Array, "B T D"], H3State]:
        check_sequence(x, self.dim, reset)
        check_positive("head_dim", self.head_dim)
        check_positive("shift_size", self.shift_size)
        check_divides("head_dim", self.head_dim, "dim", self.dim)
        if state is not None:
            check_state(state, self.initial_state(x.shape[0]))
        return h3(self._params(), x.astype(self.dtype), state, reset=reset)

    def initial_state(self, batch_size: int, dtype: str | None = None) -> H3State:
        """Zeros; ``dtype`` is the storage dtype of the last keys, the rest is complex64."""
        width, heads = self.head_dim, self.dim // self.head_dim
        hidden = jnp.zeros((batch_size, width, width, heads, self.state_dim // 2), jnp.complex64)
        return H3State(hidden, jnp.zeros((batch_size, self.shift_size - 1, self.dim), dtype or self.dtype))

    def _params(self) -> dict[str, Array]:
        d, heads = self.dim, self.dim // self.head_dim
        dense, normal = nn.initializers.lecun_normal(), nn.initializers.normal
        params = {name: self.param(name, dense, (d, d)) for name in ("query", "key", "value", "output")}
        params["shift"] = self.param("shift", normal(self.shift_size**-0.5), (self.shift_size, d))
        params["shift_skip"] = self.param("shift_skip", normal(1.0), (d,))
        params["skip"] = self.param("skip", normal(1.0), (heads,))
        return params | s4d_parameters(
            self, heads, state_dim=self.state_dim, lambda_init=self.lambda_init, dt_min=self.dt_min, dt_max=self.dt_max
        )
