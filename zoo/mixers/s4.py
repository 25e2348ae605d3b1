"""S4: a state space model per channel with a HiPPO matrix, kept as diagonal plus low rank.

Gu, Goel, Re (2021), Efficiently Modeling Long Sequences with Structured State Spaces.

One system per channel d, u_t the channel's input, of real size N. In the basis where the HiPPO matrix is diagonal
plus low rank (``zoo.layers.dplr``) its state is M = N/2 complex modes and their conjugates:

    continuous  h' = A h + B u,  A = diag(Lambda) - P P^*      Lambda, B, C [M], P [M, r] complex, Re Lambda < 0
    bilinear    (2/dt - A) h_t = (2/dt + A) h_{t-1} + 2 B u_t, or h_t = Abar h_{t-1} + Bbar u_t; dt_d = exp(log_dt_d)
    output      y_t = 2 Re(C h_t) + D u_t

    step        s = E (F h - P P^* h + 2 B u),  h_new = s - E P (1 + P^* E P)^-1 P^* s,  E = 1 / (2/dt - Lambda),
                F = 2/dt + Lambda. P^* h runs over the modes and their conjugates: it is r real numbers. O(N r)
    kernel      K_l = 2 Re(C Abar^l Bbar) for l < L: the inverse FFT of its truncated generating function at the L-th
                roots w of unity, which is C~ (1 - w Abar)^-1 Bbar with C~ = C (1 - Abar^L). By the Woodbury identity,

                    (1 - w Abar)^-1 Bbar = dt (R - g R P (1 + g P^* R P)^-1 P^* R) B
                    R = 1 / ((1 - w) - g Lambda),  g = (1 + w) dt / 2

On the unit circle itself R is as large as 1 / (dt |Re Lambda|) near the frequency of a mode, and the two terms of the
Woodbury identity cancel almost all of it (LegT and Fourier have Re Lambda = 0: in float32 little would be left of
short kernels). So the roots are taken on the circle |w| = exp(-1/L), where R stays below L: C~ = C (1 - Abar^L / e),
and K_l is exp(l/L) times what the inverse FFT gives, by which rounding errors grow, e times at most.

The sums C~ R B, C~ R P, P^* R B, P^* R P are Cauchy kernels v / (z - dt Lambda) with z = 2 (1 - w) / (1 + w),
multiplied through by (1 + w) / 2: so written they have no pole where w = -1 (the middle frequency of an even L), and
any L will do.

Training and prefill take the kernel form: y = K * u + D u by FFT, plus 2 Re(C Abar^(l+1) h_{-1}), and the state after
the last step from powers of Abar as a dense real [N, N] matrix; nothing is kept per step and state. Decoding and
packed documents take the steps. C itself is the parameter, not C~: the same parameters hold for every length
(``truncate_readout`` and ``restore_readout`` convert weights that were stored as C~). By the FFT, an output of the
kernel form depends on later inputs within rounding.

Behind the system stands an activation (``zoo.layers.output_activation``), by default GELU, a linear map to 2 D
channels and a gated linear unit. Initialisation: Lambda, P, B from HiPPO-LegS (r = 1), LegT or Fourier (r = 2), Re
Lambda at most -1e-4, Im B within ``b_clip``; C complex normal; log_dt uniform between log dt_min and log dt_max.
``systems`` copies of (Lambda, P, B) are trained, each shared by D / systems neighbouring channels.

Bidirectional (its own mixer): a second kernel, with a C of its own, runs from the end, and both are added; C is [2,
D, M].

Time in the kernel form O(D (B T log T + T N r^2 + N^3 log T + B T N)), memory O(D T (B + N)); steps: O(B T D N r).
State: M complex numbers per channel and row, none for the bidirectional form.
"""

import math
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Complex, Float

from zoo.checks import check_choice, check_divides, check_positive, check_sequence, check_state
from zoo.dtypes import accumulator
from zoo.layers.diagonal_system import choose_form
from zoo.layers.dplr import MATRICES, dplr
from zoo.layers.output_activation import activation_parameters, output_activation
from zoo.layers.step_sizes import check_step_sizes, log_step_sizes
from zoo.layers.two_directions import two_directions
from zoo.registry import register
from zoo.scans import affine_scan, fft_convolution, recurrent_scan

