"""Event model: when does the next event come (mixture of log-normals), and of which kind is it (softmax).

Shchur, Bilos, Guennemann (2020), Intensity-Free Learning of Temporal Point Processes. Interval tau_i and mark k_i of
event i are embedded, a causal stack gives the history vector h_i, and

    p(tau_{i+1} | h_i) = sum_m pi_m LogNormal(tau; mu_m, s_m)      pi = softmax(a_m), mu_m, s_m = exp(b_m), m = 1 .. M
    p(k_{i+1} | h_i) = softmax(W h_i)

with a, mu, b linear in h_i, in units where log tau has mean 0 and deviation 1 over the training data. The best guess of
the next interval in squared error is the mixture's mean sum_m pi_m exp(mu_m + s_m^2 / 2).
"""

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from zoo.checks import check_choice, check_floating, check_positive, check_state, check_tokens
from zoo.dtypes import accumulator
from zoo.layers.positions import sinusoidal_positions
from zoo.models.language_model import count_positions
from zoo.models.stack import Spec, Stack, freeze_specs
from zoo.registry import register


@struct.dataclass
class EventPrediction:
    """What is said about the next event.

    Attributes:
      log_weights: log pi [B, N, M].
      means: mu [B, N, M], of the log interval.
      deviations: s [B, N, M], of the log interval.
      mark_logits: [B, N, K].
    """

    log_weights: Float[Array, "*B M"]
    means: Float[Array, "*B M"]
    deviations: Float[Array, "*B M"]
    mark_logits: Float[Array, "*B K"]


def interval_log_density(prediction: EventPrediction, intervals: Float[Array, "*B"]) -> Float[Array, "*B"]:
    """log p(tau) of the next interval under the mixture; ``intervals`` are positive."""
    log_tau = jnp.log(intervals)[..., None]
    z = (log_tau - prediction.means) / prediction.deviations
    normal = -0.5 * z**2 - jnp.log(prediction.deviations) - 0.5 * jnp.log(2 * jnp.pi)
    return jax.nn.logsumexp(prediction.log_weights + normal, axis=-1) - log_tau[..., 0]


def expected_interval(prediction: EventPrediction) -> Float[Array, "*B"]:
    """Mean of the mixture, sum_m pi_m exp(mu_m + s_m^2 / 2)."""
    return jnp.exp(jax.nn.logsumexp(prediction.log_weights + prediction.means + prediction.deviations**2 / 2, axis=-1))


def median_interval(prediction: EventPrediction, *, iterations: int = 40) -> Float[Array, "*B"]:
    """Median of the mixture by bisection of its distribution function in log tau; halves the bracket every iteration."""
    reach = 8 * prediction.deviations
    bracket = (jnp.min(prediction.means - reach, axis=-1), jnp.max(prediction.means + reach, axis=-1))

    def halve(_, bracket):
        low, high = bracket
        middle = (low + high) / 2
        z = (middle[..., None] - prediction.means) / prediction.deviations
        below = jnp.sum(jnp.exp(prediction.log_weights) * jax.scipy.stats.norm.cdf(z), axis=-1) < 0.5
        return jnp.where(below, middle, low), jnp.where(below, high, middle)

    low, high = jax.lax.fori_loop(0, iterations, halve, bracket)
    return jnp.exp((low + high) / 2)


@struct.dataclass
class EventModelState:
    """Carried state: ``layers`` (as ``Stack.initial_state``), ``position`` [B] int32, events since the sequence began."""

    layers: Any
    position: Int[Array, " B"]


