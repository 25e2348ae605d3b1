"""Attention, state space models and gated recurrences written as one kind of dynamical system, to compare them.

Sieber, Amo Alonso, Didier, Zeilinger, Orvieto (2024), Understanding the Differences in Foundation Models: Attention, State
Space Models, and Recurrent Neural Networks, arXiv 2405.15731: the Dynamical Systems Framework. For an input u [T, d],

    h_t = Lambda_t h_{t-1} + B_t u_t        h [N], h_0 = 0, Lambda_t diagonal [N], B_t [N, d]
    y_t = C_t h_t + D_t u_t                 C_t [o, N], D_t [o, d]

where the matrices may themselves be functions of u: written out for one u, everything is linear. The same as a convolution:

    y = Phi u,   Phi_ij = C_i Lambda_i ... Lambda_{j+1} B_j  for j <= i,  and D_i on the diagonal.

Attention of any kind with weights phi(q_i) . psi(k_j) / eta_i has, for every pair of a feature and a value channel, a state
with Lambda_i = eta_{i-1} / eta_i (Lambda_1 = 0), B_i = psi(k_i) W_v / eta_i, C_i = phi(q_i) W_o. Softmax needs infinitely
many features, those of the Taylor series of exp; a finite ``degree`` is an approximation.

    system = to_dsf("normalized_attention", params, u, normalizer="exp")
    y, last = system.run_recurrent(u)
    check_equivalence(native("normalized_attention", params, u, normalizer="exp"), system, u)

N is n d for n states per channel, and the matrices together T N (d + o + 1) numbers: this is an instrument for small cases,
and ``to_dsf`` refuses larger ones. Layers of the zoo never build them.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import lax
from jaxtyping import Array, Float, Inexact, Key

from zoo.checks import check_choice, check_floating, check_positive
from zoo.layers.attention import POSITIONS, grouped_attention, merge_heads, project_heads
from zoo.layers.discretization import discretize
from zoo.layers.linear_attention import FEATURE_MAPS
from zoo.layers.real_gates import input_scale
from zoo.mixers.linear_attention import LinearAttentionState, linear_attention_layer
from zoo.mixers.lru import LRUState, lru
from zoo.mixers.normalized_attention import NORMALIZERS, NormalizedAttentionState, normalized_attention
from zoo.mixers.qlstm import qlstm_cell, qlstm_gates
from zoo.mixers.rg_lru import RGLRUState, rg_lru, rg_lru_system
from zoo.mixers.s5 import S5State, s5
from zoo.mixers.s6 import S6State, s6
from zoo.mixers.seahawk import SEaHawkState, seahawk, seahawk_decay
from zoo.mixers.ssd import SSDState, ssd
from zoo.scans import fft_convolution, linear_attention, linear_scan

LIMIT = 2**25  # numbers in a system's matrices, or in its convolution
NONLINEAR = ("elman", "flashrnn", "gru", "jordan", "lstm", "ntm", "paragru", "paralstm", "slstm")
GATE_TEMPERATURE = 16.0  # of gated linear attention


@struct.dataclass
class DynamicalSystem:
    """The matrices of the module docstring for one input.

    Products of many decays are taken as sums of logarithms, and 1 / eta is kept apart from B: with eta = exp(z) either may
    lie far outside of the numbers there are where their product does not. Of complex systems y is the real part.

    Attributes:
      log_decay: [T, N], log Lambda, real or complex, -inf for a Lambda of 0.
      unnormalized_inputs: [T, N, d], eta_t B_t; B_t itself without a normaliser.
      outputs: [T, o, N], C.
      feedthrough: [T, o, d], D.
      log_normalizer: [T, N], log eta of the state's head; None: there is no normaliser.
    """

    log_decay: Inexact[Array, "T N"]
    unnormalized_inputs: Inexact[Array, "T N d"]
    outputs: Inexact[Array, "T o N"]
    feedthrough: Float[Array, "T o d"]
    log_normalizer: Float[Array, "T N"] | None = None

    @classmethod
    def from_matrices(cls, decay: Any, inputs: Any, outputs: Any, feedthrough: Any = None) -> "DynamicalSystem":
        """The system of Lambda [T, N], B [T, N, d], C [T, o, N] and D [T, o, d] (None: zeros); not under ``jit``."""
        decay, inputs, outputs = (jnp.asarray(a) for a in (decay, inputs, outputs))
        if decay.ndim != 2 or inputs.shape[:2] != decay.shape or outputs.shape[::2] != decay.shape:
            raise ValueError(
                "need decay [T, N], inputs [T, N, d] and outputs [T, o, N], "
                f"got {list(decay.shape)}, {list(inputs.shape)} and {list(outputs.shape)}"
            )
        if feedthrough is None:
            feedthrough = jnp.zeros((len(decay), outputs.shape[1], inputs.shape[2]), outputs.real.dtype)
        if not jnp.iscomplexobj(decay) and bool(jnp.any(decay < 0)):
            decay = decay + 0j
        return cls(jnp.log(decay), inputs, outputs, jnp.asarray(feedthrough))

    @property
    def decay(self) -> Inexact[Array, "T N"]:
        """Lambda."""
        return _bounded_exp(self.log_decay)

    @property
    def inputs(self) -> Inexact[Array, "T N d"]:
        """B."""
        if self.log_normalizer is None:
            return self.unnormalized_inputs
        return self.unnormalized_inputs * _bounded_exp(-self.log_normalizer)[..., None]

    @property
    def normalizer(self) -> Float[Array, "T N"] | None:
        """eta, or None."""
        return None if self.log_normalizer is None else _bounded_exp(self.log_normalizer)

    @property
    def state_dim(self) -> int:
        """N."""
        return self.log_decay.shape[1]

    @property
    def states_per_channel(self) -> float:
        """n = N / d, the state expansion."""
        return self.state_dim / self.unnormalized_inputs.shape[2]

    def run_recurrent(self, u: Float[Array, "T d"]) -> tuple[Float[Array, "T o"], Inexact[Array, " N"]]:
        """(y, h after the last step), one step after another."""
        return self._run(u, "sequential")

    def run_scan(self, u: Float[Array, "T d"]) -> tuple[Float[Array, "T o"], Inexact[Array, " N"]]:
        """(y, h after the last step), by an associative scan: (a, b) then (c, d) is (c a, c b + d)."""
        return self._run(u, "associative")

    def run_conv(self, u: Float[Array, "T d"], *, limit: int = LIMIT) -> Float[Array, "T o"]:
        """Phi u."""
        self._check(u)
        return jnp.einsum("ijod,jd->io", self.kernel(limit=limit), u)

    def kernel(self, *, limit: int = LIMIT) -> Float[Array, "T T o d"]:
        """Phi; ValueError if it, or the products of decays it is made from, would have more than ``limit`` numbers."""
        steps, outs, size = self.outputs.shape
        width = self.unnormalized_inputs.shape[2]
        _check_size("the convolution", steps * steps * max(size, outs * width), limit)
        place = jnp.arange(steps)

        def extend(exponents, now):  # of the products that end at the step before, to those that end here
            step, log_decay = now
            exponents = jnp.where((place == step)[:, None], 0, exponents + log_decay)
            return exponents, exponents

        start = jnp.zeros_like(self.log_decay)
        _, exponents = lax.scan(extend, start, (place, self.log_decay))
        if self.log_normalizer is not None:
            exponents = exponents - self.log_normalizer
        past = (place <= place[:, None])[..., None]
        products = jnp.where(past, _bounded_exp(jnp.where(past, exponents, 0)), 0)
        phi = jnp.einsum("ion,ijn,jnd->ijod", self.outputs, products, self.unnormalized_inputs).real
        return phi + jnp.where((place == place[:, None])[..., None, None], self.feedthrough[:, None], 0)

    def _run(self, u, method):
        self._check(u)
        driven = jnp.einsum("tnd,td->tn", self.inputs, u)
        states, last = linear_scan(self.decay[None], driven[None], method=method)
        y = jnp.einsum("ton,tn->to", self.outputs, states[0]).real + jnp.einsum("tod,td->to", self.feedthrough, u)
        return y, last[0]

    def _check(self, u):
        steps, _, width = self.unnormalized_inputs.shape
        if u.shape != (steps, width):
            raise ValueError(f"u must have the shape {[steps, width]} of this system's input, got {list(u.shape)}")


def _bounded_exp(x):
    """exp, with a real part as large as it goes in place of infinity: infinity times zero is not a number."""
    bound = math.log(float(jnp.finfo(x.dtype).max)) - 1
    if jnp.iscomplexobj(x):
        return jnp.exp(lax.complex(jnp.minimum(x.real, bound), x.imag))
    return jnp.exp(jnp.minimum(x, bound))


def _check_size(what: str, size: int, limit: int) -> None:
    if size > limit:
        raise ValueError(
            f"{what} would have {size:,} numbers, more than limit={limit:,}; take a shorter or narrower input"
        )


@dataclasses.dataclass(frozen=True)
class Architecture:
    """An architecture that is a dynamical system.

    Attributes:
      convert: ``convert(params, u, **options) -> DynamicalSystem``.
      native: ``native(params, u, **options) -> y``, as its layer computes it.
      shapes: ``shapes(d, n) -> {name: shape}``, parameters for width d and n states per channel.
      options: of ``convert`` and ``native``, with a value that makes an example.
    """

    convert: Callable[..., DynamicalSystem]
    native: Callable[..., Array]
    shapes: Callable[[int, int], Mapping[str, tuple[int, ...]]]
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def to_dsf(
    architecture: str, params: Mapping[str, Array], u: Float[Array, "T d"], *, limit: int = LIMIT, **options: Any
) -> DynamicalSystem:
    """The dynamical system that ``architecture`` is on the input ``u``.

    Args:
      architecture: a name of ``ARCHITECTURES``. Where the zoo has a mixer of that name, ``params`` are that mixer's; of
        "qlstm" the recurrence between convolution and gate is taken, so that u is what the gates see.
      params: parameters, see the functions of this module.
      u: [T, d], one sequence.
      limit: most numbers that the matrices may have together.
      **options: what the architecture's function takes, such as ``degree`` (attention), ``feature_map``,
        ``normalize`` (linear_attention), ``normalizer`` (normalized_attention), ``epsilon`` (rg_lru, seahawk).

    Raises:
      ValueError: an unknown architecture, one that is not linear in its state, or a system that is too large.
    """
    entry = _entry(architecture)
    check_floating("u", u)
    if u.ndim != 2 or u.shape[0] == 0:
        raise ValueError(f"u must have shape [time >= 1, width], got {list(u.shape)}")
    shapes = jax.eval_shape(lambda p, u: entry.convert(p, u, **options), dict(params), u)
    _check_size(f"the system of {architecture}", sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)), limit)
    return entry.convert(params, u, **options)


def native(
    architecture: str, params: Mapping[str, Array], u: Float[Array, "T d"], **options: Any
) -> Float[Array, "T o"]:
    """What the architecture itself puts out on ``u``; arguments as in ``to_dsf``.

    "attention" with a ``degree`` is attention whose exponential is cut off there; without one it is softmax.
    """
    return _entry(architecture).native(params, u, **options)


def random_parameters(architecture: str, key: Key[Array, ""], dim: int, expansion: int) -> dict[str, Array]:
    """Random parameters of an architecture for width ``dim`` and ``expansion`` states per channel, where it has those.

    They are half as large as what keeps the size of normal inputs, so that outputs stay of the order of 1.
    """
    check_positive("dim", dim)
    check_positive("expansion", expansion)
    shapes = _entry(architecture).shapes(dim, expansion)
    keys = jax.random.split(key, len(shapes))
    params = {}
    for (name, shape), one in zip(shapes.items(), keys):
        value = 0.5 * jax.random.normal(one, shape)
        if name in ("log_step", "alpha"):  # steps around 1/8; an exponent that is positive
            value = value - 2 if name == "log_step" else 1 + jnp.abs(value)
        params[name] = value * dim**-0.5 if len(shape) > 1 else value
    return params


def _entry(architecture: str) -> Architecture:
    if architecture in NONLINEAR:
        raise ValueError(
            f"{architecture} is not linear in its state (its gates or its activation see h), so that no Lambda, B, C, D "
            "of the input alone describe it; its linear kin is qlstm"
        )
    check_choice("architecture", architecture, ARCHITECTURES)
    return ARCHITECTURES[architecture]


# Attention of all kinds.


def attention_system(
    queries: Float[Array, "T H K"],
    keys: Float[Array, "T H K"],
    value: Float[Array, "d H V"],
    output: Float[Array, "H V o"],
    *,
    log_decay: Float[Array, "T H"] | Float[Array, "T H K"] | None = None,
    log_normalizer: Float[Array, "T H"] | None = None,
    scale: Float[Array, "T H"] | None = None,
) -> DynamicalSystem:
    """Attention by features of queries and keys, N = H K V states in that order.

    Args:
      queries: phi(q).
      keys: psi(k).
      value: W_v.
      output: W_o.
      log_decay: of the state, per head or per feature; None: none but the normaliser's.
      log_normalizer: log eta, which becomes the decay eta_{t-1} / eta_t; not along with ``log_decay``.
      scale: factor on the values.
    """
    if log_decay is not None and log_normalizer is not None:
        raise ValueError("log_decay and log_normalizer exclude each other: a normaliser makes the decay")
    steps, heads, features = keys.shape
    values = value.shape[2]
    if scale is not None:
        keys = keys * scale[..., None]
    spread = (steps, heads, features, values)

    def flat(a):  # [T, H] or [T, H, K] -> [T, N]
        return jnp.broadcast_to(a.reshape(*a.shape, *(1,) * (4 - a.ndim)), spread).reshape(steps, -1)

    if log_normalizer is not None:
        before = jnp.concatenate([jnp.full_like(log_normalizer[:1], -jnp.inf), log_normalizer[:-1]])
        log_decay = before - log_normalizer
    elif log_decay is None:
        log_decay = jnp.zeros(spread[:2], keys.dtype)
    inputs = jnp.einsum("thk,dhv->thkvd", keys, value).reshape(steps, -1, value.shape[0])
    outputs = jnp.einsum("thk,hvo->tohkv", queries, output).reshape(steps, output.shape[2], -1)
    return DynamicalSystem(
        flat(log_decay), inputs, outputs, jnp.zeros((steps, output.shape[2], value.shape[0]), inputs.dtype),
        None if log_normalizer is None else flat(log_normalizer),
    )  # fmt: skip


def taylor_features(x: Float[Array, "*B m"], degree: int) -> Float[Array, "*B f"]:
    """phi with phi(q) . phi(k) = sum_{p <= degree} (q . k)^p / p!: sum_p m^p features, tensor powers of x.

    An odd degree can make weights negative; only even ones are allowed.
    """
    if not isinstance(degree, int) or degree < 0 or degree % 2:
        raise ValueError(f"degree must be an even number of at least 0, so that weights are positive, got {degree!r}")
    power = jnp.ones((*x.shape[:-1], 1), x.dtype)
    features = [power]
    for p in range(1, degree + 1):
        power = (power[..., :, None] * x[..., None, :]).reshape(*x.shape[:-1], -1)
        features.append(power / math.factorial(p) ** 0.5)
    return jnp.concatenate(features, axis=-1)


def softmax_kernel(
    params: Mapping[str, Array], u: Float[Array, "T d"], *, positions: str = "none", base: float = 10_000.0,
    limit: int = LIMIT,
) -> Float[Array, "T T o d"]:  # fmt: skip
    """Phi of softmax attention, exactly: sum over heads of weight_ij W_o W_v. Arguments as in ``to_dsf``."""
    _check_size("the convolution", len(u) ** 2 * u.shape[1] * params["output"].shape[2], limit)
    q, k = _queries_keys(params, u, positions, base)
    weights = jax.nn.softmax(jnp.where(_causal(len(u)), _scores(q, k), -jnp.inf), axis=-1)
    value = jnp.repeat(params["value"], q.shape[1] // params["value"].shape[1], axis=1)
    return jnp.einsum("hij,hvo,dhv->ijod", weights, params["output"], value)


def _causal(steps):
    return jnp.tril(jnp.ones((steps, steps), bool))


def _scores(q, k):
    return jnp.einsum("ihk,jhk->hij", q, k) / q.shape[-1] ** 0.5


def _queries_keys(params, u, positions, base):
    """Rotated queries and keys [T, H, K] of "attention", the keys of a group given to each of its heads."""
    check_choice("positions", positions, POSITIONS)
    q, k, _ = project_heads(params, u[None], jnp.arange(len(u))[None] if positions == "rotary" else None, base)
    return q[0], jnp.repeat(k[0], q.shape[2] // k.shape[2], axis=1)


def _softmax_to_dsf(params, u, *, degree, positions="none", base=10_000.0):
    q, k = _queries_keys(params, u, positions, base)
    q, k = (taylor_features(a * a.shape[-1] ** -0.25, degree) for a in (q, k))
    value = jnp.repeat(params["value"], q.shape[1] // params["value"].shape[1], axis=1)
    return attention_system(q, k, value, params["output"], log_normalizer=_log_row_sums(q, k))


def _softmax_native(params, u, *, degree=None, positions="none", base=10_000.0):
    places = jnp.arange(len(u))[None] if positions == "rotary" else None
    q, k, v = project_heads(params, u[None], places, base)
    if degree is None:
        return merge_heads(params, grouped_attention(q, k, v, _causal(len(u))[None]))[0]
    q, k = _queries_keys(params, u, positions, base)
    scores = _scores(q, k)
    weights = sum(scores**p / math.factorial(p) for p in range(degree + 1))
    weights = jnp.where(_causal(len(u)), weights, 0)
    weights = weights / jnp.sum(weights, axis=-1, keepdims=True)
    v = jnp.repeat(v[0], q.shape[1] // v.shape[2], axis=1)
    return merge_heads(params, jnp.einsum("hij,jhv->ihv", weights, v)[None])[0]


def _log_row_sums(q, k):
    """log eta_i for eta_i = sum over j <= i of phi(q_i) . psi(k_j), [T, H]."""
    return jnp.log(jnp.einsum("thk,thk->th", q, jnp.cumsum(k, axis=0)))


def _projected(params, u):
    q, k, _ = project_heads(params, u[None], None, 0.0)
    return q[0], k[0]


def _linear_to_dsf(params, u, *, feature_map="elu", normalize=True):
    check_choice("feature_map", feature_map, FEATURE_MAPS)
    q, k = (FEATURE_MAPS[feature_map](a) for a in _projected(params, u))
    eta = _log_row_sums(q, k) if normalize else None
    return attention_system(q, k, params["value"], params["output"], log_normalizer=eta)


def _linear_native(params, u, *, feature_map="elu", normalize=True):
    memory = _empty_memory(params, u)
    state = LinearAttentionState(memory, memory[..., 0] if normalize else None)
    return linear_attention_layer(params, u[None], state, feature_map=feature_map)[0][0]


def _empty_memory(params, u):
    return jnp.zeros((1, *params["query"].shape[1:], params["value"].shape[2]), u.dtype)


def _normalized_to_dsf(params, u, *, normalizer="exp"):
    check_choice("normalizer", normalizer, NORMALIZERS)
    z = u @ params["normalizer"] + params["normalizer_bias"]
    log_softplus = jnp.where(z < -20, z, jnp.log(jax.nn.softplus(jnp.maximum(z, -20))))
    eta = {"exp": z, "softplus": log_softplus, "sigmoid": jax.nn.log_sigmoid(z)}[normalizer]
    return attention_system(*_projected(params, u), params["value"], params["output"], log_normalizer=eta)


def _normalized_native(params, u, *, normalizer="exp"):
    state = NormalizedAttentionState(_empty_memory(params, u))
    return normalized_attention(params, u[None], state, normalizer=normalizer)[0][0]


def _decayed_log(params, u):
    """Log decays of retention (``log_decay`` [H], fixed) or of gated linear attention (``gate`` [d, H, K])."""
    if "gate" in params:
        return jax.nn.log_sigmoid(jnp.einsum("td,dhk->thk", u, params["gate"])) / GATE_TEMPERATURE
    return jnp.broadcast_to(-jnp.abs(params["log_decay"]), (len(u), *params["log_decay"].shape))


def _decayed_to_dsf(params, u):
    decay = _decayed_log(params, u)
    return attention_system(*_projected(params, u), params["value"], params["output"], log_decay=decay)


def _decayed_native(params, u):
    q, k, v = project_heads(params, u[None], None, 0.0)
    y, _ = linear_attention(q, k, v, _decayed_log(params, u)[None])
    return merge_heads(params, y)[0]


def _attention_shapes(dim, expansion):
    return {
        "query": (dim, 1, expansion), "key": (dim, 1, expansion), "value": (dim, 1, dim), "output": (1, dim, dim)
    }  # fmt: skip


# State space models.


def _s4_system(params):
    """(log Lambda_bar, gain, B, C), each [d, n]: diagonal systems of one channel each, discretised by zero-order hold."""
    eigenvalues = lax.complex(-jnp.exp(params["A_log"]), params["A_im"])
    step = jnp.exp(params["log_step"])[:, None]
    b, c = (lax.complex(params[f"{name}_re"], params[f"{name}_im"]) for name in "BC")
    return eigenvalues * step, discretize(eigenvalues, jnp.broadcast_to(step, eigenvalues.shape))[1], b, c


def _s4_to_dsf(params, u):
    log_decay, gain, b, c = _s4_system(params)
    return _per_channel(log_decay, gain * b, c, jnp.diag(params["D"]), len(u))


def _per_channel(log_decay, b, c, skip, steps):
    """The system of d channels with n states each; arrays [T, d, n], or [d, n] for all steps. States in that order."""
    dim, size = log_decay.shape[-2:]
    own = jnp.eye(dim, dtype=b.dtype)

    def whole(a):
        return jnp.broadcast_to(a, (steps, dim, size))

    inputs = jnp.einsum("tcs,cd->tcsd", whole(b), own).reshape(steps, -1, dim)
    outputs = jnp.einsum("tcs,oc->tocs", whole(c), own).reshape(steps, dim, -1)
    skips = jnp.broadcast_to(skip, (steps, dim, dim))
    return DynamicalSystem(whole(log_decay).reshape(steps, -1), inputs, outputs, skips)


def _s4_native(params, u):
    log_decay, gain, b, c = _s4_system(params)
    powers = jnp.exp(log_decay * jnp.arange(len(u))[:, None, None])
    kernel = jnp.sum(c * powers * gain * b, axis=-1).real
    return fft_convolution(u[None], kernel)[0] + params["D"] * u


def _lru_to_dsf(params, u):
    steps = len(u)
    log_decay = lax.complex(-jnp.exp(params["nu_log"]), jnp.exp(params["theta_log"]))
    b = lax.complex(params["B_re"], params["B_im"]).T * jnp.exp(params["gamma_log"])[:, None]
    c = lax.complex(params["C_re"], params["C_im"]).T
    parts = (log_decay, b, c, jnp.diag(params["D"]))
    return DynamicalSystem(*(jnp.broadcast_to(a, (steps, *a.shape)) for a in parts))


def _lru_native(params, u):
    start = LRUState(jnp.zeros((1, len(params["nu_log"])), jnp.result_type(u.dtype, jnp.complex64)))
    return lru(params, u[None], start)[0][0]


def _s5_to_dsf(params, u, *, discretization="zoh", conj_sym=True):
    steps = len(u)
    eigenvalues = lax.complex(jnp.minimum(params["Lambda_re"], -1e-4), params["Lambda_im"])
    step = jnp.exp(params["log_step"])
    decay, gain = discretize(eigenvalues, step, discretization)
    log_decay = eigenvalues * step if discretization == "zoh" else jnp.log(decay)
    b = gain[:, None] * lax.complex(params["B_re"], params["B_im"])
    c = (2 if conj_sym else 1) * lax.complex(params["C_re"], params["C_im"])
    parts = (log_decay, b, c, jnp.diag(params["D"]))
    return DynamicalSystem(*(jnp.broadcast_to(a, (steps, *a.shape)) for a in parts))


def _s5_native(params, u, *, discretization="zoh", conj_sym=True):
    start = S5State(jnp.zeros((1, len(params["log_step"])), jnp.result_type(u.dtype, jnp.complex64)))
    return s5(params, u[None], start, discretization=discretization, conj_sym=conj_sym)[0][0]


def _s6_to_dsf(params, u):
    rank, size = params["dt"].shape[0], params["A_log"].shape[1]
    rough, b, c = jnp.split(u @ params["project"], (rank, rank + size), axis=-1)
    delta = jax.nn.softplus(rough @ params["dt"] + params["dt_bias"])[..., None]
    return _per_channel(
        -delta * jnp.exp(params["A_log"]), delta * b[:, None], c[:, None], jnp.diag(params["skip"]), len(u)
    )


def _s6_native(params, u):
    return s6(params, u[None], S6State(jnp.zeros((1, *params["A_log"].shape), u.dtype)))[0][0]


def _ssd_to_dsf(params, u):
    heads, width = params["value"].shape[1:]
    delta = jax.nn.softplus(u @ params["dt"] + params["dt_bias"])
    c, b = (jnp.broadcast_to((u @ params[k])[:, None], (len(u), heads, params[k].shape[1])) for k in ("C", "B"))
    output = jnp.eye(heads * width, dtype=u.dtype).reshape(heads, width, -1)
    decay = -jnp.exp(params["A_log"]) * delta
    return attention_system(c, b, params["value"], output, log_decay=decay, scale=delta)


def _ssd_native(params, u):
    heads, width = params["value"].shape[1:]
    state = SSDState(jnp.zeros((1, heads, params["B"].shape[1], width), u.dtype))
    return ssd(params, u[None], state)[0][0]


# Gated recurrences.


def _qlstm_to_dsf(params, u):
    log_decay, into, out_of = qlstm_gates(params, u)
    value = params.get("value", jnp.eye(u.shape[1], dtype=u.dtype))
    outputs = out_of[:, :, None] * jnp.eye(out_of.shape[1], dtype=u.dtype)
    nothing = jnp.zeros((len(u), out_of.shape[1], u.shape[1]), u.dtype)
    return DynamicalSystem(log_decay, into[:, :, None] * value.T, outputs, nothing)


def _qlstm_native(params, u):
    values = u[None] @ params["value"] if "value" in params else None
    start = jnp.zeros((1, params["gates"].shape[1] // 3), u.dtype)
    return qlstm_cell(params, u[None], start, values=values)[0][0]


def _rg_lru_to_dsf(params, u, *, epsilon=0.0, unit_start=False):
    log_decay, scale, gate = rg_lru_system(params, u, epsilon)
    if unit_start:
        scale = scale.at[0].set(1)
    own = jnp.eye(u.shape[1], dtype=u.dtype)
    inputs = (scale * gate)[:, :, None] * own
    return DynamicalSystem(log_decay, inputs, jnp.broadcast_to(own, inputs.shape), jnp.zeros_like(inputs))


def _rg_lru_native(params, u, *, epsilon=0.0, unit_start=False):
    state = RGLRUState(jnp.zeros((1, u.shape[1]), u.dtype), jnp.zeros(1, jnp.int32))
    return rg_lru(params, u[None], state, epsilon=epsilon, unit_start=unit_start)[0][0]


def _seahawk_to_dsf(params, u, *, epsilon=1e-6):
    steps, dim = u.shape
    log_decay = seahawk_decay(params, u)
    own = jnp.eye(dim, dtype=u.dtype)
    b = input_scale(log_decay, epsilon) * (u @ params["input"])[..., None]
    inputs = jnp.einsum("tsc,cd->tscd", b, own).reshape(steps, -1, dim)
    outputs = jnp.einsum("ts,oc->tosc", u @ params["output"], own).reshape(steps, dim, -1)
    return DynamicalSystem(log_decay.reshape(steps, -1), inputs, outputs, jnp.zeros((steps, dim, dim), u.dtype))


def _seahawk_native(params, u, *, epsilon=1e-6):
    return seahawk(params, u[None], SEaHawkState(jnp.zeros((1, *params["decay"].shape), u.dtype)), epsilon=epsilon)[0][
        0
    ]


def _parts(*names, shape):
    return {f"{name}_{part}": shape for name in names for part in ("re", "im")}


def _qlstm_shapes(dim, expansion):
    return {"gates": (dim, 3 * dim), "gates_bias": (3 * dim,), "value": (dim, dim)}


def _normalized_shapes(dim, expansion):
    return {**_attention_shapes(dim, expansion), "normalizer": (dim, 1), "normalizer_bias": (1,)}


ARCHITECTURES: dict[str, Architecture] = {
    "attention": Architecture(_softmax_to_dsf, _softmax_native, _attention_shapes, {"degree": 2}),
    "linear_attention": Architecture(_linear_to_dsf, _linear_native, _attention_shapes),
    "linear_attention_unnormalized": Architecture(
        lambda p, u, feature_map="identity": _linear_to_dsf(p, u, feature_map=feature_map, normalize=False),
        lambda p, u, feature_map="identity": _linear_native(p, u, feature_map=feature_map, normalize=False),
        _attention_shapes,
    ),
    "normalized_attention": Architecture(
        _normalized_to_dsf, _normalized_native, _normalized_shapes, {"normalizer": "exp"}
    ),
    "retention": Architecture(
        _decayed_to_dsf, _decayed_native, lambda d, n: {**_attention_shapes(d, n), "log_decay": (1,)}
    ),
    "gated_linear_attention": Architecture(
        _decayed_to_dsf, _decayed_native, lambda d, n: {**_attention_shapes(d, n), "gate": (d, 1, n)}
    ),
    "s4": Architecture(
        _s4_to_dsf, _s4_native,
        lambda d, n: {"A_log": (d, n), "A_im": (d, n), "log_step": (d,), "D": (d,), **_parts("B", "C", shape=(d, n))},
    ),
    "s5": Architecture(
        _s5_to_dsf, _s5_native,
        lambda d, n: {
            **_parts("Lambda", shape=(n * d,)), **_parts("B", shape=(n * d, d)), **_parts("C", shape=(d, n * d)),
            "log_step": (n * d,), "D": (d,),
        },
    ),
    "lru": Architecture(
        _lru_to_dsf, _lru_native,
        lambda d, n: {
            "nu_log": (n * d,), "theta_log": (n * d,), "gamma_log": (n * d,), "D": (d,),
            **_parts("B", shape=(d, n * d)), **_parts("C", shape=(n * d, d)),
        },
    ),
    "s6": Architecture(
        _s6_to_dsf, _s6_native,
        lambda d, n: {"project": (d, d + 2 * n), "dt": (d, d), "dt_bias": (d,), "A_log": (d, n), "skip": (d,)},
    ),
    "ssd": Architecture(
        _ssd_to_dsf, _ssd_native,
        lambda d, n: {
            "B": (d, n), "C": (d, n), "value": (d, 1, d), "dt": (d, 1), "dt_bias": (1,), "A_log": (1,),
        },
    ),
    "qlstm": Architecture(_qlstm_to_dsf, _qlstm_native, _qlstm_shapes),
    "qlstm_reversed": Architecture(
        _qlstm_to_dsf, _qlstm_native, lambda d, n: {**_qlstm_shapes(d, n), "alpha": ()}
    ),
    "rg_lru": Architecture(
        _rg_lru_to_dsf, _rg_lru_native,
        lambda d, n: {"decay": (d,), "recurrence_gate": (1, d, d), "input_gate": (1, d, d)},
    ),
    "seahawk": Architecture(
        _seahawk_to_dsf, _seahawk_native,
        lambda d, n: {"decay": (n, d), "recurrence_gate": (d, d), "input": (d, n), "output": (d, n)},
    ),
}  # fmt: skip


# Instruments.


@dataclasses.dataclass(frozen=True)
class Equivalence:
    """Largest absolute differences from the native output: of the recurrence, the associative scan and the convolution."""

    recurrent: float
    scan: float
    conv: float
    tol: float

    @property
    def max_error(self) -> float:
        """The largest of the three; NaN if one is."""
        return float(np.max([self.recurrent, self.scan, self.conv]))

    @property
    def passed(self) -> bool:
        """Whether the largest is at most ``tol``."""
        return self.max_error <= self.tol


def check_equivalence(
    native: Float[Array, "T o"] | Callable[[Array], Array],
    dsf: DynamicalSystem,
    u: Float[Array, "T d"],
    tol: float = 1e-5,
) -> Equivalence:
    """Compares an output, or a function of ``u`` that makes it, with all three forms of a system."""
    want = np.asarray(native(u) if callable(native) else native)
    forms = _forms(dsf, u)
    if any(form.shape != want.shape for form in forms):
        raise ValueError(f"native has shape {list(want.shape)}, the system's output {list(forms[0].shape)}")
    return Equivalence(*(float(np.max(np.abs(np.asarray(form) - want))) for form in forms), tol)


@jax.jit
def _forms(dsf, u):
    return dsf.run_recurrent(u)[0], dsf.run_scan(u)[0], dsf.run_conv(u)


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What an architecture is as a dynamical system, found by changing its input and its parameters one at a time.

    Attributes:
      architecture: its name.
      decay, inputs, outputs, feedthrough: of Lambda, B, C, D: "0", "1" (identity, of Lambda), "fixed" (learned, the same
        at every step) or "input".
      normalizer: likewise of eta, or "none".
      coupled: names of parameters with a column on which both Lambda and B hang; without any, what is forgotten and what
        is written are set independently.
      states_per_channel: N / d; infinite for softmax.
    """

    architecture: str
    decay: str
    inputs: str
    outputs: str
    feedthrough: str
    normalizer: str
    coupled: tuple[str, ...]
    states_per_channel: float