# log of radius^L: the generating function is sampled at |w| = exp(-RADIUS_EXPONENT / L)
RADIUS_EXPONENT = 1.0
PAPER = "Gu et al. 2021, Efficiently Modeling Long Sequences with Structured State Spaces"


@struct.dataclass
class S4State:
    """Carried state: ``hidden`` [B, D, M] complex."""

    hidden: Complex[Array, "B D M"]


class S4System(NamedTuple):
    """A continuous DPLR system per channel and its step size.

    Attributes:
      eigenvalues: Lambda [D, M] complex, one of each conjugate pair.
      low_rank: P [D, r, M] complex.
      into: B [D, M] complex.
      readout: C [D, M] complex; y = 2 Re(C h).
      step: dt [D].
    """

    eigenvalues: Complex[Array, "D M"]
    low_rank: Complex[Array, "D R M"]
    into: Complex[Array, "D M"]
    readout: Complex[Array, "D M"]
    step: Float[Array, " D"]


def s4(
    params: Mapping[str, Array],
    x: Float[Array, "B T D"],
    state: S4State | None = None,
    *,
    activation: str = "none",
    reset: Bool[Array, "B T"] | None = None,
    form: str = "auto",
) -> tuple[Float[Array, "B T D"], S4State]:
    """The layer of the module docstring.

    Args:
      params: ``log_neg_re`` (log(-Re Lambda)), ``Lambda_im``, ``B_re``, ``B_im`` [S, M]; ``P_re``, ``P_im`` [S, r, M];
        ``C_re``, ``C_im`` [D, M]; ``log_dt``, ``D`` [D]; those of the activation. S divides D.
      x: inputs.
      state: state before the first token; None for the start.
      activation: see ``zoo.layers.output_activation``.
      reset: True at the first token of a new document: the scan form, then.
      form: "kernel", "scan" (step by step) or "auto": the kernel for more than one step without resets.

    Returns:
      (y, state after the last token); y has x's dtype.
    """
    u = x.astype(accumulator(x.dtype))
    initial = None if state is None else state.hidden
    y, last = s4_run(s4_system(params, u.dtype), u, initial, reset=reset, form=form)
    return output_activation(params, (y + params["D"] * u).astype(x.dtype), activation), S4State(last)


def s4_bidirectional(
    params: Mapping[str, Array],
    x: Float[Array, "B T D"],
    *,
    activation: str = "none",
    reset: Bool[Array, "B T"] | None = None,
    form: str = "auto",
) -> Float[Array, "B T D"]:
    """The bidirectional layer: as ``s4``, but ``C_re``, ``C_im`` are [2, D, M]: forward and backward kernel."""
    u = x.astype(accumulator(x.dtype))

    def run(direction, inputs, reset):
        one = {**params, "C_re": params["C_re"][direction], "C_im": params["C_im"][direction]}
        return s4_run(s4_system(one, u.dtype), inputs, reset=reset, form=form)[0]

    y = two_directions(run, u, reset)
    return output_activation(params, (y + params["D"] * u).astype(x.dtype), activation)


