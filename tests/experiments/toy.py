"""A tiny registered experiment for the tests of trainer, launcher and faults.

Join it with ZOO_EXPERIMENT_MODULES=tests.experiments.toy. A line is fitted to noisy points; ``nan_at`` injects a NaN
at one step, into the loss or only into the gradient of one parameter; ``pause`` makes every step take a while.
"""

import dataclasses
import time
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from experiments.experiment import Arm, Check, Experiment, Training, register
from zoo.tasks import Batch, HostTask, Task


@dataclasses.dataclass(frozen=True)
class Line(Task):
    """y = w . x + noise, with w given as data."""

    dim: int = 4

    def data(self):
        return np.arange(1, self.dim + 1, dtype=np.float32) / self.dim

    def example(self, key, data=None):
        key_x, key_noise = jax.random.split(key)
        x = jax.random.normal(key_x, (self.dim,))
        return Batch(x, jnp.tanh(x @ data) + 0.1 * jax.random.normal(key_noise))


@dataclasses.dataclass(frozen=True)
class HostLine(HostTask):
    """The same from the host."""

    dim: int = 4

    def read(self, seed, step, rows, batch_size):
        row = np.array([np.random.default_rng((seed, step, r)).normal(size=self.dim + 1) for r in rows], np.float32)
        weights = np.arange(1, self.dim + 1, dtype=np.float32) / self.dim
        return Batch(row[:, :-1], np.tanh(row[:, :-1] @ weights) + 0.1 * row[:, -1])


@dataclasses.dataclass(frozen=True)
class File(Line):
    """Its weights lie in a file."""

    path: str = ""

    def data(self):
        return np.load(self.path)


@dataclasses.dataclass(frozen=True)
class Model:
    """A network of one hidden layer."""

    width: int = 8
    widths: tuple[int, ...] = (8, 8)
    options: Mapping[str, float] = dataclasses.field(default_factory=lambda: {"scale": 1.0})

    def __post_init__(self):
        if self.width < 1:
            raise ValueError(f"width must be a positive integer, got {self.width}")


@dataclasses.dataclass(frozen=True)
class Config:
    model: Model = Model()
    nan_at: int | None = None
    nan_in: str = "loss"
    pause: float = 0.0
    carry: bool = False
    source: str = "device"
    file: str = ""
    label: str | None = None
    arms: int = 2
    training: Training = Training(
        steps=60, batch_size=8, learning_rate=1e-2, steps_per_call=5, checkpoint_every=10, evaluate_every=30
    )


def arm(config: Config, model: Model | None = None) -> Arm:
    """Fits the line with a small network; with ``carry``, remembers the running mean of the inputs."""
    model = config.model if model is None else model
    task = HostLine() if config.source == "host" else Line() if not config.file else File(path=config.file)

    def init(key, batch):
        keys = jax.random.split(key)
        return {
            "hidden": {"kernel": 0.5 * jax.random.normal(keys[0], (batch.inputs.shape[-1], model.width))},
            "out": {"kernel": 0.5 * jax.random.normal(keys[1], (model.width,)), "bias": jnp.zeros(())},
        }

    def predict(params, x):
        return jnp.tanh(x @ params["hidden"]["kernel"]) @ params["out"]["kernel"] + params["out"]["bias"]

    def loss(params, batch, key, step, carry):
        poison = 0.0
        if config.nan_at is not None and config.nan_in == "loss":
            poison = jnp.where(step == config.nan_at, jnp.nan, 0.0)
        elif config.nan_at is not None:  # the derivative of sqrt at 0, times 0
            poison = jnp.sqrt(jnp.where(step == config.nan_at, 0 * params["out"]["bias"], 1.0))
        inputs = batch.inputs
        if carry is not None:
            carry = 0.9 * carry + 0.1 * inputs
            inputs = inputs + 0.01 * carry
        if config.pause:
            jax.debug.callback(lambda: time.sleep(config.pause))
        error = predict(params, inputs) - batch.targets
        return jnp.mean(error**2) + poison, ({"error": jnp.mean(jnp.abs(error))}, carry)

    def evaluate(params, key, data):
        batch = Line().batch(key, 64, jnp.asarray(Line().data()))
        return {"loss": jnp.mean((predict(params, batch.inputs) - batch.targets) ** 2)}

    make_carry = (lambda rows: jnp.zeros((rows, 4))) if config.carry else None
    return Arm(init, loss, task, config.training, evaluate, carry=make_carry)


def arms(config: Config) -> dict[str, Arm]:
    every = {"wide": arm(config), "narrow": arm(config, dataclasses.replace(config.model, width=2))}
    return dict(list(every.items())[: config.arms])


register(
    Experiment(
        name="toy",
        paper="Nobody 2000, On lines",
        claim="A small network fits a line.",
        presets={"smoke": Config(arms=1), "quick": Config(), "paper": Config(model=Model(width=64))},
        arms=arms,
        checks={
            "quick": (Check("wide fits", "wide/loss", "<=", 10.0), Check("both compared", "difference", "<=", 10.0)),
            "paper": (Check("impossible", "wide/loss", "<", 0.0),),
        },
        measure=lambda config, trained, key: {
            "difference": abs(trained["wide"].metrics["loss"] - trained["narrow"].metrics["loss"])
            if "narrow" in trained
            else 0.0
        },
    )
)
