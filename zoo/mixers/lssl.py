"""LSSL, the linear state space layer: one single-input system per feature, run as a recurrence or as a convolution.

Gu, Johnson, Goel, Saab, Dao, Rudra, Re (2021), Combining Recurrent, Convolutional, and Continuous-time Models with Linear
State-Space Layers.

With H features, N states and M output channels per feature, u_t [H] the input and dt [H] = step_rescale * exp(log_dt):

    continuous    x_h' = A x_h + B u_h,   y_hm = C_hm x_h + D_hm u_h (+ E_hm)       A [N, N], B [N], or one per feature
    discrete      Abar_h, Bbar_h = GBT of weight alpha, or zero-order hold, with step dt_h (zoo.layers.discretization)
    layer         W gelu(y) + bias,   y flattened with h major, W [H M, H], gelu exact

Three views of the same layer:

    recurrent     x_t = Abar x_{t-1} + Bbar u_t,  y_t = C x_t + D u_t                          O(T H N (N + M)), sequential
    convolution   y_t = sum_{s<=t} k_{t-s} u_s + C Abar^{t+1} x_{-1} + D u_t,  k_l = C Abar^l Bbar
                  k by matrix powers (zoo.scans.krylov), O(H N^2 (N + sqrt(M T)) log T + H M N T), whatever the batch; then
                  FFTs; O(H N sqrt(M T) + H M T) memory. The last state is a Krylov product as well
    continuous    another step size is another sampling rate: ``step_rescale`` = 1/k runs a trained layer on a signal
                  sampled k times faster

The convolution is taken where no document is reset (``reset`` is None) and T is above 1, the recurrence elsewhere. They
agree up to rounding, so causality is exact in the recurrence and up to rounding in the convolution.

What the theory says of the layer: with alpha = 1, N = 1, A = -1, B = 1 and dt = exp(z) the recurrence is the gated update
x_t = (1 - sigmoid(z)) x_{t-1} + sigmoid(z) u_t, so that the gates of recurrent networks are backward Euler steps; every
convolution whose kernel is the impulse response of a rational system is an LSSL; and layers with pointwise nonlinearities
in between approximate nonlinear differential equations, and recurrent networks, by Picard iteration.

``learn`` says what A and B are:

    "fixed"        constants, a measure of ``zoo.layers.hippo`` (with ``learn_dt=False``: the paper's LSSL-fixed)
    "shared"       trained and quasiseparable (``zoo.layers.quasiseparable``), shared by all features
    "per_feature"  the same, one per feature
    "dense"        trained [N, N], shared; for comparison

A trained A wants a small learning rate (the paper: 1e-4, and 1e-3 for log_dt) and no weight decay; nothing else keeps it
stable; ``SLOW_A`` and ``SLOW_DT`` find them. With quasiseparable A (legs, legt and lagt are, fixed or not) and a gbt, Abar
takes O(N^2) and a single step O(N) per feature; otherwise both take O(N^3).

Initialisation: C, D normal; log_dt uniform between log dt_min and log dt_max (``learn_dt=False``: constant, log-spaced over
the features); W and bias uniform within 1/sqrt(H M). State per row: x [H, N].
"""

import functools
import math
from collections.abc import Mapping
from typing import ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import lax
from jaxtyping import Array, Bool, Float

from zoo.checks import check_choice, check_floating, check_positive, check_reset, check_sequence, check_state
from zoo.dtypes import accumulator
from zoo.layers.discretization import check_weight, generalized_bilinear, zero_order_hold
from zoo.layers.hippo import MEASURES, transition
from zoo.layers.initializers import symmetric_uniform
from zoo.layers.quasiseparable import (
    NOISE,
    STRUCTURED,
    Quasiseparable,
    dense,
    discretize_structured,
    shifted_matvec,
    shifted_solve,
    structured_transition,
)
from zoo.layers.step_sizes import check_step_sizes
from zoo.registry import register
from zoo.scans import fft_convolution, impulse_factors, impulse_response, krylov, merge_factors, recurrent_scan

LEARN = ("fixed", "shared", "per_feature", "dense")
DISCRETIZATIONS = ("gbt", "zoh")
CONSTANT_STRUCTURED = ("legs", "legt", "lagt", "jacobi")  # quasiseparable measures that need no noise on T
# Paths of the parameters that want a smaller learning rate and no weight decay, as regular expressions.
SLOW_A = "(^|/)(dl|d|du|pl|pr|c|b|A|B)$"
SLOW_DT = "(^|/)log_dt$"

_einsum = functools.partial(jnp.einsum, precision=lax.Precision.HIGHEST)


