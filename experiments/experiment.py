"""What an experiment is: a paper's claim, the arms that are trained to show it, and numeric checks on what came out.

One file per paper in experiments/papers/ makes an ``Experiment`` and enters it with ``register``. The trainer
(experiments/trainer.py) trains every arm, ``measure`` derives further numbers, and the checks decide the verdict::

    @dataclasses.dataclass(frozen=True)
    class Config:
        dim: int = 32
        training: Training = Training(steps=600, batch_size=32, learning_rate=3e-3)

    def arms(config: Config) -> dict[str, Arm]:
        task = DelayedRecall(time=40)
        model = zoo.SequenceClassifier(num_outputs=6, dim=config.dim, pattern=("lstm",))
        return {"lstm": classification(model, task, config.training)}

    register(Experiment(
        name="recall", paper="...", claim="An LSTM remembers a symbol over 40 steps.",
        presets={"smoke": Config(...), "quick": Config(), "paper": Config(...)},
        arms=arms,
        checks={"quick": (Check("lstm recalls", "lstm/accuracy", ">=", 0.9),)},
    ))
"""

import dataclasses
import importlib
import importlib.util
import math
import operator
import os
import pathlib
import pkgutil
from collections.abc import Callable, Mapping
from typing import Any

import jax

from zoo.checks import check_choice, nearest
from zoo.tasks import HostTask, Task

PRESETS = ("smoke", "quick", "paper")
OPERATORS = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
    "==": operator.eq,
    "finite": lambda value, _: math.isfinite(value),
}
Metrics = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Training:
    """How an arm is trained. Sizes are global: over all devices of all hosts.

    Attributes:
      steps: optimiser steps.
      batch_size: examples per optimiser step; divisible by the number of devices times ``accumulate``.
      optimizer: "adamw", "adam", "lion", "rmsprop" or "sgd".
      learning_rate: peak learning rate.
      schedule: after the warm-up: "constant", "cosine" (to ``final_scale`` of the peak), "linear" (likewise),
        "inverse_sqrt", or "wsd" (warm-up, stable, decay: constant, at last linear to ``final_scale``).
      warmup: steps of linear warm-up from 0.
      final_scale: end of a cosine, linear or wsd schedule, as a share of the peak.
      decay_share: of all steps, in which a wsd schedule falls.
      b1, b2, eps: Adam's decay rates and epsilon; b1 is the momentum of sgd.
      weight_decay: decoupled decay (adamw, lion), on parameters with at least two axes that are not ``slow``.
      slow: regular expressions on parameter paths such as "layers/.*/log_step": these parameters get no weight decay,
        and ``slow_scale`` times the learning rate (state space models want it).
      slow_scale: see ``slow``. One factor for all of them, or one for each regular expression, of which the first that
        fits a path counts; 0 holds parameters as they are.
      clip_norm: global-norm gradient clipping, None for none.
      clip_value: element-wise gradient clipping, None for none.
      accumulate: micro-batches per optimiser step.
      ema: decay of an exponential moving average of the parameters, used for evaluation; None for none.
      shard_optimizer: every device keeps and updates its share of the optimiser's state only (ZeRO stage 1, Rajbhandari
        et al. 2020): less memory for the same numbers, and the same traffic between devices.
      steps_per_call: optimiser steps inside one compiled call.
      evaluate_every: steps between evaluations; None: only at the end.
      checkpoint_every: steps between checkpoints; None: only at the end (and on SIGTERM).
    """

    steps: int = 1000
    batch_size: int = 32
    optimizer: str = "adamw"
    learning_rate: float = 1e-3
    schedule: str = "constant"
    warmup: int = 0
    final_scale: float = 0.0
    decay_share: float = 0.1
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    slow: tuple[str, ...] = ()
    slow_scale: float | tuple[float, ...] = 1.0
    clip_norm: float | None = 1.0
    clip_value: float | None = None
    accumulate: int = 1
    ema: float | None = None
    shard_optimizer: bool = False
    steps_per_call: int = 50
    evaluate_every: int | None = None
    checkpoint_every: int | None = None


@dataclasses.dataclass(frozen=True)
class Arm:
    """One model trained on one task. Everything is a pure, jit-able function unless said otherwise.

    Attributes:
      init: ``init(key, batch) -> params`` (any pytree; for Flax the whole variables dict).
      loss: ``loss(params, batch, key, step, carry) -> (loss, (metrics, carry))``. ``loss`` is a mean over the batch's
        rows; ``metrics`` a dict of scalars; ``key`` for dropout; ``step`` int32; ``carry`` as made by ``carry``. With
        ``mutable`` the last part is ``(metrics, carry, renewed)``, ``renewed`` being these collections of params.
      task: makes the training batches.
      training: how it is trained.
      evaluate: ``evaluate(params, key, data) -> dict of scalars``: final metrics, computed in one compiled call;
        ``data`` is ``evaluation_data``.
      evaluation_data: arrays for ``evaluate``, handed over as an argument; None for none.
      carry: ``carry(rows) -> pytree``: what ``loss`` carries from one step to the next with leading axis ``rows``
        (truncated backpropagation through time); None for nothing.
      model: the module, for the record (``zoo.describe``), or None.
      mutable: collections of the variables that ``loss`` itself renews, such as "batch_stats"; they are averaged over
        the devices, and no optimiser touches them.
    """

    init: Callable[[jax.Array, Any], Any]
    loss: Callable[..., tuple[jax.Array, tuple[Metrics, Any]]]
    task: Task | HostTask
    training: Training
    evaluate: Callable[[Any, jax.Array, Any], Metrics]
    evaluation_data: Any = None
    carry: Callable[[int], Any] | None = None
    model: Any = None
    mutable: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Trained:
    """What training an arm gave: final ``params`` (the moving average if there is one, on one device), ``metrics`` of
    the last evaluation as Python floats, ``history`` of logged rows, wall-clock ``seconds``."""

    arm: Arm
    params: Any
    metrics: dict[str, float]
    history: list[dict[str, float]]
    seconds: float


