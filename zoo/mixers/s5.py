"""S5: one multi-input, multi-output diagonal state space model per layer, computed by a scan.

Smith, Warrington, Linderman (2023), Simplified State Space Layers for Sequence Modeling.

With u_t [H] the input, P the state size, and step sizes dt_p = step_rescale * exp(log_step_p):

    continuous    x' = diag(Lambda) x + B u            Lambda [P], B [P, H], C [H, P] complex; D [H] real
    discrete      x_t = Lambda_bar * x_{t-1} + B_bar u_t
                  zoh       Lambda_bar = exp(Lambda dt),                       B_bar = ((Lambda_bar - 1) / Lambda) B
                  bilinear  Lambda_bar = (1 + Lambda dt/2) / (1 - Lambda dt/2),  B_bar = (dt / (1 - Lambda dt/2)) B
    output        y_t = Re(C x_t) + D * u_t
    activation    z = gelu(y);  "gelu": z   "full_glu": (W1 z + b1) * sigmoid(W2 z + b2)
                  "half_glu1": z * sigmoid(W2 z + b2)   "half_glu2": y * sigmoid(W2 z + b2)   "none": y

With ``conj_sym`` the eigenvalues come in conjugate pairs and one of each pair is stored: all the P above become P/2 and
y_t = 2 Re(C x_t) + D * u_t. Initialisation: J blocks of HiPPO-LegS of size P/J, whose normal part is diagonalised as
V diag(Lambda) V^*; B = V^* B0 and C = C0 V with random B0, C0; log_step uniform between log dt_min and log dt_max. With
``clip_eigs`` the real part of Lambda is kept at or below -1e-4, so that training cannot make the system unstable.

Bidirectional (its own mixer): a second scan runs from the end with the same Lambda_bar and B_bar, the two states are
concatenated, and C is [H, 2 P]. A document boundary cuts both directions.

``step_rescale`` = 1/k runs a trained layer on a signal sampled k times faster.
Time O(B T (H P + P)), parallel over time; state P (or P/2) complex numbers per row, none for the bidirectional form.
"""

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Complex, Float

from zoo.checks import check_choice, check_divides, check_positive, check_sequence, check_state
from zoo.dtypes import accumulator
from zoo.layers.discretization import DISCRETIZATIONS, discretize
from zoo.layers.hippo import legs_eigen
from zoo.layers.output_activation import activation_parameters, output_activation
from zoo.registry import register
from zoo.scans import linear_scan

C_INITS = ("lecun_normal", "complex_normal")
PAPER = "Smith et al. 2023, Simplified State Space Layers for Sequence Modeling"


@struct.dataclass
class S5State:
    """Carried state: ``hidden`` [B, P] complex ([B, P/2] with conjugate symmetry)."""

    hidden: Complex[Array, "B P"]


def s5(
    params: Mapping[str, Array],
    x: Float[Array, "B T H"],
    state: S5State,
    *,
    discretization: str = "zoh",
    conj_sym: bool = True,
    clip_eigs: bool = True,
    step_rescale: float = 1.0,
    activation: str = "none",
    reset: Bool[Array, "B T"] | None = None,
    method: str = "auto",
) -> tuple[Float[Array, "B T H"], S5State]:
    """The layer of the module docstring.

    Args:
      params: ``Lambda_re``, ``Lambda_im``, ``log_step`` [P]; ``B_re``, ``B_im`` [P, H]; ``C_re``, ``C_im`` [H, P];
        ``D`` [H]; ``W2``, ``b2`` for the gated activations, ``W1``, ``b1`` for full_glu ([H, H], [H]). With
        ``conj_sym`` P is the number of stored modes.
      x: inputs u.
      state: state before the first token.
      discretization: "zoh" or "bilinear".
      conj_sym: the stored modes are one of each conjugate pair.
      clip_eigs: keep Re Lambda <= -1e-4.
      step_rescale: factor on the step sizes.
      activation: see ``zoo.layers.output_activation``.
      reset: True at the first token of a new document.
      method: how the scan is computed, see ``zoo.scans.linear_scan``.

    Returns:
      (y, state after the last token); y has x's dtype.
    """
    decay, drive = _system(params, x, discretization, clip_eigs, step_rescale)
    if reset is not None:
        decay = jnp.where(reset[..., None], 0, decay)
    hidden, last = linear_scan(decay, drive, state.hidden, method=method)
    return _output(params, x, hidden, conj_sym, activation), S5State(last)