@struct.dataclass
class LSSLState:
    """Carried state: ``hidden`` [B, H, N] in at least float32."""

    hidden: Float[Array, "B H N"]


class LinearSystem(NamedTuple):
    """A discretised layer: what all views start from.

    Attributes:
      transition: Abar [H, N, N].
      into: Bbar [H, N].
      readout: C [H, M, N].
      skip: D [H, M].
      bias: E [H, M], or None.
    """

    transition: Float[Array, "H N N"]
    into: Float[Array, "H N"]
    readout: Float[Array, "H M N"]
    skip: Float[Array, "H M"]
    bias: Float[Array, "H M"] | None = None


def lssl_system(
    params: Mapping[str, Array],
    *,
    discretization: str = "gbt",
    alpha: float = 0.5,
    step_rescale: float = 1.0,
    dtype: str = "float32",
) -> LinearSystem:
    """Discretises the systems of ``params`` with their step sizes.

    Args:
      params: ``log_dt`` [H], ``C`` [H, M, N], ``D`` [H, M], ``E`` [H, M] or absent, and either ``A`` [N, N], ``B`` [N] or
        ``dl``, ``du`` [N-1], ``d``, ``pl``, ``pr``, ``c``, ``b`` [N]; these may have a leading axis H.
      discretization: "gbt" or "zoh".
      alpha: weight of the implicit end of the gbt.
      step_rescale: factor on the step sizes.
      dtype: of the result, at least float32.

    Raises:
      ValueError: shapes of the parameters that do not fit, alpha outside of [0, 1], step_rescale <= 0.
    """
    check_choice("discretization", discretization, DISCRETIZATIONS)
    check_weight(alpha)
    _check_params(params, step_rescale)
    p = {name: jnp.asarray(value, accumulator(dtype)) for name, value in params.items()}
    step = step_rescale * jnp.exp(p["log_dt"])
    if "A" not in p and discretization == "gbt":
        q, b = _structured(p)
        transition, into = discretize_structured(q, q.pl * b, step, alpha)
    else:
        if "A" in p:
            a, b = p["A"], p["B"]
        else:
            q, b = _structured(p)
            a, b = dense(q), q.pl * b
        if discretization == "gbt":
            transition, into = generalized_bilinear(a, b, step, alpha)
        else:
            transition, into = zero_order_hold(a, b, step)
    return LinearSystem(transition, into, p["C"], p["D"], p.get("E"))


def precompute_kernel(
    params: Mapping[str, Array],
    length: int,
    *,
    discretization: str = "gbt",
    alpha: float = 0.5,
    step_rescale: float = 1.0,
) -> Float[Array, "H M L"]:
    """The convolution kernels k_l = C Abar^l Bbar, l < ``length``, to be kept where A, dt and C do not change.

    Hand them to ``lssl_convolution``. ``params`` and options are those of ``lssl_system``.
    """
    system = lssl_system(params, discretization=discretization, alpha=alpha, step_rescale=step_rescale)
    return impulse_response(system.transition, system.into, system.readout, length)


def lssl_recurrence(
    system: LinearSystem,
    u: Float[Array, "B T H"],
    state: LSSLState | None = None,
    *,
    reset: Bool[Array, "B T"] | None = None,
) -> tuple[Float[Array, "B T H M"], LSSLState]:
    """The recurrent view: y before the nonlinearity, and the last state.

    Args:
      system: discretised layer.
      u: inputs.
      state: state before the first input; None: zeros.
      reset: True at the first token of a new document.
    """
    _check_inputs(system, u, state)
    check_reset(reset, u.shape[:2])
    dtype = system.transition.dtype
    size = system.transition.shape[-1]
    hidden = jnp.zeros((u.shape[0], u.shape[2], size), dtype) if state is None else state.hidden.astype(dtype)
    drive = system.into * u.astype(dtype)[..., None]
    states, last = recurrent_scan(_step, drive, hidden, system.transition, reset=reset)
    y = _einsum("bthn,hmn->bthm", states, system.readout)
    return _add_direct(system, u, y), LSSLState(last)


