"""Offline reinforcement learning as sequence modelling: trajectories of returns-to-go, observations and actions.

A trajectory model reads (R_1, s_1, a_1, R_2, ...) with R_t the sum of rewards from step t on, and predicts a_t from
everything up to s_t (Chen et al. 2021, Decision Transformer). Asked for a high R it should act well.

``PointMass`` is a small environment with data from good and bad policies. ``OfflineTrajectories`` reads recorded ones,
in D4RL's layout: a .npz or .hdf5 file with ``observations`` [N, S], ``actions`` [N, A], ``rewards`` [N] and ``terminals``
[N] of all episodes one after another, and if there are any ``timeouts`` [N], the other ends of episodes.
"""

import dataclasses
import functools
import importlib
import os
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from zoo.checks import check_positive
from zoo.tasks.base import Batch, Task

# Returns of a random and of an expert policy, as published with D4RL (Fu et al. 2020).
D4RL_REFERENCE = {
    "halfcheetah": (-280.178953, 12135.0),
    "hopper": (-20.272305, 3234.3),
    "walker2d": (1.629008, 4592.3),
    "ant": (-325.6, 3879.7),
}
_LAYOUT = (
    "needed: a .npz or .hdf5 file with observations, actions, rewards, terminals (and timeouts), as D4RL's files are "
    "(public source: github.com/Farama-Foundation/D4RL, e.g. hopper_medium-v2.hdf5)"
)


class Trajectory(NamedTuple):
    """Steps of an episode: ``returns_to_go`` [T], ``observations`` [T, S], ``actions`` [T, A], ``timesteps`` [T] from 0."""

    returns_to_go: Float[Array, "*B T"]
    observations: Float[Array, "*B T S"]
    actions: Float[Array, "*B T A"]
    timesteps: Int[Array, "*B T"]


def normalised_return(value: Any, random: Any, expert: Any) -> Any:
    """100 * (value - random) / (expert - random): 0 is a random policy, 100 an expert."""
    return 100 * (value - random) / (expert - random)


def returns_to_go(rewards: Float[Array, " T"]) -> Float[Array, " T"]:
    """Sum of the rewards from every step to the end."""
    return jnp.cumsum(rewards[::-1])[::-1]


class PointMassState(NamedTuple):
    """``position`` and ``goal``, scalars."""

    position: Float[Array, ""]
    goal: Float[Array, ""]


@dataclasses.dataclass(frozen=True)
class PointMass(Task):
    """A point on a line that is to go to a goal, and trajectories of two policies, a good one and a random one.

    Observation (position, goal), both uniform in -1 .. 1 at the start; action a in -1 .. 1 moves the point by
    ``speed`` * a; reward -|position - goal| after the move; an episode has ``horizon`` steps. In the data, half of the
    trajectories follow the expert clip((goal - position) / speed) plus Gaussian noise of ``noise``, the other half
    uniformly random actions.

    Batch: ``inputs`` Trajectory of ``horizon`` steps, ``targets`` its actions [horizon, 1].
    """

    horizon: int = 10
    speed: float = 0.25
    noise: float = 0.2

    def __post_init__(self):
        check_positive("horizon", self.horizon)
        if self.speed <= 0:
            raise ValueError(f"speed must be positive, got {self.speed}")

    observation_dim = 2
    action_dim = 1

    def reset(self, key: Key[Array, ""]) -> tuple[PointMassState, Float[Array, " S"]]:
        """Starts an episode; returns (state, observation)."""
        state = PointMassState(*jax.random.uniform(key, (2,), minval=-1.0, maxval=1.0))
        return state, jnp.stack(state)

    def step(
        self, state: PointMassState, action: Float[Array, " A"]
    ) -> tuple[PointMassState, Float[Array, " S"], Float[Array, ""]]:
        """Applies an action, clipped to -1 .. 1; returns (state, observation, reward)."""
        position = state.position + self.speed * jnp.clip(action[0], -1.0, 1.0)
        state = state._replace(position=position)
        return state, jnp.stack(state), -jnp.abs(position - state.goal)

    def expert(self, observation: Float[Array, " S"]) -> Float[Array, " A"]:
        """The optimal action."""
        return jnp.clip((observation[1] - observation[0]) / self.speed, -1.0, 1.0)[None]

    def episode(
        self, key_start: Key[Array, ""], key_steps: Key[Array, ""], skill: Float[Array, ""]
    ) -> tuple[Trajectory, Float[Array, ""]]:
        """An episode of the expert with ``noise`` (``skill`` = 1) or of random actions (0); returns (it, its return)."""
        start = self.reset(key_start)

        def step(carry, key):
            state, observation = carry
            key_noise, key_random = jax.random.split(key)
            noisy = self.expert(observation) + self.noise * jax.random.normal(key_noise, (1,))
            uniform = jax.random.uniform(key_random, (1,), minval=-1.0, maxval=1.0)
            action = jnp.where(skill > 0.5, jnp.clip(noisy, -1.0, 1.0), uniform)
            state, following, reward = self.step(state, action)
            return (state, following), (observation, action, reward)

        _, (observations, actions, rewards) = jax.lax.scan(step, start, jax.random.split(key_steps, self.horizon))
        return Trajectory(returns_to_go(rewards), observations, actions, jnp.arange(self.horizon)), jnp.sum(rewards)

    def example(self, key: Key[Array, ""], data: None = None) -> Batch:
        key_skill, key_start, key_steps = jax.random.split(key, 3)
        trajectory, _ = self.episode(key_start, key_steps, jax.random.bernoulli(key_skill).astype(jnp.float32))
        return Batch(trajectory, trajectory.actions)

    def reference_returns(self, key: Key[Array, ""], episodes: int) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """Mean returns of random actions and of the expert without noise, from the starts ``reset`` of the split key."""
        quiet, starts = dataclasses.replace(self, noise=0.0), jax.random.split(key, episodes)
        run = jax.vmap(jax.vmap(quiet.episode, (0, 0, None)), (None, None, 0))
        return tuple(jnp.mean(run(starts, starts, jnp.arange(2.0))[1], axis=1))


