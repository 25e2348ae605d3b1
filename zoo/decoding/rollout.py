"""Letting a decision model act: episodes conditioned on the return that is asked for.

What the model remembers while it acts is its ``context_mode``:

* "running": the state is carried through the whole episode (for Aaren a state of constant size, no truncation);
* "reset": the state is emptied every ``context`` steps, so that the model never reads more than it was trained on;
* "window": before every action the last ``context`` steps are read again from an empty state, as Decision Transformers
  are evaluated.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from zoo.checks import check_choice, check_positive

CONTEXT_MODES = ("running", "reset", "window")


class Memory(NamedTuple):
    """What a policy carries: the model's ``state``; for "window" the last steps, newest last, and their number."""

    state: Any
    returns_to_go: Any
    observations: Any
    actions: Any
    timesteps: Any


class Policy(NamedTuple):
    """``start(batch) -> memory``; ``act(returns_to_go [B], observation [B, S], timestep, memory) -> (action, memory)``."""

    start: Callable[[int], Memory]
    act: Callable[..., tuple[Float[Array, "B A"], Memory]]


def decision_policy(
    model: Any, params: Mapping[str, Any], *, context_mode: str = "running", context: int = 20
) -> Policy:
    """A ``zoo.models.DecisionModel`` as a policy: pure functions, for a compiled loop or for an environment on the host.

    Args:
      model: the decision model.
      params: its variables.
      context_mode: "running", "reset" or "window", see the module docstring.
      context: steps between resets, or in the window.
    """
    check_choice("context_mode", context_mode, CONTEXT_MODES)
    check_positive("context", context)

    def start(batch: int) -> Memory:
        if context_mode != "window":
            return Memory(model.initial_state(batch), *(None,) * 4)
        shapes = ((), (model.observation_dim,), (model.action_dim,))
        return Memory(
            None, *(jnp.zeros((batch, context, *s)) for s in shapes), jnp.full((batch, context), -1, jnp.int32)
        )

    def act(
        returns_to_go: Float[Array, " B"], observation: Float[Array, "B S"], timestep: Int[Array, ""], memory: Memory
    ) -> tuple[Float[Array, "B A"], Memory]:
        step = jnp.broadcast_to(timestep, returns_to_go.shape)
        if context_mode != "window":
            reset = jnp.broadcast_to(timestep % context == 0, step.shape) if context_mode == "reset" else None
            action, state = model.apply(
                params, returns_to_go, observation, step, memory.state, reset=reset, method="act"
            )
            state = model.apply(params, action, step, state, method="record")
            return action, memory._replace(state=state)

        def push(buffer, new):
            return jnp.concatenate([buffer[:, 1:], new[:, None]], axis=1)

        new = (returns_to_go, observation, jnp.zeros((step.shape[0], model.action_dim)), step)
        buffers = tuple(map(push, memory[1:], new))
        # Slots that are still empty stand before the first step and are cut off there.
        seen = buffers[3] >= 0
        first = seen & ~jnp.pad(seen, ((0, 0), (1, 0)))[:, :-1]
        actions, _ = model.apply(params, *buffers[:3], jnp.maximum(buffers[3], 0), reset=first)
        action = actions[:, -1]
        return action, Memory(None, *buffers[:2], buffers[2].at[:, -1].set(action), buffers[3])

    return Policy(start, act)


def rollout(
    policy: Policy,
    environment: Any,
    key: Key[Array, ""],
    *,
    episodes: int,
    horizon: int,
    target_return: float | Float[Array, ""],
) -> Float[Array, " B"]:
    """Returns of ``episodes`` parallel episodes in a functional environment, in one compiled loop.

    Args:
      policy: see ``decision_policy``.
      environment: has ``reset(key) -> (state, observation)`` and ``step(state, action) -> (state, observation, reward)``,
        jit-able, for one episode.
      key: random starts.
      episodes: number of episodes.
      horizon: steps of each.
      target_return: what is asked for at the first step; rewards are subtracted as they come.
    """

    def step(carry, timestep):
        states, observations, to_go, memory = carry
        actions, memory = policy.act(to_go, observations, timestep, memory)
        states, observations, rewards = jax.vmap(environment.step)(states, actions)
        return (states, observations, to_go - rewards, memory), rewards

    states, observations = jax.vmap(environment.reset)(jax.random.split(key, episodes))
    to_go = jnp.broadcast_to(jnp.asarray(target_return, observations.dtype), (episodes,))
    carry = (states, observations, to_go, policy.start(episodes))
    _, rewards = jax.lax.scan(step, carry, jnp.arange(horizon))
    return jnp.sum(rewards, axis=0)


def host_rollout(
    policy: Policy,
    environment: Any,
    *,
    seed: int,
    horizon: int,
    target_return: float,
    return_scale: float = 1.0,
    observation_mean: np.ndarray | float = 0.0,
    observation_deviation: np.ndarray | float = 1.0,
) -> float:
    """Return of one episode in an environment with the Gymnasium interface, which runs on the host.

    Args:
      policy: see ``decision_policy``.
      environment: ``reset(seed=...) -> (observation, info)``, ``step(action) -> (observation, reward, terminated,
        truncated, info)``.
      seed: of the environment's start.
      horizon: most steps.
      target_return: what is asked for, in the environment's units.
      return_scale: returns are divided by it before the model reads them.
      observation_mean, observation_deviation: standardisation of observations.
    """
    act = jax.jit(policy.act)
    memory, total = policy.start(1), 0.0
    observation, _ = environment.reset(seed=seed)
    for timestep in range(horizon):
        seen = ((np.asarray(observation) - observation_mean) / observation_deviation).astype(np.float32)
        to_go = np.float32((target_return - total) / return_scale)
        action, memory = act(jnp.asarray([to_go]), jnp.asarray(seen)[None], jnp.int32(timestep), memory)
        observation, reward, terminated, truncated, _ = environment.step(np.asarray(action[0]))
        total += float(reward)
        if terminated or truncated:
            break
    return total