def lssl_convolution(
    system: LinearSystem,
    u: Float[Array, "B T H"],
    state: LSSLState | None = None,
    *,
    kernel: Float[Array, "H M L"] | None = None,
) -> tuple[Float[Array, "B T H M"], LSSLState]:
    """The convolutional view: the same as ``lssl_recurrence`` up to rounding.

    Args:
      system: discretised layer.
      u: inputs.
      state: state before the first input; None: zeros.
      kernel: of ``precompute_kernel``, at least T long; None: computed here.
    """
    _check_inputs(system, u, state)
    length, (features, channels, _) = u.shape[1], system.readout.shape
    dtype = system.transition.dtype
    # I blocks of S steps: all that is needed of the powers of Abar are Abar^j, j < S, and Abar^{iS}
    left, columns, power = impulse_factors(system.transition, system.into, system.readout, length)
    if kernel is None:
        kernel = merge_factors(left, columns, length)
    elif kernel.shape[:2] != (features, channels) or kernel.shape[2] < length:
        raise ValueError(
            f"kernel must have shape [{features}, {channels}, at least {length}], got {list(kernel.shape)}"
        )
    taps = jnp.transpose(kernel[..., :length], (1, 2, 0))  # [M, L, H]: the inputs' spectrum is shared by all channels
    y = jax.vmap(fft_convolution, in_axes=(None, 0), out_axes=-1)(u.astype(dtype), taps)

    # the last state: what each block adds to the state at its end, the first block starting with zeros that make it whole
    stride = columns.shape[-1]
    padding = -length % stride
    blocks = jnp.pad(u.astype(dtype), ((0, 0), (padding, 0), (0, 0))).reshape(len(u), -1, stride, features)
    drive = _einsum("hnj,bijh->ibhn", columns, blocks[:, :, ::-1])
    if state is not None:
        after = _einsum("hij,bhj->bhi", system.transition, state.hidden.astype(dtype))
        free = krylov(system.transition, after, stride)  # Abar^{j+1} x_{-1}: [B, H, N, S]
        drive = drive.at[0].add(free[..., stride - padding - 1])
        y = y + jnp.moveaxis(merge_factors(left, free, length), -1, 1)
    last, _ = lax.scan(lambda x, d: (_step(power, x, d), None), drive[0], drive[1:])
    return _add_direct(system, u, y), LSSLState(last)


def lssl(
    params: Mapping[str, Array],
    x: Float[Array, "B T H"],
    state: LSSLState | None = None,
    *,
    discretization: str = "gbt",
    alpha: float = 0.5,
    step_rescale: float = 1.0,
    reset: Bool[Array, "B T"] | None = None,
    view: str = "auto",
) -> tuple[Float[Array, "B T H"], LSSLState]:
    """The layer of the module docstring.

    Args:
      params: those of ``lssl_system``, and ``W`` [H M, H], ``bias`` [H].
      x: inputs u.
      state: state before the first token; None: zeros.
      discretization, alpha, step_rescale: see ``lssl_system``.
      reset: True at the first token of a new document.
      view: "auto", "recurrent" or "convolution" (without ``reset`` only).

    Returns:
      (outputs in x's dtype, state after the last token).
    """
    check_choice("view", view, ("auto", "recurrent", "convolution"))
    if view == "convolution" and reset is not None:
        raise ValueError("view='convolution' cannot reset documents; take 'recurrent' or 'auto'")
    options = {"discretization": discretization, "alpha": alpha, "step_rescale": step_rescale}
    system_params = {name: value for name, value in params.items() if name not in ("W", "bias")}
    if view == "auto":
        view = "recurrent" if reset is not None or x.shape[1] == 1 else "convolution"
    if x.shape[1] == 1 and "A" not in params and discretization == "gbt":
        y, state = _structured_step(system_params, x, state, alpha, step_rescale, reset)
    else:
        system = lssl_system(system_params, **options, dtype=x.dtype.name)
        if view == "recurrent":
            y, state = lssl_recurrence(system, x, state, reset=reset)
        else:
            y, state = lssl_convolution(system, x, state)
    z = jax.nn.gelu(y, approximate=False).astype(x.dtype)
    z = z.reshape(*z.shape[:2], -1)
    return z @ params["W"].astype(x.dtype) + params["bias"].astype(x.dtype), state


def _step(transition, hidden, drive, keep=None):
    """One step of all systems: [H, N, N], [B, H, N], [B, H, N] -> [B, H, N]."""
    return _einsum("hij,bhj->bhi", transition, hidden) + drive


