"""Universal Transformers: one block iterated over depth goes deeper than it was trained to, and takes more steps where
more are needed.

The quick preset chases pointers (zoo/tasks/pointer_chasing.py): tokens are a set of arrows, every token is asked where
its chain ends. Trained on chains of at most 5 arrows, tested on chains of 8, the shared block is compared with as many
blocks of their own weights, and with a single step. With adaptive halting, on cycles, the steps taken are counted
against the hops asked for. The paper preset has the paper's own problems (universal_transformer_problems.py).
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from experiments.experiment import Arm, Check, Experiment, Trained, Training, register
from experiments.papers.universal_transformer_problems import (
    Passages,
    Programs,
    Stories,
    Strings,
    Translation,
    Verbs,
    compare,
)
from zoo.checks import check_choice
from zoo.layers import accuracy, cross_entropy, masked_mean
from zoo.mixers import UniversalTransformerEncoder, ponder_cost
from zoo.tasks import ChainRoot, Hop, Task

CHAIN_TRAINING = Training(
    steps=6000, batch_size=32, optimizer="adam", learning_rate=3e-3, schedule="cosine", warmup=600, b2=0.98, eps=1e-9
)
HOP_TRAINING = dataclasses.replace(CHAIN_TRAINING, steps=3000, batch_size=64, warmup=300)


@dataclasses.dataclass(frozen=True)
class PointerChasing:
    """Chains for depth generalisation, cycles for adaptive halting; both read by a set encoder without positions.

    Attributes:
      dim, heads, mlp_dim: widths.
      steps: depth steps of the Universal Transformer, and layers of the untied Transformer.
      trained_edges: longest chain in training.
      tested_edges: length of the test chains.
      max_hops: most hops asked for on the cycle.
      chain_training: training on chains.
      hop_training: training on cycles.
      halting_bias: initial bias of the halting unit.
      ponder: weight of the ponder cost ...
      ponder_from: ... from this share of the training on; before it is 0, so that the task is learned first.
      test_size: test sequences.
    """

    dim: int = 32
    heads: int = 2
    mlp_dim: int = 64
    steps: int = 6
    trained_edges: int = 5
    tested_edges: int = 8
    max_hops: int = 4
    chain_training: Training = CHAIN_TRAINING
    hop_training: Training = HOP_TRAINING
    halting_bias: float = -1.0
    ponder: float = 0.1
    ponder_from: float = 0.5
    test_size: int = 1000

    def arms(self) -> dict[str, Arm]:
        """The three arms on chains, and adaptive halting on cycles."""
        return {
            "universal": chain_arm(self, {"steps": self.steps}),
            "untied": chain_arm(self, {"steps": self.steps, "shared": False}),
            "single_step": chain_arm(self, {"steps": 1}),
            "halting": hop_arm(self),
        }


class SetReader(nn.Module):
    """Sums one embedding per input column, runs an encoder, and names a class for every token.

    Attributes:
      sizes: number of values of each input column.
      num_outputs: classes.
      encoder: Universal Transformer encoder without position signal.
    """

    sizes: tuple[int, ...]
    num_outputs: int
    encoder: UniversalTransformerEncoder

    @nn.compact
    def __call__(self, inputs: jax.Array, valid: jax.Array) -> tuple[jax.Array, Any]:
        """Logits [B, S, num_outputs] and what happened over depth; ``inputs`` [B, S, columns], ``valid`` [B, S]."""
        dim = self.encoder.dim
        x = jnp.zeros((*inputs.shape[:2], dim))
        for i, size in enumerate(self.sizes):
            x += self.param(f"embedding_{i}", nn.initializers.normal(1.0), (size, dim))[inputs[..., i]]
        y, _, depth = self.encoder.run(x, valid=valid)
        return y @ self.param("output", nn.initializers.normal(dim**-0.5), (dim, self.num_outputs)), depth


def encoder(config: PointerChasing, **options: Any) -> UniversalTransformerEncoder:
    """The encoder of all arms, up to ``options``: pre-norm, no positions, a learned step signal."""
    return UniversalTransformerEncoder(
        dim=config.dim, heads=config.heads, mlp_dim=config.mlp_dim, position_signal="none", **options
    )


def reader_arm(
    model: SetReader, task: Task, training: Training, objective: Callable, test: Task, test_size: int, metrics: Callable
) -> Arm:
    """An arm that minimises ``objective(logits, depth, batch, step)`` and reports ``metrics(logits, depth, batch)``."""

    def init(key, batch):
        return model.init(key, batch.inputs, batch.mask)

    def loss(params, batch, key, step, carry):
        value, logged = objective(*model.apply(params, batch.inputs, batch.mask), batch, step)
        return value, (logged, carry)

    def evaluate(params, key, data):
        batch = test.batch(key, test_size)
        return metrics(*model.apply(params, batch.inputs, batch.mask), batch)

    return Arm(init, loss, task, training, evaluate, model=model)


def chain_arm(config: PointerChasing, options: Mapping[str, Any]) -> Arm:
    """Training on short chains, accuracy by depth on long ones."""
    task = ChainRoot(max_edges=config.trained_edges)
    longer = ChainRoot(min_edges=config.tested_edges, max_edges=config.tested_edges)
    model = SetReader((task.num_nodes,) * 2, task.num_nodes, encoder(config, **options))

    def objective(logits, depth, batch, step):
        value = cross_entropy(logits, batch.targets, batch.mask)
        return value, {"accuracy": accuracy(logits, batch.targets, batch.mask)}

    def metrics(logits, depth, batch):
        by_depth = [accuracy(logits, batch.targets, batch.extra == d) for d in range(config.tested_edges + 1)]
        trained = config.trained_edges
        return {
            "loss": cross_entropy(logits, batch.targets, batch.mask),
            "accuracy": accuracy(logits, batch.targets, batch.mask),
            "shallow": jnp.mean(jnp.stack(by_depth[1 : trained + 1])),
            "deep": jnp.mean(jnp.stack(by_depth[trained + 1 :])),
            **{f"depth_{d}": value for d, value in enumerate(by_depth)},
        }

    return reader_arm(model, task, config.chain_training, objective, longer, config.test_size, metrics)


def hop_arm(config: PointerChasing) -> Arm:
    """Adaptive halting on cycles: accuracy, and steps taken by hops asked for."""
    task = Hop(max_hops=config.max_hops)
    model = SetReader(
        (task.num_nodes, task.num_nodes, task.max_hops),
        task.num_nodes,
        encoder(config, steps=config.steps, recurrence="act", halting_bias=config.halting_bias, halting_scale=0.0),
    )
    begin = round(config.ponder_from * config.hop_training.steps)

    def objective(logits, depth, batch, step):
        value = cross_entropy(logits, batch.targets, batch.mask)
        cost = ponder_cost(depth.steps, depth.remainder, batch.mask)
        steps = masked_mean(depth.steps.astype(jnp.float32), batch.mask)
        metrics = {"accuracy": accuracy(logits, batch.targets, batch.mask), "steps_taken": steps}
        return value + jnp.where(step >= begin, config.ponder, 0.0) * cost, metrics

    def metrics(logits, depth, batch):
        taken = depth.steps.astype(jnp.float32)
        by_hops = [masked_mean(taken, batch.extra == h) for h in range(1, config.max_hops + 1)]
        hits = [accuracy(logits, batch.targets, batch.extra == h) for h in range(1, config.max_hops + 1)]
        return {
            "loss": cross_entropy(logits, batch.targets, batch.mask),
            "accuracy": accuracy(logits, batch.targets, batch.mask),
            "steps_min": jnp.min(taken),
            "steps_max": jnp.max(taken),
            "steps_std": jnp.std(taken),
            "growth": by_hops[-1] - by_hops[0],
            **{f"steps_{h}": value for h, value in enumerate(by_hops, start=1)},
            **{f"hops_{h}": value for h, value in enumerate(hits, start=1)},
        }

    return reader_arm(model, task, config.hop_training, objective, task, config.test_size, metrics)


CHAIN_ARMS = {
    "universal": "Universal Transformer",
    "untied": "Transformer, untied layers",
    "single_step": "one step",
}


@dataclasses.dataclass(frozen=True)
class Config:
    """What is run: ``task`` chooses one of the other fields, ``--set=task=babi --set=babi.folder=...``.

    Attributes:
      task: name of one of the other fields.
      pointer_chasing: depth generalisation and adaptive halting, the quick demonstration.
      algorithmic: copy, reverse, addition.
      learning_to_execute: programs, and strings to memorise.
      babi: questions on stories.
      agreement: subject-verb agreement.
      lambada: the last word of a passage.
      translation: WMT14 English-German.
    """

    task: str = "pointer_chasing"
    pointer_chasing: PointerChasing = PointerChasing()
    algorithmic: Strings = Strings()
    learning_to_execute: Programs = Programs()
    babi: Stories = Stories()
    agreement: Verbs = Verbs()
    lambada: Passages = Passages()
    translation: Translation = Translation()

    def __post_init__(self):
        check_choice("task", self.task, [f.name for f in dataclasses.fields(self) if f.name != "task"])


def arms(config: Config) -> dict[str, Arm]:
    """Arms of the chosen task."""
    return getattr(config, config.task).arms()


def measure(config: Config, trained: Mapping[str, Trained], key: jax.Array) -> dict[str, float]:
    """Differences between the arms; for the paper's problems ``gain``, of the better kind over the Transformer."""
    if config.task == "pointer_chasing":
        deep = {name: arm.metrics["deep"] for name, arm in trained.items() if "deep" in arm.metrics}
        return {
            "deep_over_untied": deep["universal"] - deep["untied"],
            "deep_over_single_step": deep["universal"] - deep["single_step"],
        }
    metrics = {}
    if config.task == "translation":
        metrics = {f"{name}/bleu": config.translation.bleu(arm.arm, arm.params) for name, arm in trained.items()}
    return metrics | compare({name: arm.metrics for name, arm in trained.items()}, metrics)