def compare_systems(
    architectures: Iterable[str] | None = None, *, dim: int = 4, expansion: int = 2, key: Key[Array, ""] | None = None
) -> tuple[Comparison, ...]:
    """One ``Comparison`` for each of ``architectures`` (None: all), at random parameters of the sizes given."""
    key = jax.random.key(0) if key is None else key
    names = tuple(ARCHITECTURES) if architectures is None else tuple(architectures)
    return tuple(_compare_one(name, dim, expansion, key) for name in names)


def _compare_one(name, dim, expansion, key):
    entry = _entry(name)
    params = random_parameters(name, key, dim, expansion)
    keys = jax.random.split(jax.random.fold_in(key, 1), 2)
    u, other = (jax.random.normal(k, (4, dim)) for k in keys)

    @jax.jit
    def matrices(params, u):
        system = entry.convert(params, u, **entry.options)
        # the first step knows no decay, and no share of it
        return {
            "decay": system.decay[1:], "inputs": system.inputs[1:], "outputs": system.outputs[1:],
            "feedthrough": system.feedthrough[1:], "normalizer": system.normalizer,
        }  # fmt: skip

    here = matrices(params, u)

    def changed(params, u):
        there = matrices(params, u)
        return {k for k, a in here.items() if a is not None and not np.allclose(a, there[k], rtol=1e-4, atol=1e-6)}

    by_input = changed(params, other)

    def couples(name):
        """Whether one column of a parameter moves both Lambda and B."""
        value = params[name]
        columns = np.eye(value.shape[-1]) if value.ndim else [1.0]
        return any({"decay", "inputs"} <= changed({**params, name: value + 0.3 * column}, u) for column in columns)

    def kind(part):
        value = here[part]
        if value is None:
            return "none"
        if part in by_input:
            return "input"
        constants = [c for c in (0, 1) if np.all(np.asarray(value) == c)]
        return str(constants[0]) if constants else "fixed"

    parts = ("decay", "inputs", "outputs", "feedthrough", "normalizer")
    return Comparison(
        name, *(kind(part) for part in parts),
        coupled=tuple(k for k in params if couples(k)),
        states_per_channel=math.inf if name == "attention" else here["decay"].shape[1] / dim,
    )  # fmt: skip