def _structured_step(params, u, state, alpha, step_rescale, reset):
    """A single step of quasiseparable systems without their matrices: O(N) per feature."""
    _check_params(params, step_rescale)
    dtype = accumulator(u.dtype)
    p = {name: jnp.asarray(value, dtype) for name, value in params.items()}
    q, b = _structured(p)
    step = step_rescale * jnp.exp(p["log_dt"])
    size = q.d.shape[-1]
    # rows of the batch are columns of the solve: [H, N, B]
    if state is None:
        hidden = jnp.zeros((u.shape[2], size, u.shape[0]), dtype)
    else:
        hidden = state.hidden.astype(dtype)
        hidden = hidden if reset is None else jnp.where(reset[:, :1, None], 0, hidden)
        hidden = jnp.transpose(hidden, (1, 2, 0))
    into = jnp.broadcast_to(step[:, None] * q.pl * b, hidden.shape[:2])
    right = shifted_matvec(q, (1 - alpha) * step, hidden) + into[..., None] * u[:, 0].astype(dtype).T[:, None]
    if alpha > 0:
        right = shifted_solve(q, alpha * step, right)
    hidden = jnp.transpose(right, (2, 0, 1))
    y = _einsum("bhn,hmn->bhm", hidden, p["C"])[:, None]
    return _add_direct(LinearSystem(None, None, p["C"], p["D"], p.get("E")), u, y), LSSLState(hidden)


def _add_direct(system, u, y):
    y = y + system.skip * u.astype(y.dtype)[..., None]
    return y if system.bias is None else y + system.bias


def _structured(p):
    """The quasiseparable A and b of the parameters."""
    return Quasiseparable(*(p[name] for name in Quasiseparable._fields)), p["b"]


def _check_params(params, step_rescale):
    if not step_rescale > 0:
        raise ValueError(f"step_rescale must be positive, got {step_rescale}")
    readout = params["C"]
    if jnp.ndim(readout) != 3:
        raise ValueError(f"C must have shape [features, channels, states], got {list(jnp.shape(readout))}")
    features, channels, size = jnp.shape(readout)
    wanted = {"D": (features, channels), "log_dt": (features,)}
    if params.get("E") is not None:
        wanted["E"] = (features, channels)
    for name, shape in wanted.items():
        if jnp.shape(params[name]) != shape:
            raise ValueError(f"{name} must have shape {list(shape)} like C, got {list(jnp.shape(params[name]))}")
    if "A" in params:
        shapes = {"A": (size, size), "B": (size,)}
    else:
        shapes = {name: (size - (name in ("dl", "du")),) for name in (*Quasiseparable._fields, "b")}
    for name, shape in shapes.items():
        if jnp.shape(params[name]) not in (shape, (features, *shape)):
            raise ValueError(
                f"{name} must have shape {list(shape)}, or that with {features} features in front, "
                f"got {list(jnp.shape(params[name]))}"
            )


def _check_inputs(system, u, state):
    check_floating("u", u)
    features, _, size = system.readout.shape
    if u.ndim != 3 or u.shape[2] != features or u.shape[1] == 0:
        raise ValueError(f"u must have shape [batch, time >= 1, {features}], got {list(u.shape)}")
    if state is not None:
        check_state(state, LSSLState(jax.ShapeDtypeStruct((u.shape[0], features, size), jnp.float32)))