def figures(config: Config, trained: Mapping[str, Trained], metrics: Mapping[str, float]) -> dict[str, Any]:
    """Accuracy by depth for the arms on chains, and steps taken by hops."""
    if config.task != "pointer_chasing":
        return {}
    import matplotlib.pyplot as plt

    pointers = config.pointer_chasing
    chains, axes = plt.subplots(figsize=(6, 3.8), layout="constrained")
    depths = np.arange(pointers.tested_edges + 1)
    for name, label in CHAIN_ARMS.items():
        axes.plot(depths, [trained[name].metrics[f"depth_{d}"] for d in depths], marker="o", label=label)
    axes.axvspan(pointers.trained_edges + 0.5, pointers.tested_edges + 0.3, color="0.92", label="never trained")
    axes.axhline(1 / 3, color="0.5", linestyle=":", label="guessing one of the roots")
    axes.set(xlabel="arrows between a node and the end of its chain", ylabel="accuracy", ylim=(0, 1.03))
    axes.set_xticks(depths)
    axes.legend(loc="center left", bbox_to_anchor=(0.39, 0.62), fontsize=8)
    axes.set_title(f"Trained on chains of up to {pointers.trained_edges} arrows, tested on {pointers.tested_edges}")

    ponder, axes = plt.subplots(figsize=(4.6, 3.8), layout="constrained")
    hops = np.arange(1, pointers.max_hops + 1)
    axes.plot(hops, [trained["halting"].metrics[f"steps_{h}"] for h in hops], marker="o")
    axes.set(xlabel="hops asked for", ylabel="steps taken (mean)", ylim=(0, pointers.steps + 0.2))
    axes.set_xticks(hops)
    axes.set_title("Adaptive halting on cycles")
    return {"accuracy_by_depth.png": chains, "steps_by_hops.png": ponder}