@register("event_model", kind="model", variants={"default": {"num_marks": 3, "dim": 8, "components": 4}})
class EventModel(nn.Module):
    """Predicts the next event of a marked sequence from all events so far.

    Attributes:
      num_marks: kinds of events K.
      dim: width D.
      components: log-normals M in the mixture.
      log_mean: mean of log intervals in the training data.
      log_deviation: standard deviation of log intervals in the training data.
      positions: "none" or "sinusoidal" signal added to the embedded events.
      pattern, depth, mlp, mlp_dim, norm, norm_position, final_norm, dropout, remat, dtype: see ``zoo.models.Stack``.
    """

    num_marks: int
    dim: int
    components: int = 64
    log_mean: float = 0.0
    log_deviation: float = 1.0
    positions: str = "sinusoidal"
    pattern: tuple[Spec, ...] = ("aaren",)
    depth: int | None = None
    mlp: str = "gelu"
    mlp_dim: int | None = None
    norm: str = "layer"
    norm_position: str = "pre"
    final_norm: bool = True
    dropout: float = 0.0
    remat: bool = False
    dtype: str = "float32"

    causal: ClassVar[bool] = True
    paper: ClassVar[str] = "Shchur et al. 2020, Intensity-Free Learning of Temporal Point Processes"

    def __post_init__(self):
        freeze_specs(self)
        super().__post_init__()

    def _stack(self, **options: Any) -> Stack:
        fields = ("dim", "pattern", "depth", "mlp", "mlp_dim", "norm", "norm_position", "final_norm", "dropout",
                  "remat", "dtype")  # fmt: skip
        return Stack(**{f: getattr(self, f) for f in fields}, **options)

    @nn.compact
    def __call__(
        self,
        intervals: Float[Array, "B N"],
        marks: Int[Array, "B N"],
        state: EventModelState | None = None,
        *,
        reset: Bool[Array, "B N"] | None = None,
        deterministic: bool = True,
    ) -> tuple[EventPrediction, EventModelState]:
        """Returns (prediction of event i + 1 at every event i, state after the last event).

        ``reset`` marks the first event of a new sequence inside a row. Rows padded on the right need nothing: the stack
        is causal. Intervals must be positive and marks in [0, num_marks); neither is checked.
        """
        check_positive("num_marks", self.num_marks)
        check_positive("components", self.components)
        check_choice("positions", self.positions, ("none", "sinusoidal"))
        check_floating("intervals", intervals)
        check_tokens("marks", marks)
        if intervals.shape != marks.shape:
            raise ValueError(f"intervals {list(intervals.shape)} and marks {list(marks.shape)} must have equal shapes")
        if self.log_deviation <= 0:
            raise ValueError(f"log_deviation must be positive, got {self.log_deviation}")
        if state is not None:
            check_state(state, jax.eval_shape(lambda: self.initial_state(marks.shape[0])))
        z = (jnp.log(intervals) - self.log_mean) / self.log_deviation
        x = nn.Dense(self.dim, dtype=self.dtype, name="interval")(z[..., None])
        x = x + nn.Embed(self.num_marks, self.dim, dtype=self.dtype, name="mark")(marks)
        start = jnp.zeros(marks.shape[0], jnp.int32) if state is None else state.position
        position = count_positions(start, marks.shape[1], reset)
        if self.positions == "sinusoidal":
            x = x + sinusoidal_positions(position, self.dim).astype(x.dtype)
        layers = None if state is None else state.layers
        h, layers = self._stack(name="stack")(x, layers, reset=reset, deterministic=deterministic)
        # A narrow start: the mixture's mean grows like exp(s^2 / 2), and would overflow with wide components.
        narrow = nn.initializers.variance_scaling(0.1, "fan_in", "truncated_normal")
        parameters = nn.Dense(3 * self.components, kernel_init=narrow, dtype=self.dtype, name="mixture")(h)
        logits, means, scales = jnp.split(parameters.astype(accumulator(h.dtype)), 3, axis=-1)
        mark_logits = nn.Dense(self.num_marks, dtype=self.dtype, name="next_mark")(h).astype(accumulator(h.dtype))
        prediction = EventPrediction(
            jax.nn.log_softmax(logits),
            self.log_mean + self.log_deviation * means,
            self.log_deviation * jnp.exp(scales),
            mark_logits,
        )
        return prediction, EventModelState(layers, position[:, -1] + 1)

    def initial_state(self, batch_size: int, dtype: str | None = None) -> EventModelState:
        """State before the first event; ``dtype`` is the storage dtype of caches."""
        layers = self._stack(parent=None).initial_state(batch_size, dtype)
        return EventModelState(layers, jnp.zeros(batch_size, jnp.int32))