def s5_bidirectional(
    params: Mapping[str, Array],
    x: Float[Array, "B T H"],
    *,
    discretization: str = "zoh",
    conj_sym: bool = True,
    clip_eigs: bool = True,
    step_rescale: float = 1.0,
    activation: str = "none",
    reset: Bool[Array, "B T"] | None = None,
    method: str = "auto",
) -> Float[Array, "B T H"]:
    """The bidirectional layer: as ``s5``, but ``C_re``, ``C_im`` are [H, 2 P], over [forward, backward] states."""
    decay, drive = _system(params, x, discretization, clip_eigs, step_rescale)
    ahead = behind = decay
    if reset is not None:
        ahead = jnp.where(reset[..., None], 0, decay)
        last = jnp.concatenate([reset[:, 1:], jnp.ones_like(reset[:, :1])], axis=1)  # last token of its document
        behind = jnp.where(last[..., None], 0, decay)
    forward, _ = linear_scan(ahead, drive, method=method)
    backward, _ = linear_scan(behind, drive, reverse=True, method=method)
    return _output(params, x, jnp.concatenate([forward, backward], axis=-1), conj_sym, activation)


def _system(params, x, discretization, clip_eigs, step_rescale):
    """(Lambda_bar [1, 1, P], B_bar u [B, T, P])."""
    dtype = accumulator(x.dtype)
    real, imag, log_step = (params[k].astype(dtype) for k in ("Lambda_re", "Lambda_im", "log_step"))
    eigenvalues = jax.lax.complex(jnp.minimum(real, -1e-4) if clip_eigs else real, imag)
    decay, gain = discretize(eigenvalues, step_rescale * jnp.exp(log_step), discretization)
    drive = jax.lax.complex(*((x @ params[k].T.astype(x.dtype)).astype(dtype) for k in ("B_re", "B_im")))
    return decay[None, None], gain * drive


def _output(params, x, hidden, conj_sym, activation):
    """Re(C h) + D u and the activation, in x's dtype."""
    y = hidden.real @ params["C_re"].T - hidden.imag @ params["C_im"].T
    y = ((2 if conj_sym else 1) * y + params["D"] * x).astype(x.dtype)
    return output_activation(params, y, activation)