def read_trajectories(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Reads recorded episodes in D4RL's layout; adds ``ends`` [N], True at the last step of every episode.

    Raises:
      FileNotFoundError: no such file.
      ValueError: an array is missing or has another length, or values are not finite.
      ModuleNotFoundError: an .hdf5 file, and h5py is not installed.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no trajectory file {str(path)!r}; {_LAYOUT}")
    names = ("observations", "actions", "rewards", "terminals", "timeouts")
    if path.suffix in (".hdf5", ".h5"):
        try:
            h5py = importlib.import_module("h5py")
        except ModuleNotFoundError:
            raise ModuleNotFoundError(
                f"reading {path.name} needs h5py (pip install h5py), or the same arrays in a .npz"
            ) from None
        with h5py.File(path, "r") as archive:
            data = {name: np.asarray(archive[name]) for name in names if name in archive}
    else:
        with np.load(path, allow_pickle=False) as archive:
            data = {name: archive[name] for name in names if name in archive.files}
    missing = [name for name in names[:4] if name not in data]
    if missing:
        raise ValueError(f"{path.name} lacks {', '.join(missing)}; {_LAYOUT}")
    steps = len(data["rewards"])
    for name, array in data.items():
        if len(array) != steps or array.ndim != (2 if name in ("observations", "actions") else 1):
            raise ValueError(f"{path.name}: {name} has shape {list(array.shape)}, but there are {steps} rewards")
        if np.issubdtype(array.dtype, np.floating) and not np.all(np.isfinite(array)):
            raise ValueError(f"{path.name}: {name} holds values that are not finite")
    if not steps:
        raise ValueError(f"{path.name} holds no steps; {_LAYOUT}")
    data["ends"] = data["terminals"].astype(bool) | data.get("timeouts", np.zeros(steps)).astype(bool)
    data["ends"][-1] = True
    return data


@dataclasses.dataclass(frozen=True)
class OfflineTrajectories(Task):
    """Windows of ``context`` steps from recorded episodes.

    A window begins at a step drawn uniformly from all steps of the file and is padded on the right where its episode
    ends sooner. Observations are standardised over the file, returns divided by ``return_scale``.

    Batch: ``inputs`` Trajectory [context], ``targets`` actions, ``mask`` [context] the valid steps, ``lengths``.

    Attributes:
      path: file in D4RL's layout, see ``read_trajectories``.
      context: steps of a window.
      return_scale: returns are divided by it.
    """

    path: str
    context: int = 20
    return_scale: float = 1000.0

    def __post_init__(self):
        check_positive("context", self.context)
        if self.return_scale <= 0:
            raise ValueError(f"return_scale must be positive, got {self.return_scale}")

    @property
    def observation_dim(self) -> int:
        """Width of an observation."""
        return _recorded(os.fspath(self.path))["observations"].shape[1]

    @property
    def action_dim(self) -> int:
        """Width of an action."""
        return _recorded(os.fspath(self.path))["actions"].shape[1]

    def observation_statistics(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation [S] by which observations are standardised."""
        observations = _recorded(os.fspath(self.path))["observations"].astype(np.float64)
        return observations.mean(axis=0), observations.std(axis=0) + 1e-6

    def data(self) -> dict[str, np.ndarray]:
        """All steps [N]: standardised observations, actions, scaled returns, timesteps, ``last`` step of the episode."""
        recorded = _recorded(os.fspath(self.path))
        mean, deviation = self.observation_statistics()
        steps = len(recorded["rewards"])
        last = np.flatnonzero(recorded["ends"])
        episode = np.searchsorted(last, np.arange(steps))
        first = np.concatenate([[0], last[:-1] + 1])
        total = np.concatenate([[0.0], np.cumsum(recorded["rewards"], dtype=np.float64)])
        to_go = total[last + 1][episode] - total[:-1]
        return {
            "observations": ((recorded["observations"] - mean) / deviation).astype(np.float32),
            "actions": recorded["actions"].astype(np.float32),
            "returns_to_go": (to_go / self.return_scale).astype(np.float32),
            "timesteps": (np.arange(steps) - first[episode]).astype(np.int32),
            "last": last[episode].astype(np.int32),
        }

    def example(self, key: Key[Array, ""], data: dict[str, Any]) -> Batch:
        data = {name: jnp.asarray(array) for name, array in data.items()}
        start = jax.random.randint(key, (), 0, len(data["last"]))
        steps = start + jnp.arange(self.context)
        mask = steps <= data["last"][start]
        steps = jnp.where(mask, steps, start)
        window = Trajectory(*(data[name][steps] for name in Trajectory._fields))
        return Batch(window, window.actions, mask, jnp.sum(mask))


@functools.lru_cache(maxsize=2)
def _recorded(path: str) -> dict[str, np.ndarray]:
    return read_trajectories(path)
