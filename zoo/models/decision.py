"""Decision model: acting as sequence modelling, conditioned on the return that is asked for.

Chen et al. (2021), Decision Transformer. Every step of an episode is three tokens, return-to-go R_t, observation s_t,
action a_t, each embedded linearly, plus a signal of the time step that the three share, then layer-normalised:

    (R_1, s_1, a_1, R_2, s_2, a_2, ...)      3 T tokens of width D

through a causal stack; the features at the observation's token predict the action: a_t = tanh(W h_{s_t} + b). Training
is regression on recorded actions. To act, ask for a return, subtract the rewards as they come, and carry the state:
``act`` reads (R_t, s_t) and says a_t, ``record`` reads the action that was taken.
"""

from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from zoo.checks import check_choice, check_floating, check_positive, check_reset
from zoo.layers.norms import LayerNorm
from zoo.layers.positions import sinusoidal_positions
from zoo.models.stack import Spec, Stack, freeze_specs
from zoo.registry import register

POSITIONS = ("sinusoidal", "learned")


@register("decision_model", kind="model", variants={"default": {"observation_dim": 3, "action_dim": 2, "dim": 8}})
class DecisionModel(nn.Module):
    """Predicts actions from returns-to-go, observations and earlier actions.

    Attributes:
      observation_dim: width S of an observation.
      action_dim: width A of an action, each entry in (-1, 1).
      dim: width D.
      positions: signal of the time step: "sinusoidal", or "learned", one vector per step.
      max_positions: size of the learned table; later steps reuse its last row.
      pattern, depth, mlp, mlp_dim, norm, norm_position, final_norm, dropout, remat, dtype: see ``zoo.models.Stack``.
    """

    observation_dim: int
    action_dim: int
    dim: int
    positions: str = "sinusoidal"
    max_positions: int = 1024
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
    paper: ClassVar[str] = "Chen et al. 2021, Decision Transformer: Reinforcement Learning via Sequence Modeling"

    def __post_init__(self):
        freeze_specs(self)
        super().__post_init__()

    def _stack(self, **options: Any) -> Stack:
        fields = ("dim", "pattern", "depth", "mlp", "mlp_dim", "norm", "norm_position", "final_norm", "dropout",
                  "remat", "dtype")  # fmt: skip
        return Stack(**{f: getattr(self, f) for f in fields}, **options)

    def setup(self):
        check_positive("observation_dim", self.observation_dim)
        check_positive("action_dim", self.action_dim)
        check_choice("positions", self.positions, POSITIONS)
        self.embed_return = nn.Dense(self.dim, dtype=self.dtype)
        self.embed_observation = nn.Dense(self.dim, dtype=self.dtype)
        self.embed_action = nn.Dense(self.dim, dtype=self.dtype)
        self.embedding_norm = LayerNorm()
        self.stack = self._stack()
        self.head = nn.Dense(self.action_dim, dtype=self.dtype)
        if self.positions == "learned":
            self.step_table = self.param("steps", nn.initializers.normal(0.02), (self.max_positions, self.dim))

    def __call__(
        self,
        returns_to_go: Float[Array, "B T"],
        observations: Float[Array, "B T S"],
        actions: Float[Array, "B T A"],
        timesteps: Int[Array, "B T"],
        state: Any = None,
        *,
        reset: Bool[Array, "B T"] | None = None,
        deterministic: bool = True,
    ) -> tuple[Float[Array, "B T A"], Any]:
        """Reads whole steps; returns (the action predicted at each of them, state after the last action).

        ``reset`` marks the first step of a new episode inside a row.
        """
        self._check(returns_to_go, observations, actions, timesteps)
        check_reset(reset, timesteps.shape)
        batch, time = timesteps.shape
        signal = self._signal(timesteps)
        tokens = jnp.stack(
            [
                self._token(self.embed_return, returns_to_go[..., None], signal),
                self._token(self.embed_observation, observations, signal),
                self._token(self.embed_action, actions, signal),
            ],
            axis=2,
        ).reshape(batch, 3 * time, self.dim)
        if reset is not None:
            nothing = jnp.zeros_like(reset)
            reset = jnp.stack([reset, nothing, nothing], axis=2).reshape(batch, 3 * time)
        h, state = self.stack(tokens, state, reset=reset, deterministic=deterministic)
        return self._action(h[:, 1::3]), state

    def act(
        self,
        returns_to_go: Float[Array, " B"],
        observation: Float[Array, "B S"],
        timestep: Int[Array, " B"],
        state: Any,
        *,
        reset: Bool[Array, " B"] | None = None,
    ) -> tuple[Float[Array, "B A"], Any]:
        """Reads the return asked for and the observation; returns (action, state). Follow it with ``record``."""
        signal = self._signal(timestep)
        tokens = jnp.stack(
            [
                self._token(self.embed_return, returns_to_go[:, None], signal),
                self._token(self.embed_observation, observation, signal),
            ],
            axis=1,
        )
        if reset is not None:
            reset = jnp.stack([reset, jnp.zeros_like(reset)], axis=1)
        h, state = self.stack(tokens, state, reset=reset)
        return self._action(h[:, 1]), state

    def record(self, action: Float[Array, "B A"], timestep: Int[Array, " B"], state: Any) -> Any:
        """Reads the action that was taken at ``timestep``; returns the state."""
        token = self._token(self.embed_action, action, self._signal(timestep))
        return self.stack(token[:, None], state)[1]

    def initial_state(self, batch_size: int, dtype: str | None = None) -> Any:
        """State before the first step: that of the stack."""
        return self._stack(parent=None).initial_state(batch_size, dtype)

    def _token(self, embed, values, signal):
        return self.embedding_norm(embed(values) + signal)

    def _signal(self, timesteps):
        if self.positions == "learned":
            return self.step_table[jnp.minimum(timesteps, self.max_positions - 1)].astype(self.dtype)
        return sinusoidal_positions(timesteps, self.dim).astype(self.dtype)

    def _action(self, h):
        return jnp.tanh(self.head(h).astype(jnp.promote_types(h.dtype, jnp.float32)))

    def _check(self, returns_to_go, observations, actions, timesteps):
        if timesteps.ndim != 2 or timesteps.shape[1] == 0 or not jnp.issubdtype(timesteps.dtype, jnp.integer):
            raise ValueError(f"timesteps must be integers [batch, time >= 1], got {timesteps.dtype}{timesteps.shape}")
        shape = timesteps.shape
        wanted = {
            "returns_to_go": (returns_to_go, shape),
            "observations": (observations, (*shape, self.observation_dim)),
            "actions": (actions, (*shape, self.action_dim)),
        }
        for name, (array, want) in wanted.items():
            check_floating(name, array)
            if array.shape != want:
                raise ValueError(f"{name} must have shape {list(want)}, got {list(array.shape)}")