def _declare(module: Any, directions: int) -> dict[str, Array]:
    """Checks the options of ``module`` and declares its parameters, C for so many directions."""
    h, p, blocks = module.dim, module.state_dim, module.blocks
    check_positive("state_dim", p)
    check_positive("blocks", blocks)
    check_divides("blocks", blocks, "state_dim", p)
    check_choice("discretization", module.discretization, DISCRETIZATIONS)
    check_choice("c_init", module.c_init, C_INITS)
    if module.conj_sym and (p // blocks) % 2:
        raise ValueError(f"conj_sym needs blocks of an even size, got state_dim / blocks = {p // blocks}")
    if not 0 < module.dt_min <= module.dt_max:
        raise ValueError(f"need 0 < dt_min <= dt_max, got dt_min={module.dt_min}, dt_max={module.dt_max}")
    if not module.step_rescale > 0:
        raise ValueError(f"step_rescale must be positive, got {module.step_rescale}")

    size = p // blocks
    stored = size // 2 if module.conj_sym else size
    eigen = legs_eigen(size)
    eigenvalues = np.tile(eigen.eigenvalues[:stored], blocks)
    basis = np.kron(np.eye(blocks), eigen.vectors[:, :stored])  # V [P, stored modes], block-diagonal
    modes = blocks * stored

    def into(key):  # V^* B0
        return jnp.asarray(basis.conj().T) @ (jax.random.normal(key, (p, h)) * h**-0.5)

    def out_of(key):
        def one(key):
            if module.c_init == "complex_normal":
                return jax.random.normal(key, (h, modes), jnp.complex64)
            return jax.random.normal(key, (h, p), jnp.complex64) * (2 / p) ** 0.5 @ jnp.asarray(basis)  # C0 V

        return jnp.concatenate([one(k) for k in jax.random.split(key, directions)], axis=1)

    def log_step(key):
        return jax.random.uniform(key, (modes,), minval=math.log(module.dt_min), maxval=math.log(module.dt_max))

    def complex_parameter(name, init):
        """Declares name_re and name_im, drawn together."""
        # One key for both parts; outside of init Flax only looks at the shapes.
        key = module.make_rng("params") if module.is_initializing() else jax.random.key(0)
        return {
            f"{name}_{part}": module.param(f"{name}_{part}", lambda _, f=f: f(init(key)).astype(jnp.float32))
            for part, f in (("re", jnp.real), ("im", jnp.imag))
        }

    params = complex_parameter("Lambda", lambda _: jnp.asarray(eigenvalues))
    params |= complex_parameter("B", into) | complex_parameter("C", out_of)
    params["D"] = module.param("D", nn.initializers.normal(1.0), (h,))
    params["log_step"] = module.param("log_step", log_step)
    return params | activation_parameters(module, module.activation, h)


def _options(module: Any) -> dict[str, Any]:
    """What the pure functions need to know of ``module``."""
    names = ("discretization", "conj_sym", "clip_eigs", "step_rescale", "activation")
    return {name: getattr(module, name) for name in names}


@register(
    "s5",
    variants={
        "default": {"state_dim": 8, "blocks": 2},
        "bilinear_full_glu": {
            "state_dim": 5, "conj_sym": False, "discretization": "bilinear", "activation": "full_glu",
        },
        "half_glu2": {"state_dim": 6, "activation": "half_glu2", "step_rescale": 0.5, "clip_eigs": False},
    },
)  # fmt: skip
class S5(nn.Module):
    """S5: multi-input, multi-output diagonal state space model with HiPPO initialisation.

    Attributes:
      dim: width H of input and output.
      state_dim: state size P, conjugate modes included.
      blocks: number J of HiPPO blocks at initialisation; divides ``state_dim``.
      discretization: "zoh" or "bilinear".
      activation: after the state space model: "gelu", "full_glu", "half_glu1", "half_glu2" or "none".
      conj_sym: store one of each conjugate pair of modes.
      clip_eigs: keep Re Lambda <= -1e-4.
      dt_min: smallest step size at initialisation.
      dt_max: largest step size at initialisation.
      step_rescale: factor on all step sizes: 1/k for signals sampled k times faster.
      c_init: "lecun_normal" (C = C0 V) or "complex_normal" (C itself, unit variance).
      dtype: compute dtype of the projections; the recurrence runs in complex64.
    """

    dim: int
    state_dim: int = 64
    blocks: int = 1
    discretization: str = "zoh"
    activation: str = "half_glu1"
    conj_sym: bool = True
    clip_eigs: bool = True
    dt_min: float = 0.001
    dt_max: float = 0.1
    step_rescale: float = 1.0
    c_init: str = "lecun_normal"
    dtype: str = "float32"

    causal: ClassVar[bool] = True
    paper: ClassVar[str] = PAPER

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], state: S5State | None = None, *, reset: Bool[Array, "B T"] | None = None
    ) -> tuple[Float[Array, "B T D"], S5State]:
        check_sequence(x, self.dim, reset)
        initial = self.initial_state(x.shape[0])
        if state is not None:
            check_state(state, initial)
        params = _declare(self, directions=1)
        return s5(params, x.astype(self.dtype), initial if state is None else state, reset=reset, **_options(self))

    def initial_state(self, batch_size: int, dtype: str | None = None) -> S5State:
        """Zeros; the state is complex64 whatever ``dtype``."""
        modes = self.state_dim // 2 if self.conj_sym else self.state_dim
        return S5State(jnp.zeros((batch_size, modes), jnp.complex64))


@register(
    "s5_bidirectional",
    variants={
        "default": {"state_dim": 8, "blocks": 2},
        "bilinear": {"state_dim": 5, "conj_sym": False, "discretization": "bilinear", "activation": "gelu"},
    },
)
class S5Bidirectional(nn.Module):
    """Bidirectional S5: the same system run from both ends, both states read out together.

    Attributes:
      dim, state_dim, blocks, discretization, activation, conj_sym, clip_eigs, dt_min, dt_max, step_rescale, c_init,
        dtype: as in ``S5``.
    """

    dim: int
    state_dim: int = 64
    blocks: int = 1
    discretization: str = "zoh"
    activation: str = "half_glu1"
    conj_sym: bool = True
    clip_eigs: bool = True
    dt_min: float = 0.001
    dt_max: float = 0.1
    step_rescale: float = 1.0
    c_init: str = "lecun_normal"
    dtype: str = "float32"

    causal: ClassVar[bool] = False
    paper: ClassVar[str] = PAPER

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], state: Any = None, *, reset: Bool[Array, "B T"] | None = None
    ) -> tuple[Float[Array, "B T D"], None]:
        check_sequence(x, self.dim, reset)
        if state is not None:
            raise ValueError("s5_bidirectional keeps no state (it reads the whole sequence), but got one")
        params = _declare(self, directions=2)
        return s5_bidirectional(params, x.astype(self.dtype), reset=reset, **_options(self)), None

    def initial_state(self, batch_size: int, dtype: str | None = None) -> None:
        """None: there is no state."""
        return None
