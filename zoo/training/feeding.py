"""What a generative model is fed in training: the truth, its own samples, or a mixture of both.

Teacher forcing (Williams and Zipser 1989) feeds the true previous token; a free-running model is fed its own. A loss
measured under teacher forcing says little about free-running quality, so both should be reported. Scheduled sampling
(Bengio, Vinyals, Jaitly, Shazeer 2015) feeds the truth with a probability that falls during training.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from zoo.checks import check_choice, check_tokens

DECAYS = ("linear", "exponential", "inverse_sigmoid")


def scheduled_sampling(
    apply: Callable[[Any, Any, Any], tuple[Any, Any]],
    params: Any,
    start: Int[Array, " B"],
    targets: Int[Array, "B T"],
    state: Any,
    *,
    truth: Any,
    key: jax.Array | None = None,
) -> tuple[Float[Array, "B T V"], Int[Array, "B T"]]:
    """Runs a model along ``targets``, at every step feeding the true token before with probability ``truth``.

    Otherwise the model's own last token is fed: a sample, or its most likely token when ``key`` is None. ``truth`` 1 is
    teacher forcing (one step at a time; the parallel call is ``apply`` on the shifted targets), 0 is free-running.
    Gradients flow through the states, not through the choice of tokens.

    Args:
      apply: ``apply(params, tokens [B, 1], state) -> (logits [B, 1, V], state)``.
      params: its parameters.
      start: first token fed.
      targets: true tokens; the logits at t are predictions of ``targets[:, t]``.
      state: the model's state before ``start``.
      truth: probability in [0, 1], may be traced.
      key: for the coin and the samples.

    Returns:
      (logits, the tokens that the model said).

    Raises:
      ValueError: a ``truth`` outside [0, 1], or strictly between without a key.
    """
    check_tokens("targets", targets)
    if isinstance(truth, int | float):
        if not 0 <= truth <= 1:
            raise ValueError(f"truth must be a probability, got {truth}")
        if key is None and 0 < truth < 1:
            raise ValueError("scheduled_sampling needs a key for a truth between 0 and 1")
    coin_key, sample_key = (None, None) if key is None else jax.random.split(key)

    def step(carry, inputs):
        token, state = carry
        target, t = inputs
        logits, state = apply(params, token[:, None], state)
        logits = logits[:, 0]
        if key is None:
            said, take_truth = jnp.argmax(logits, axis=-1), jnp.broadcast_to(jnp.asarray(truth) >= 1, target.shape)
        else:
            said = jax.random.categorical(jax.random.fold_in(sample_key, t), logits)
            take_truth = jax.random.bernoulli(jax.random.fold_in(coin_key, t), truth, target.shape)
        said = said.astype(targets.dtype)
        return (jnp.where(take_truth, target, said), state), (logits, said)

    steps = (targets.T, jnp.arange(targets.shape[1]))
    _, (logits, said) = jax.lax.scan(step, (start.astype(targets.dtype), state), steps)
    return jnp.moveaxis(logits, 0, 1), said.T


def free_running(
    apply: Callable[[Any, Any, Any], tuple[Any, Any]],
    params: Any,
    start: Int[Array, " B"],
    targets: Int[Array, "B T"],
    state: Any,
) -> tuple[Float[Array, "B T V"], Int[Array, "B T"]]:
    """Greedy free-running evaluation: the model is fed its own most likely tokens (``targets`` only gives the length)."""
    return scheduled_sampling(apply, params, start, targets, state, truth=0.0)


def truth_probability(step: Any, kind: str, *, rate: float, floor: float = 0.0) -> jax.Array:
    """Probability of feeding the truth at an optimiser step, falling from (nearly) 1 to ``floor``.

    Args:
      step: optimiser step, may be traced.
      kind: "linear": 1 - step / rate; "exponential": exp(-step / rate); "inverse_sigmoid": rate / (rate + exp(step / rate)).
      rate: time scale in steps; for "inverse_sigmoid" the k of the paper, at least 1.
      floor: smallest probability.

    Raises:
      ValueError: unknown kind or a rate that is not positive.
    """
    check_choice("kind", kind, DECAYS)
    if not rate > 0:
        raise ValueError(f"rate must be positive, got {rate!r}")
    time = jnp.asarray(step) / rate
    if kind == "linear":
        probability = 1 - time
    elif kind == "exponential":
        probability = jnp.exp(-time)
    else:
        # rate / (rate + exp(time)), written so that exp cannot overflow.
        probability = jax.nn.sigmoid(jnp.log(jnp.asarray(rate, time.dtype)) - time)
    return jnp.clip(probability, floor, 1.0)