@register(
    "lssl",
    variants={
        "default": {"state_dim": 4},
        "fixed": {
            "state_dim": 5, "channels": 2, "measure": "legt", "learn": "fixed", "learn_dt": False, "alpha": 0.75,
            "output_bias": True,
        },
        "per_feature": {"state_dim": 4, "measure": "lagt", "learn": "per_feature", "alpha": 1.0, "step_rescale": 0.5},
    },
)  # fmt: skip
class LSSL(nn.Module):
    """LSSL: a linear state space layer with HiPPO matrices, run as a recurrence or as a convolution.

    Attributes:
      dim: features H.
      state_dim: states N of every feature.
      channels: output channels M of every feature.
      measure: where A and B come from: one of ``zoo.layers.hippo.MEASURES`` for "fixed" and "dense", of
        ``zoo.layers.quasiseparable.STRUCTURED`` for "shared" and "per_feature"; "fixed" takes jacobi as well.
      learn: "fixed", "shared", "per_feature" or "dense".
      learn_dt: step sizes are parameters.
      halve_legt: A and B of the measure legt are those of a window of length 2, see ``zoo.layers.hippo``.
      random_seed, random_scale, random_damping: of the measure random: A = scale * normal - damping * I, scale 1/N when
        None.
      discretization: "gbt" or "zoh".
      alpha: weight of the implicit end of the gbt: 0 forward Euler, 1/2 bilinear, 1 backward Euler.
      dt_min: smallest step size at initialisation.
      dt_max: largest step size at initialisation.
      step_rescale: factor on all step sizes: 1/k for signals sampled k times faster.
      output_bias: y has a bias E.
      dtype: compute dtype of the output map; the systems run in at least float32.
    """

    dim: int
    state_dim: int = 64
    channels: int = 1
    measure: str = "legs"
    learn: str = "shared"
    learn_dt: bool = True
    halve_legt: bool = True
    random_seed: int = 0
    random_scale: float | None = None
    random_damping: float = 0.0
    discretization: str = "gbt"
    alpha: float = 0.5
    dt_min: float = 0.001
    dt_max: float = 0.1
    step_rescale: float = 1.0
    output_bias: bool = False
    dtype: str = "float32"

    causal: ClassVar[bool] = True
    # the FFTs of the convolution spread roundings over all steps
    exactly_causal: ClassVar[bool] = False
    paper: ClassVar[str] = (
        "Gu et al. 2021, Combining Recurrent, Convolutional, and Continuous-time Models with Linear State-Space Layers"
    )

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], state: LSSLState | None = None, *, reset: Bool[Array, "B T"] | None = None
    ) -> tuple[Float[Array, "B T D"], LSSLState]:
        check_sequence(x, self.dim, reset)
        if state is not None:
            check_state(state, self.initial_state(x.shape[0]))
        return lssl(
            self._declare(), x.astype(self.dtype), state, discretization=self.discretization, alpha=self.alpha,
            step_rescale=self.step_rescale, reset=reset,
        )  # fmt: skip

    def initial_state(self, batch_size: int, dtype: str | None = None) -> LSSLState:
        """Zeros; at least float32 whatever ``dtype``."""
        shape = (batch_size, self.dim, self.state_dim)
        return LSSLState(jnp.zeros(shape, accumulator(self.dtype if dtype is None else dtype)))

    def _declare(self) -> dict[str, Array]:
        """Checks the options and declares the parameters; constants stand beside them."""
        check_positive("state_dim", self.state_dim)
        check_positive("channels", self.channels)
        check_choice("learn", self.learn, LEARN)
        check_choice("discretization", self.discretization, DISCRETIZATIONS)
        check_weight(self.alpha)
        check_step_sizes(self.dt_min, self.dt_max)
        structured = self.learn in ("shared", "per_feature")
        measures = {"fixed": (*MEASURES, "jacobi"), "dense": MEASURES}.get(self.learn, STRUCTURED)
        check_choice("measure", self.measure, measures)
        h, m, n = self.dim, self.channels, self.state_dim
        low, high = math.log(self.dt_min), math.log(self.dt_max)
        if structured:
            params = self._structured_parameters()
        elif self.learn == "fixed" and self.measure in CONSTANT_STRUCTURED:
            # the same matrix; its discretisation and single steps are much cheaper
            q, b = structured_transition(self.measure, n, halved=self.halve_legt)
            params = {name: jnp.asarray(value) for name, value in {**q._asdict(), "b": b}.items()}
        else:
            options = {
                "legt": {"halved": self.halve_legt},
                "random": {
                    "seed": self.random_seed, "scale": self.random_scale, "damping": self.random_damping,
                },
            }.get(self.measure, {})  # fmt: skip
            params = dict(zip("AB", map(jnp.asarray, transition(self.measure, n, **options))))
            if self.learn == "dense":
                params = {
                    name: self.param(name, lambda _, v=value: v.astype(jnp.float32)) for name, value in params.items()
                }
        if self.learn_dt:
            params["log_dt"] = self.param("log_dt", lambda k: jax.random.uniform(k, (h,), minval=low, maxval=high))
        else:
            params["log_dt"] = jnp.asarray(low + (np.arange(h) + 0.5) / h * (high - low))
        params["C"] = self.param("C", nn.initializers.normal(1.0), (h, m, n))
        params["D"] = self.param("D", nn.initializers.normal(1.0), (h, m))
        if self.output_bias:
            params["E"] = self.param("E", nn.initializers.zeros_init(), (h, m))
        uniform = symmetric_uniform((h * m) ** -0.5)
        params["W"] = self.param("W", uniform, (h * m, h))
        params["bias"] = self.param("bias", uniform, (h,))
        return params

    def _structured_parameters(self) -> dict[str, Array]:
        q, b = structured_transition(self.measure, self.state_dim, halved=self.halve_legt)
        leading = (self.dim,) if self.learn == "per_feature" else ()

        def init(name, value):
            def values(key):
                start = jnp.broadcast_to(jnp.asarray(value, jnp.float32), (*leading, len(value)))
                noise = NOISE.get(self.measure, 0.0) if name == "d" else 0.0
                return start + noise * jax.random.normal(key, start.shape) if noise else start

            return self.param(name, values)

        return {name: init(name, value) for name, value in {**q._asdict(), "b": b}.items()}