@dataclasses.dataclass(frozen=True)
class Check:
    """``value op threshold``, where ``value`` names a metric: "<arm>/<metric>", or a key that ``measure`` returned."""

    name: str
    value: str
    op: str
    threshold: float = math.nan

    def __post_init__(self):
        check_choice("op", self.op, OPERATORS)

    def verdict(self, metrics: Mapping[str, float]) -> dict[str, Any]:
        """The check's line in verdict.json. A metric that is missing or NaN does not pass."""
        value = metrics.get(self.value)
        passed = value is not None and bool(OPERATORS[self.op](value, self.threshold))
        return {"name": self.name, "value": value, "op": self.op, "threshold": self.threshold, "passed": passed}


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A paper's claim and how it is tested.

    Attributes:
      name: as given to ``--experiment``.
      paper: authors, year, title.
      claim: one sentence.
      presets: "smoke" (seconds, for tests), "quick" (at most 4 minutes on 2 CPU cores; shows the claim) and "paper"
        (the paper's own size): frozen dataclasses of one type, whose fields ``--set`` overrides.
      arms: ``arms(config) -> {name: Arm}``; the method and its baselines.
      checks: preset -> checks. "smoke" may be left out (then: every arm's final loss is finite).
      measure: ``measure(config, trained, key) -> {metric: float}`` after all arms: derived and untrained numbers.
      figures: ``figures(config, trained, metrics) -> {file name: matplotlib Figure}``: drawings beyond curves.png.
      texts: ``texts(config, trained, metrics, key) -> {title: text}``: samples and the like, printed and put in the report.
      stand_in: ``stand_in(config, folder) -> config``: gives every data path that ``config`` lacks, after writing files of
        the public data's sizes there (``experiments.stand_ins``); for preflight. None: no preset reads files.
      next_steps: what to try next, one sentence, printed last.
      notes: what a reader of the report should know (what was found, what does not separate).
    """

    name: str
    paper: str
    claim: str
    presets: Mapping[str, Any]
    arms: Callable[[Any], Mapping[str, Arm]]
    checks: Mapping[str, tuple[Check, ...]]
    measure: Callable[[Any, Mapping[str, Trained], jax.Array], Mapping[str, float]] | None = None
    figures: Callable[[Any, Mapping[str, Trained], Mapping[str, float]], Mapping[str, Any]] | None = None
    texts: Callable[[Any, Mapping[str, Trained], Mapping[str, float], jax.Array], Mapping[str, str]] | None = None
    stand_in: Callable[[Any, pathlib.Path], Any] | None = None
    next_steps: str = ""
    notes: str = ""


_EXPERIMENTS: dict[str, Experiment] = {}


def register(experiment: Experiment) -> Experiment:
    """Enters an experiment; raises ValueError for a taken name or missing presets."""
    if experiment.name in _EXPERIMENTS and _EXPERIMENTS[experiment.name].claim != experiment.claim:
        raise ValueError(f"the experiment name {experiment.name!r} is taken")
    if set(experiment.presets) != set(PRESETS):
        raise ValueError(f"{experiment.name} needs the presets {', '.join(PRESETS)}, has {sorted(experiment.presets)}")
    _EXPERIMENTS[experiment.name] = experiment
    return experiment


def experiments() -> dict[str, Experiment]:
    """All registered experiments by name.

    Imports every file of experiments/papers, and the modules that the environment variable ZOO_EXPERIMENT_MODULES
    names (comma-separated): that is how experiments outside this package join.
    """
    import experiments.papers

    for module in pkgutil.iter_modules(experiments.papers.__path__):
        importlib.import_module(f"experiments.papers.{module.name}")
    for name in filter(None, os.environ.get("ZOO_EXPERIMENT_MODULES", "").split(",")):
        importlib.import_module(name.strip())
    return dict(sorted(_EXPERIMENTS.items()))


def get(name: str) -> Experiment:
    """The experiment called ``name``; ValueError with the nearest name if there is none."""
    if name not in _EXPERIMENTS and name.isidentifier() and importlib.util.find_spec(f"experiments.papers.{name}"):
        importlib.import_module(f"experiments.papers.{name}")  # its own file is enough
    known = _EXPERIMENTS if name in _EXPERIMENTS else experiments()
    if name not in known:
        raise ValueError(f"unknown experiment {name!r}{nearest(name, known)} (known: {', '.join(known)})")
    return known[name]