def comparison_table(rows: Iterable[Comparison]) -> str:
    """The comparisons as a Markdown table."""
    lines = [
        "| architecture | Lambda | B | C | D | normaliser | Lambda and B share | states per channel |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        shared = ", ".join(row.coupled) or "nothing"
        count = "infinite" if math.isinf(row.states_per_channel) else f"{row.states_per_channel:g}"
        parts = (row.architecture, row.decay, row.inputs, row.outputs, row.feedthrough, row.normalizer, shared, count)
        lines.append("| " + " | ".join(parts) + " |")
    return "\n".join(lines)


def attention_as_ssd(
    key: Key[Array, ""], steps: int, dim: int, expansion: int
) -> tuple[dict[str, Array], Float[Array, "T d"], DynamicalSystem]:
    """(parameters of "ssd", u, a system of normalised attention that is the same): where the two families meet.

    With a = exp(A_log), attention with the normaliser eta_t = exp(a delta_t) eta_{t-1}, whose values are scaled by
    eta_t delta_t, has SSD's decay eta_{t-1} / eta_t = exp(-a delta_t) and input scale delta_t. Without that scaling the
    two differ: SSD writes with delta_t, attention with 1 / eta_t.
    """
    params = random_parameters("ssd", key, dim, expansion)
    u = jax.random.normal(jax.random.fold_in(key, 1), (steps, dim))
    delta = jax.nn.softplus(u @ params["dt"] + params["dt_bias"])
    log_eta = jnp.cumsum(jnp.exp(params["A_log"]) * delta, axis=0)
    # A constant factor of eta changes nothing: with the middle at 1, float32 holds twice the growth.
    log_eta = log_eta - (log_eta[:1] + log_eta[-1:]) / 2
    system = attention_system(
        (u @ params["C"])[:, None], (u @ params["B"])[:, None], params["value"], jnp.eye(dim)[None],
        log_normalizer=log_eta, scale=jnp.exp(log_eta) * delta,
    )  # fmt: skip
    return params, u, system