def s4_system(params: Mapping[str, Array], dtype: Any = jnp.float32) -> S4System:
    """The systems of all channels from the parameters of ``s4``, in ``dtype`` and its complex form."""
    p = {name: value.astype(dtype) for name, value in params.items()}
    channels = p["log_dt"].shape[0]

    def spread(real, imag):
        return jnp.repeat(jax.lax.complex(real, imag), channels // real.shape[0], axis=0)

    return S4System(
        spread(-jnp.exp(p["log_neg_re"]), p["Lambda_im"]), spread(p["P_re"], p["P_im"]), spread(p["B_re"], p["B_im"]),
        jax.lax.complex(p["C_re"], p["C_im"]), jnp.exp(p["log_dt"]),
    )  # fmt: skip


def s4_run(
    system: S4System,
    u: Float[Array, "B T D"],
    initial: Complex[Array, "B D M"] | None = None,
    *,
    reset: Bool[Array, "B T"] | None = None,
    form: str = "auto",
) -> tuple[Float[Array, "B T D"], Complex[Array, "B D M"]]:
    """2 Re(C h_t) for all t, and the last state; arguments as for ``s4``."""
    time = u.shape[1]
    hidden = jnp.zeros((len(u), *system.into.shape), system.into.dtype) if initial is None else initial
    hidden = hidden.astype(system.into.dtype)
    if choose_form(form, time, reset) == "scan":
        both = jnp.stack([hidden.real, hidden.imag], axis=1)
        states, last = recurrent_scan(_scan_step, u, both, _factors(system), reset=reset)
        y = jnp.einsum("btdm,dm->btd", states[:, :, 0], system.readout.real)
        y = 2 * (y - jnp.einsum("btdm,dm->btd", states[:, :, 1], system.readout.imag))
        return y, jax.lax.complex(last[:, 0], last[:, 1])
    with jax.default_matmul_precision("highest"):
        transition, gain = s4_dense(system)
        across = jnp.linalg.matrix_power(transition, time)  # Abar^T
        y = fft_convolution(u, _kernel(system, across, time))
        last = _final_state(transition, gain, u)
        if initial is not None:
            begin = _real(hidden)
            y = y + _response(transition, system.readout, begin, time)
            last = last + jnp.einsum("dij,bdj->bdi", across, begin)
    return y, jax.lax.complex(*jnp.split(last, 2, axis=-1))


class _Factors(NamedTuple):
    """What a step needs: E, F, P, (1 + P^* E P)^-1 [D, r, r] real, 2 B."""

    shrink: Array
    grow: Array
    low_rank: Array
    correction: Array
    into: Array


def _factors(system: S4System) -> _Factors:
    rate = 2 / system.step[:, None]
    shrink = 1 / (rate - system.eigenvalues)
    p = system.low_rank
    small = 2 * jnp.einsum("drm,dm,dsm->drs", p.conj(), shrink, p).real
    correction = jnp.linalg.inv(jnp.eye(p.shape[1], dtype=small.dtype) + small)
    return _Factors(shrink, rate + system.eigenvalues, p, correction, 2 * system.into)


def _step(factors: _Factors, hidden, u):
    """h_new [B, D, M] from h and u [B, D], in O(N r)."""

    def inside(h):
        return 2 * jnp.einsum("drm,bdm->bdr", factors.low_rank.conj(), h).real

    def outside(coefficients):
        return jnp.einsum("drm,bdr->bdm", factors.low_rank, coefficients)

    s = factors.shrink * (factors.grow * hidden - outside(inside(hidden)) + factors.into * u[..., None])
    return s - factors.shrink * outside(jnp.einsum("drs,bds->bdr", factors.correction, inside(s)))


def _scan_step(factors, state, u, keep):
    """``_step`` on states [B, 2, D, M], real and imaginary parts, as ``recurrent_scan`` wants it."""
    hidden = _step(factors, jax.lax.complex(state[:, 0], state[:, 1]), u)
    return jnp.stack([hidden.real, hidden.imag], axis=1)


def s4_step(
    system: S4System, hidden: Complex[Array, "B D M"], u: Float[Array, "B D"]
) -> tuple[Float[Array, "B D"], Complex[Array, "B D M"]]:
    """One step in linear time: (2 Re(C h_new), h_new)."""
    hidden = _step(_factors(system), hidden, u)
    return 2 * jnp.sum((system.readout * hidden).real, axis=-1), hidden


def s4_dense(system: S4System) -> tuple[Float[Array, "D N N"], Float[Array, "D N"]]:
    """(Abar, Bbar) as dense real matrices that act on [Re h, Im h], N = 2 M: the meaning of ``s4_step``.

    With c = 2 [Re C, -Im C] the output is c . [Re h, Im h].
    """
    factors, (channels, modes) = _factors(system), system.into.shape
    unit = jnp.eye(modes, dtype=system.into.dtype)
    basis = jnp.concatenate([unit, 1j * unit])[:, None]  # [N, 1, M]: mode by mode, real and then imaginary
    basis = jnp.broadcast_to(basis, (2 * modes, channels, modes))
    moved = _step(factors, basis, jnp.zeros((2 * modes, channels), system.step.dtype))
    gain = _step(factors, jnp.zeros_like(basis[:1]), jnp.ones((1, channels), system.step.dtype))
    return jnp.transpose(_real(moved), (1, 2, 0)), _real(gain)[0]


def _real(values):
    """[..., M] complex as [..., 2 M] real."""
    return jnp.concatenate([values.real, values.imag], axis=-1)


def truncate_readout(readout: Complex[Array, "D M"], across: Float[Array, "D N N"]) -> Complex[Array, "D M"]:
    """C~ = C (1 - Abar^L) from C and ``across`` = Abar^L: the L-step generating function of C is that of C~."""
    row = _real(readout.conj())
    row = row - jnp.einsum("di,dij->dj", row, across, precision="highest")
    return jax.lax.complex(*jnp.split(row, 2, axis=-1)).conj()


def restore_readout(truncated: Complex[Array, "D M"], across: Float[Array, "D N N"]) -> Complex[Array, "D M"]:
    """C from C~, the inverse of ``truncate_readout``: for weights that were stored as C~ of length L."""
    row = _real(truncated.conj())
    matrix = jnp.eye(across.shape[-1], dtype=across.dtype) - jnp.swapaxes(across, -1, -2)
    row = jnp.linalg.solve(matrix, row[..., None])[..., 0]
    return jax.lax.complex(*jnp.split(row, 2, axis=-1)).conj()


def s4_kernel(system: S4System, length: int) -> Float[Array, "L D"]:
    """K_l = 2 Re(C Abar^l Bbar) for l = 0 .. ``length`` - 1, even or odd."""
    check_positive("length", length)
    with jax.default_matmul_precision("highest"):
        return _kernel(system, jnp.linalg.matrix_power(s4_dense(system)[0], length), length)


def _kernel(system, across, length):
    """``s4_kernel`` with Abar^length given."""
    exponent = -RADIUS_EXPONENT / length - 2j * np.pi * np.arange(length // 2 + 1) / length
    minus = jnp.asarray(-np.expm1(exponent), system.into.dtype)  # 1 - w
    g = (system.step[:, None] / 2) * jnp.asarray(1 + np.exp(exponent), system.into.dtype)  # [D, frequencies]
    across = math.exp(-RADIUS_EXPONENT) * across
    rows = jnp.concatenate([truncate_readout(system.readout, across)[:, None], system.low_rank.conj()], axis=1)
    columns = jnp.concatenate([system.into[:, None], system.low_rank], axis=1)
    sums = _resolvent_sums(rows[:, :, None] * columns[:, None], minus, g, system.eigenvalues)
    cb, cp, pb, pp = sums[..., 0, 0], sums[..., 0, 1:], sums[..., 1:, 0], sums[..., 1:, 1:]
    inner = jnp.eye(pp.shape[-1], dtype=pp.dtype) + g[..., None, None] * pp
    if inner.shape[-1] == 1:
        solved = pb / inner[..., 0]
    else:
        solved = jnp.linalg.solve(inner, pb[..., None])[..., 0]
    generating = system.step[:, None] * (cb - g * jnp.sum(cp * solved, axis=-1))
    growth = np.exp(RADIUS_EXPONENT * np.arange(length) / length)
    return jnp.fft.irfft(generating, length, axis=-1).T * jnp.asarray(growth, system.step.dtype)[:, None]


@jax.checkpoint
def _resolvent_sums(weights, minus, g, eigenvalues):
    """Sum of weights / (minus - g Lambda) over the modes and their conjugates, [D, K, rows, columns].

    weights [D, rows, columns, M], minus [K], g [D, K], eigenvalues [D, M]. A pair of conjugates is one fraction
    (2 minus Re v - 2 g Re(v conj(Lambda))) / (minus^2 - 2 minus g Re Lambda + g^2 |Lambda|^2): half of the divisions.
    """
    m, g = minus[None, :, None], g[..., None]
    size = jnp.square(eigenvalues.real) + jnp.square(eigenvalues.imag)
    inverse = 1 / (m * m - 2 * m * g * eigenvalues.real[:, None] + g * g * size[:, None])  # [D, K, M]
    first = jnp.einsum("drcm,dkm->dkrc", 2 * weights.real, inverse)
    second = jnp.einsum("drcm,dkm->dkrc", 2 * (weights * eigenvalues.conj()[:, None, None]).real, inverse)
    return m[..., None] * first - g[..., None] * second


def _krylov(matrix, vector, count):
    """[v, A v, ..., A^(count-1) v] as columns [D, N, count], and A^count, by doubling."""
    table, factor = vector[..., None], matrix
    while table.shape[-1] < count:
        table = jnp.concatenate([table, factor @ table], axis=-1)
        factor = factor @ factor
    return table[..., :count]


def _final_state(transition, gain, u):
    """sum_s Abar^(T-1-s) Bbar u_s as [B, D, N] real: chunks by a matrix product, then a short scan over chunks."""
    batch, time, channels = u.shape
    size = math.isqrt(time - 1) + 1
    chunks = -(-time // size)
    padded = jnp.pad(u, ((0, 0), (chunks * size - time, 0), (0, 0))).reshape(batch, chunks, size, channels)
    parts = jnp.einsum("bijd,dnj->bidn", padded[:, :, ::-1], _krylov(transition, gain, size))
    return affine_scan(jnp.linalg.matrix_power(transition, size)[None, None], parts)[1]


def _response(transition, readout, begin, time):
    """2 Re(C Abar^(l+1) h_{-1}) for l < T as [B, T, D]; ``begin`` [B, D, N] real."""
    size = math.isqrt(time - 1) + 1
    chunks = -(-time // size)
    row = jnp.einsum("di,dij->dj", 2 * _real(readout.conj()), transition)
    rows = _krylov(jnp.swapaxes(transition, -1, -2), row, size)  # columns (C Abar^(j+1))^T
    nothing = jnp.zeros((len(begin), chunks, *begin.shape[1:]), begin.dtype)
    ends, _ = affine_scan(jnp.linalg.matrix_power(transition, size)[None, None], nothing, begin)
    starts = jnp.concatenate([begin[:, None], ends[:, :-1]], axis=1)
    y = jnp.einsum("bidn,dnj->bijd", starts, rows)
    return y.reshape(len(begin), chunks * size, -1)[:, :time]


def _declare(module: Any, directions: int) -> dict[str, Array]:
    """Checks the options of ``module`` and declares its parameters, C for so many directions."""
    check_positive("state_dim", module.state_dim)
    check_choice("hippo", module.hippo, MATRICES)
    if module.state_dim % 2:
        raise ValueError(f"state_dim must be even (half of it is stored), got {module.state_dim}")
    systems = module.dim if module.systems is None else module.systems
    check_positive("systems", systems)
    check_divides("systems", systems, "dim", module.dim)
    check_step_sizes(module.dt_min, module.dt_max)
    form = dplr(module.hippo, module.state_dim)
    bound = np.inf if module.b_clip is None else module.b_clip
    into = form.into.real + 1j * np.clip(form.into.imag, -bound, bound)

    def copies(values):
        return lambda _: jnp.broadcast_to(jnp.asarray(values, jnp.float32), (systems, *values.shape))

    c_shape = (module.dim, module.state_dim // 2)
    c_shape = c_shape if directions == 1 else (directions, *c_shape)
    normal = nn.initializers.normal(0.5**0.5)
    params = {
        "log_neg_re": module.param("log_neg_re", copies(np.log(np.maximum(-form.eigenvalues.real, 1e-4)))),
        "Lambda_im": module.param("Lambda_im", copies(form.eigenvalues.imag)),
        "P_re": module.param("P_re", copies(form.low_rank.real)),
        "P_im": module.param("P_im", copies(form.low_rank.imag)),
        "B_re": module.param("B_re", copies(into.real)),
        "B_im": module.param("B_im", copies(into.imag)),
        "C_re": module.param("C_re", normal, c_shape),
        "C_im": module.param("C_im", normal, c_shape),
        "log_dt": module.param("log_dt", log_step_sizes(module.dt_min, module.dt_max), (module.dim,)),
        "D": module.param("D", nn.initializers.normal(1.0), (module.dim,)),
    }
    return params | activation_parameters(module, module.activation, module.dim)


@register(
    "s4",
    variants={
        "default": {"state_dim": 6, "dt_min": 0.05, "dt_max": 0.5},
        "legt": {
            "state_dim": 4, "hippo": "legt", "systems": 2, "activation": "gelu", "dt_min": 0.05, "dt_max": 0.5,
        },
    },
)  # fmt: skip
class S4(nn.Module):
    """S4: state space model per channel with a HiPPO matrix in diagonal plus low rank form.

    Attributes:
      dim: width D of input and output.
      state_dim: even state size N of every channel.
      hippo: initial state matrix: "legs" (rank 1), "legt" or "fourier" (rank 2).
      systems: copies of the state matrix, each shared by dim / systems channels; None: one per channel.
      activation: after the system: "full_glu", "gelu", "half_glu1", "half_glu2" or "none".
      dt_min: smallest step size at initialisation.
      dt_max: largest step size at initialisation.
      b_clip: the initial Im B is kept within this; None: not clipped.
      form: "auto", "kernel" or "scan".
      dtype: dtype of inputs, outputs and the activation; the system runs in at least float32.
    """

    dim: int
    state_dim: int = 64
    hippo: str = "legs"
    systems: int | None = None
    activation: str = "full_glu"
    dt_min: float = 0.001
    dt_max: float = 0.1
    b_clip: float | None = 2.0
    form: str = "auto"
    dtype: str = "float32"

    causal: ClassVar[bool] = True
    paper: ClassVar[str] = PAPER

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], state: S4State | None = None, *, reset: Bool[Array, "B T"] | None = None
    ) -> tuple[Float[Array, "B T D"], S4State]:
        check_sequence(x, self.dim, reset)
        if state is not None:
            check_state(state, self.initial_state(x.shape[0]))
        return s4(
            _declare(self, 1), x.astype(self.dtype), state, activation=self.activation, reset=reset, form=self.form
        )

    def initial_state(self, batch_size: int, dtype: str | None = None) -> S4State:
        """Zeros; the state is complex64 whatever ``dtype``."""
        return S4State(jnp.zeros((batch_size, self.dim, self.state_dim // 2), jnp.complex64))


@register("s4_bidirectional", variants={"default": {"state_dim": 4, "hippo": "fourier", "dt_min": 0.05, "dt_max": 0.5}})
class S4Bidirectional(nn.Module):
    """Bidirectional S4: two kernels per channel, one from each end.

    Attributes:
      dim, state_dim, hippo, systems, activation, dt_min, dt_max, b_clip, form, dtype: as in ``S4``.
    """

    dim: int
    state_dim: int = 64
    hippo: str = "legs"
    systems: int | None = None
    activation: str = "full_glu"
    dt_min: float = 0.001
    dt_max: float = 0.1
    b_clip: float | None = 2.0
    form: str = "auto"
    dtype: str = "float32"

    causal: ClassVar[bool] = False
    paper: ClassVar[str] = PAPER

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], state: Any = None, *, reset: Bool[Array, "B T"] | None = None
    ) -> tuple[Float[Array, "B T D"], None]:
        check_sequence(x, self.dim, reset)
        if state is not None:
            raise ValueError("s4_bidirectional keeps no state (it reads the whole sequence), but got one")
        options = {"activation": self.activation, "reset": reset, "form": self.form}
        return s4_bidirectional(_declare(self, 2), x.astype(self.dtype), **options), None

    def initial_state(self, batch_size: int, dtype: str | None = None) -> None:
        """None: there is no state."""
        return None