TINY = dataclasses.replace(CHAIN_TRAINING, steps=4, batch_size=4, warmup=2)
SMOKE = PointerChasing(
    dim=8, mlp_dim=8, steps=2, trained_edges=2, tested_edges=3, chain_training=TINY, hop_training=TINY, test_size=8
)

NOTES = """\
What separates is the extrapolation. Inside the trained depths sharing buys parameters (8,416 against 50,496 in the
blocks), not accuracy: both arms reach 1.00 there. Beyond, the untied Transformer is right as far as the reach it has
learned (depth 5 or 6, by seed), then worse than guessing among the roots: it names a node on the way.

Chains and cycles stand in for the paper's copy, reverse and addition, which take far longer than the quick preset has
(``--preset=paper --set=task=algorithmic``); no number here corresponds to one of the paper's.

Adaptive halting is the delicate part, and differs between seeds. The ponder cost must come only after the task is
learned, and halfway through 3000 steps the accuracies of six seeds (0 to 5) lay between .59 and 1.00; seed 1 ends at .86,
below the .90 that is asked of the mean over seeds. The steps taken grow with the hops asked for, but the curve is another
one for every seed: by repeated doubling four hops need no more than two steps, so some seeds halt after 1 and 2 steps,
others after 2 and 3. A token that cannot solve its problem takes all steps there are, so growth alone proves nothing
without the accuracy. With 4000 steps (--set=hop_training.steps=4000 --set=hop_training.warmup=400) the six seeds ended
between .85 (seed 3, which never learns four hops) and 1.00.
"""

register(
    Experiment(
        name="universal_transformer",
        paper="Dehghani, Gouws, Vinyals, Uszkoreit, Kaiser 2018, Universal Transformers",
        claim=(
            "A block iterated over depth follows chains longer than those it was trained on, where as many untied layers "
            "fail, and with adaptive halting it takes more steps where more are needed."
        ),
        presets={"smoke": Config(pointer_chasing=SMOKE), "quick": Config(), "paper": Config(task="algorithmic")},
        arms=arms,
        checks={
            "quick": (
                Check("Universal Transformer on depths 6 to 8, never trained", "universal/deep", ">=", 0.90),
                Check("... above the untied Transformer", "deep_over_untied", ">=", 0.35),
                Check("... above a single step", "deep_over_single_step", ">=", 0.45),
                Check("Universal Transformer on depths 1 to 5", "universal/shallow", ">=", 0.95),
                Check("untied Transformer on depths 1 to 5: the baseline is trained", "untied/shallow", ">=", 0.95),
                Check("a single step on depths 1 to 5", "single_step/shallow", "<=", 0.70),
                Check("adaptive halting solves the cycles", "halting/accuracy", ">=", 0.90),
                Check("steps taken grow from 1 hop to 4", "halting/growth", ">=", 0.5),
                Check("steps taken differ between tokens", "halting/steps_std", ">", 0.2),
                Check("every token takes a step", "halting/steps_min", ">=", 1),
                Check("no token takes more than it may", "halting/steps_max", "<=", 6),
            ),
            "paper": (Check("Universal Transformers beat the Transformer, mean over problems", "gain", ">", 0.0),),
        },
        measure=measure,
        figures=figures,
        notes=NOTES,
    )
)
