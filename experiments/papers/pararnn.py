"""ParaRNN (Danieli et al. 2025): nonlinear recurrent networks trained in parallel over time by Newton's method.

The quick preset trains two layers of ParaGRU on parity, which no gated linear recurrence of that depth can follow, in arms
that share everything but how the recurrence is made:

* newton: solved to a residual of 1e-5, in training and test;
* newton_3, newton_8: three or eight Newton iterations, in training and test, which is another (truncated) network here;
* sequential: one step after another;
* linear: gates and candidate that do not see the state.

Untrained measurements: residuals of a fresh cell, exactness against the loop in float32 and float64, seconds against length.

``--set=task=recall`` and ``--set=task=hops`` ask for associative recall and k-hop induction; ``task=lm`` (preset paper) is
the language model on a file of tokens, in sizes 400m, 1b, 3b and 7b.
"""

import abc
import dataclasses
import itertools
import math
import pathlib
import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import zoo
from experiments.arms import model_inputs
from experiments.experiment import Arm, Check, Experiment, Trained, Training, register
from zoo.checks import check_choice
from zoo.layers import CellSolver, accuracy, cross_entropy, z_loss
from zoo.mixers.paragru import ParaGRUState, paragru_derivative, paragru_solve, paragru_step
from zoo.scans import lyapunov_exponent, recurrent_scan, solve_recurrence
from zoo.tasks import AssociativeRecall, HopRecall, Parity, Task, TokenFile

QUICK = Training(
    steps=600, batch_size=64, optimizer="adam", learning_rate=3e-3, schedule="cosine", clip_norm=1.0, steps_per_call=25
)
# sequential steps come in where the iterations do not reach the tolerance, so that no number is ever wrong
CONVERGED = {"iterations": 32, "tolerance": 1e-5, "fallback": "sequential"}
RECURRENT = {"recurrent_init": "normal", "recurrent_scale": 0.5, "bias_init": "minus_linspace"}
MIXERS = {
    "newton": {"name": "paragru", **RECURRENT, **CONVERGED},
    "newton_3": {"name": "paragru", **RECURRENT, "iterations": 3},
    "newton_8": {"name": "paragru", **RECURRENT, "iterations": 8},
    "sequential": {"name": "paragru", **RECURRENT, "mode": "sequential"},
    "paralstm": {"name": "paralstm", **RECURRENT, **CONVERGED},
    "linear": {"name": "gilr"},
    "gru": {"name": "gru"},
    "lstm": {"name": "lstm"},
    "transformer": {"name": "attention", "heads": 2},
    "mamba2": {"name": "mamba2", "state_dim": 16, "head_dim": 8},
}


@dataclasses.dataclass(frozen=True)
class Synthetic(abc.ABC):
    """What the synthetic tasks share.

    Attributes:
      mixers: arms, keys of ``MIXERS``.
      dim, depth, mlp_dim: of the language model that all arms are.
      training: how they are trained.
      test_size: test examples.
    """

    mixers: tuple[str, ...] = ("newton", "newton_3", "newton_8", "sequential", "linear")
    dim: int = 32
    depth: int = 2
    mlp_dim: int = 64
    training: Training = QUICK
    test_size: int = 1000

    def __post_init__(self):
        for mixer in self.mixers:
            check_choice("mixers", mixer, MIXERS)

    @abc.abstractmethod
    def tasks(self) -> dict[str, Task]:
        """The training task, first, and those it is tested on; the names become metrics accuracy_<name>."""

    def model(self, mixer: str | Mapping[str, Any]) -> Any:
        """The language model around a mixer."""
        spec = MIXERS[mixer] if isinstance(mixer, str) else mixer
        task = next(iter(self.tasks().values()))
        return zoo.LanguageModel(
            vocab_size=task.vocab_size,
            dim=self.dim,
            depth=self.depth,
            pattern=(spec,),
            mlp="silu",
            mlp_dim=self.mlp_dim,
        )

    def arms(self) -> dict[str, Arm]:
        """One arm per mixer."""
        return {mixer: synthetic_arm(self, mixer) for mixer in self.mixers}


@dataclasses.dataclass(frozen=True)
class ParityTask(Synthetic):
    """Parity of all bits so far, trained on ``time`` bits and tested on ``test_times``."""

    time: int = 32
    test_times: tuple[int, ...] = (32, 64)

    def tasks(self) -> dict[str, Task]:
        """Parity of each length."""
        return {str(n): Parity(n) for n in (self.time, *self.test_times)}


@dataclasses.dataclass(frozen=True)
class RecallTask(Synthetic):
    """Multi-query associative recall; fields as in ``zoo.tasks.AssociativeRecall``."""

    mixers: tuple[str, ...] = ("newton", "paralstm", "linear", "transformer")
    pairs: int = 4
    keys: int = 16
    time: int = 64

    def tasks(self) -> dict[str, Task]:
        """One task, tested on fresh examples."""
        return {"recall": AssociativeRecall(self.pairs, self.keys, self.keys, self.time)}


@dataclasses.dataclass(frozen=True)
class HopTask(Synthetic):
    """k-hop induction; fields as in ``zoo.tasks.HopRecall``."""

    mixers: tuple[str, ...] = ("newton", "paralstm", "linear", "transformer")
    hops: int = 2
    symbols: int = 4
    time: int = 64

    def tasks(self) -> dict[str, Task]:
        """One task, tested on fresh examples."""
        return {"hops": HopRecall(self.hops, self.symbols, self.time)}


# Width and layers of the scaling suite of Li et al. 2024, DataComp-LM, on which the paper's models are modelled; with the
# embeddings untied they come to 405 M, 1.41 B, 2.75 B and 6.75 B parameters.
SIZES = {"400m": (1024, 24), "1b": (2048, 24), "3b": (2560, 32), "7b": (4096, 32)}
LM_MIXERS = ("paragru", "paralstm", "linear", "transformer", "mamba2")
NEOX_VOCABULARY = 50_304  # 50,277 tokens, rounded up to a multiple of 128


@dataclasses.dataclass(frozen=True)
class LanguageModelling:
    """Next-token prediction on a file of tokens, e.g. SlimPajama without its books, by the GPT-NeoX-20B tokeniser.

    Attributes:
      path: see ``zoo.tasks.token_file``.
      size: key of ``SIZES``.
      mixers: arms, of ``LM_MIXERS``.
      time: tokens per window.
      vocab_size: rows of the embedding.
      iterations: Newton iterations, as many as the paper takes.
      recurrent_bound: bound on the recurrent weights.
      mode: how the cells run, see ``zoo.layers.parallel_cell``.
      tie_embeddings: one matrix for both ends.
      z_loss: weight of the z-loss.
      training: how they are trained; the learning rate is that of the recurrent models, ``transformer_rate`` the
        Transformer's.
      validation_rows: windows of the held-out end of the file.
      held_out: tokens at that end.
      depth, dim: override those of ``size``.
    """

    path: str = ""
    size: str = "1b"
    mixers: tuple[str, ...] = ("paragru", "paralstm", "transformer", "mamba2")
    time: int = 2048
    vocab_size: int = NEOX_VOCABULARY
    iterations: int = 3
    recurrent_bound: float | None = 0.5
    mode: str = "parallel"
    tie_embeddings: bool = False
    z_loss: float = 1e-4
    training: Training = Training(
        steps=55_000, batch_size=256, learning_rate=3e-3, schedule="cosine", warmup=5_500, b2=0.95, weight_decay=1e-4,
        steps_per_call=10, evaluate_every=1_000, checkpoint_every=1_000, shard_optimizer=True,
    )  # fmt: skip
    transformer_rate: float = 2e-3
    validation_rows: int = 64
    held_out: int = 2_000_000
    dim: int | None = None
    depth: int | None = None
    dtype: str = "bfloat16"

    def __post_init__(self):
        check_choice("size", self.size, SIZES)
        for mixer in self.mixers:
            check_choice("mixers", mixer, LM_MIXERS)

    def model(self, mixer: str) -> Any:
        """The model of one arm: blocks as in ``zoo.mixers.gated_recurrence``, a plain Transformer or a plain Mamba-2.

        Mamba-2's blocks have no MLP and are twice as many, which comes to the same number of parameters.
        """
        dim, depth = SIZES[self.size]
        dim, depth = self.dim or dim, self.depth or depth
        shared = {
            "vocab_size": self.vocab_size, "dim": dim, "depth": depth, "mlp_dim": -(-8 * dim // 768) * 256,
            "tie_embeddings": self.tie_embeddings, "remat": True, "dtype": self.dtype,
        }  # fmt: skip
        if mixer == "transformer":
            spec = {"name": "attention", "heads": max(1, dim // 128), "window": self.time}
            return zoo.LanguageModel(pattern=(spec,), **shared)
        if mixer == "mamba2":
            spec = {"name": "mamba2", "head_dim": math.gcd(64, 2 * dim)}
            return zoo.LanguageModel(pattern=(spec,), **{**shared, "depth": 2 * depth, "mlp": "none"})
        cell = {"name": "gilr", "heads": 4}
        if mixer != "linear":
            cell = {
                "name": mixer, "heads": 4, "mode": self.mode, "iterations": self.iterations,
                "recurrent_init": "truncated_normal", "input_init": "kaiming_uniform", "bias_init": "zeros",
                "recurrent_bound": self.recurrent_bound,
            }  # fmt: skip
        spec = {"name": "gated_recurrence", "mixer": cell}
        return zoo.LanguageModel(pattern=(spec,), residual_scale=True, **shared)

    def arms(self) -> dict[str, Arm]:
        """One arm per mixer."""
        return {mixer: language_arm(self, mixer) for mixer in self.mixers}


@dataclasses.dataclass(frozen=True)
class Measurements:
    """Untrained measurements: ``lengths`` of the speed comparison (none: it is left out) with ``rows`` rows of ``width``
    numbers; ``residual_time`` steps for the residuals of a fresh cell, ``exact_time`` for the comparison with the loop
    (0: none); ``truncated`` numbers of iterations in the trained network."""

    lengths: tuple[int, ...] = tuple(2**n for n in range(7, 16, 2))
    rows: int = 4
    width: int = 32
    residual_time: int = 4096
    exact_time: int = 257
    truncated: tuple[int, ...] = (1, 3, 5, 8, 12)


@dataclasses.dataclass(frozen=True)
class Config:
    """What is run: ``task`` names one of the other fields."""

    task: str = "parity"
    parity: ParityTask = ParityTask()
    recall: RecallTask = RecallTask()
    hops: HopTask = HopTask()
    lm: LanguageModelling = LanguageModelling()
    measurements: Measurements = Measurements()

    def __post_init__(self):
        check_choice("task", self.task, ("parity", "recall", "hops", "lm"))


def synthetic_arm(config: Synthetic, mixer: str) -> Arm:
    """Metrics ``accuracy_<name>`` for every test task, and ``loss`` on the first."""
    model, tasks = config.model(mixer), config.tasks()
    train = next(iter(tasks.values()))

    def forward(params, batch):
        logits, _ = model.apply(params, *model_inputs(batch))
        return cross_entropy(logits, batch.targets, batch.mask), accuracy(logits, batch.targets, batch.mask)

    def loss(params, batch, key, step, carry):
        value, hits = forward(params, batch)
        return value, ({"accuracy": hits}, carry)

    def evaluate(params, key, data):
        scores = {name: forward(params, task.batch(key, config.test_size)) for name, task in tasks.items()}
        return {"loss": next(iter(scores.values()))[0], **{f"accuracy_{n}": hits for n, (_, hits) in scores.items()}}

    return Arm(
        lambda key, batch: model.init(key, *model_inputs(batch)), loss, train, config.training, evaluate, model=model
    )


def language_arm(config: LanguageModelling, mixer: str) -> Arm:
    """Metrics ``loss`` in nats and ``perplexity`` on held-out windows."""
    model = config.model(mixer)
    task = TokenFile(config.path, config.time, held_out=config.held_out)
    held = TokenFile(config.path, config.time, "validation", held_out=config.held_out)
    spread = np.linspace(0, len(held.tokens()) - config.time - 1, config.validation_rows).astype(int)
    batch = held.windows(spread)
    training = config.training
    if mixer == "transformer":
        training = dataclasses.replace(training, learning_rate=config.transformer_rate)

    def loss(params, batch, key, step, carry):
        logits, _ = model.apply(params, batch.inputs)
        value = cross_entropy(logits, batch.targets)
        return value + config.z_loss * z_loss(logits), ({"cross_entropy": value}, carry)

    def evaluate(params, key, data):
        values = jax.lax.map(
            lambda row: cross_entropy(model.apply(params, row[:1])[0], row[1:]), jnp.stack(data, axis=1)
        )
        return {"loss": jnp.mean(values), "perplexity": jnp.exp(jnp.mean(values))}

    return Arm(
        lambda key, batch: model.init(key, batch.inputs), loss, task, training, evaluate,
        evaluation_data=(jnp.asarray(batch.inputs), jnp.asarray(batch.targets)), model=model,
    )  # fmt: skip


def arms(config: Config) -> dict[str, Arm]:
    """Arms of the chosen task."""
    return getattr(config, config.task).arms()


def measure(config: Config, trained: Mapping[str, Trained], key: jax.Array) -> dict[str, float]:
    """What needs no training, and how the trained networks depend on the solver."""
    if config.task == "lm":
        both = {"paragru", "transformer"} <= set(trained)
        if not both:
            return {}
        return {
            "perplexity_ratio": trained["paragru"].metrics["perplexity"] / trained["transformer"].metrics["perplexity"]
        }
    found = {f"fresh/{k}": v for k, v in fresh_residuals(config.measurements, key).items()}
    found |= {f"exact/{k}": v for k, v in exactness(config.measurements, key).items()}
    found |= {f"seconds/{k}": v for k, v in speed(config.measurements, key).items()}
    if config.task == "parity" and "newton" in trained:
        found |= {f"trained/{k}": v for k, v in solver_errors(config, trained["newton"], key).items()}
    return found


def random_cell(key: jax.Array, width: int, rows: int, steps: int, dtype: Any = jnp.float32) -> tuple[dict, jax.Array]:
    """(weights with A of deviation 0.5 and an input projection, x) of a fresh ParaGRU of one head."""
    keys = jax.random.split(key, 3)
    params = {
        "A": 0.5 * jax.random.normal(keys[0], (3, width), dtype),
        "B": jax.random.normal(keys[1], (1, width, 3, width), dtype) / width**0.5,
        "b": jnp.zeros((3, width), dtype).at[0].set(-jnp.linspace(0, 1, width, dtype=dtype)),
    }
    return params, jax.random.normal(keys[2], (rows, steps, width), dtype)


def fresh_residuals(config: Measurements, key: jax.Array) -> dict[str, float]:
    """Largest residual after k iterations, how fast their ratio falls, and the Lyapunov exponent of the cell."""
    params, x = random_cell(key, config.width, 1, config.residual_time)
    state = ParaGRUState(jnp.zeros((1, config.width)))
    _, _, found = paragru_solve(params, x, state, solver=CellSolver(iterations=6))
    residuals = [float(r) for r in found.residuals[0]]
    usable = [r for r in residuals if r > 1e-6]  # below, they are rounding
    ratios = [b / a for a, b in itertools.pairwise(usable)]
    p = jnp.einsum("bti,igk->btgk", x, params["B"][0]) + params["b"]
    exponent = lyapunov_exponent(paragru_step(), params, p, state.hidden)
    return {
        **{f"residual_{k}": r for k, r in enumerate(residuals)},
        "ratio_growth": max((b / a for a, b in itertools.pairwise(ratios)), default=float("nan")),
        "lyapunov_exponent": float(exponent[0]),
    }


def exactness(config: Measurements, key: jax.Array) -> dict[str, float]:
    """Largest difference between Newton's states and the loop's, and that of the gradients relative to the largest one."""
    found = {}
    for name, dtype in (("float32", jnp.float32), ("float64", jnp.float64)) if config.exact_time else ():
        with jax.enable_x64(dtype == jnp.float64):
            params, x = random_cell(key, config.width, 2, config.exact_time, dtype)
            state = ParaGRUState(jnp.zeros((2, config.width), dtype))

            def loss(params, x, mode, state=state):
                states, _, _ = paragru_solve(params, x, state, solver=CellSolver(mode))
                return jnp.sum(jnp.sin(3 * states)), states

            run = jax.jit(jax.grad(loss, (0, 1), has_aux=True), static_argnums=2)
            (newton, states), (loop, want) = (run(params, x, mode) for mode in ("parallel", "sequential"))
            found[f"states_{name}"] = float(jnp.max(jnp.abs(states - want)))
            pairs = list(zip(jax.tree.leaves(newton), jax.tree.leaves(loop)))
            found[f"gradients_{name}"] = max(float(jnp.max(jnp.abs(a - b)) / jnp.max(jnp.abs(b))) for a, b in pairs)
    return found


def speed(config: Measurements, key: jax.Array) -> dict[str, float]:
    """Seconds of a forward pass of a fresh cell against length: the loop, and three iterations with two linear scans."""
    found = {}
    step, derivative = paragru_step(), paragru_derivative()
    initial = jnp.zeros((config.rows, config.width))

    def newton(params, p, reduction):
        return solve_recurrence(
            step, params, p, initial, derivative=derivative, guess="step", iterations=3, reduction=reduction, verify=False,
            on_failure="flag",
        )[0]  # fmt: skip

    forms = {
        "sequential": lambda params, p: recurrent_scan(_driven, p, initial, params)[0],
        "newton": lambda params, p: newton(params, p, "auto"),
        "newton_associative": lambda params, p: newton(params, p, "associative"),
    }
    compiled = {name: jax.jit(form) for name, form in forms.items()}
    for steps in config.lengths:
        params, x = random_cell(key, config.width, config.rows, steps)
        p = jnp.einsum("bti,igk->btgk", x, params["B"][0]) + params["b"]
        for name, run in compiled.items():
            jax.block_until_ready(run(params, p))
            taken = []
            for _ in range(3):
                start = time.perf_counter()
                jax.block_until_ready(run(params, p))
                taken.append(time.perf_counter() - start)
            found[f"{name}_{steps}"] = sorted(taken)[1]
    return found


def _driven(params, state, drive, keep):
    return paragru_step()(params, state, drive)


def solver_errors(config: Config, run: Trained, key: jax.Array) -> dict[str, float]:
    """Logits of the trained network on the longest test, against the loop's: solved to tolerance, and truncated."""
    task = list(config.parity.tasks().values())[-1]
    batch = task.batch(key, 64)

    def logits(options, mutable=()):
        model = config.parity.model({"name": "paragru", **RECURRENT, **options})
        return jax.jit(lambda params: model.apply(params, batch.inputs, mutable=mutable))(run.params)

    ((exact, _), _) = logits({"mode": "sequential"})
    ((solved, _), sown) = logits(CONVERGED, ["diagnostics"])
    diagnostics = [leaf for leaf in jax.tree.leaves(sown, is_leaf=_is_diagnostics) if _is_diagnostics(leaf)]
    found = {
        "logits_difference": float(jnp.max(jnp.abs(solved - exact))),
        "iterations": float(max(jnp.max(d.iterations) for d in diagnostics)),
        "fallbacks": float(sum(jnp.sum(d.fallback) for d in diagnostics)),
    }
    for iterations in config.measurements.truncated:
        ((truncated, _), _) = logits({"iterations": iterations})
        found[f"logits_difference_{iterations}"] = float(jnp.max(jnp.abs(truncated - exact)))
    return found


def _is_diagnostics(node: Any) -> bool:
    return hasattr(node, "structure_error")


def figures(config: Config, trained: Mapping[str, Any], metrics: Mapping[str, float]) -> dict[str, Any]:
    """Seconds against length, and residuals against iterations."""
    if config.task == "lm":
        return {}
    from matplotlib.figure import Figure

    drawn = {}
    if config.measurements.lengths:
        figure = Figure(figsize=(6, 4), layout="constrained")
        axes = figure.subplots()
        labels = {"sequential": "one step after another", "newton": "Newton, 3 iterations",
                  "newton_associative": "Newton, 3 iterations, associative scan"}  # fmt: skip
        for (name, label), marker in zip(labels.items(), "osv"):
            seconds = [metrics[f"seconds/{name}_{n}"] for n in config.measurements.lengths]
            axes.plot(config.measurements.lengths, seconds, marker=marker, label=label)
        axes.set(xscale="log", yscale="log", xlabel="steps", ylabel="seconds, forward")
        axes.set_xscale("log", base=2)
        axes.set_title(f"ParaGRU on this machine, {config.measurements.rows} rows of {config.measurements.width}")
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
        drawn["speed.png"] = figure
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    fresh = [metrics[f"fresh/residual_{k}"] for k in range(7)]
    axes.plot(range(7), fresh, marker="o", label=f"residual, fresh cell, {config.measurements.residual_time:,} steps")
    names = [n for n in metrics if n.startswith("trained/logits_difference_")]
    if names:
        counts = [int(n.rsplit("_", 1)[1]) for n in names]
        axes.plot(counts, [metrics[n] for n in names], marker="s", label="error of the logits, trained on parity")
    axes.set(yscale="log", xlabel="Newton iterations", ylabel="largest residual or error")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return {**drawn, "residuals.png": figure}


def stand_in(config: Config, folder: pathlib.Path) -> Config:
    """A short file of random tokens for a language model that has no path."""
    if config.task != "lm" or config.lm.path:
        return config
    path, count = folder / "tokens.bin", config.lm.held_out + 2 * config.lm.time
    np.random.default_rng(0).integers(0, config.lm.vocab_size, count, np.uint16).tofile(path)
    return dataclasses.replace(config, lm=dataclasses.replace(config.lm, path=str(path)))


TINY = dataclasses.replace(QUICK, steps=4, batch_size=4, steps_per_call=2)

NOTES = """\
A network trained on parity switches its state at every one, which is hard for Newton's method: three iterations, enough for
a fresh cell or a language model, leave errors of order one in its logits (residuals.png). The arm newton_3 is therefore
another network than the one it stands for, although it may learn the task as well. The arm newton stops by its residual,
and falls back to the loop where 32 iterations do not do.

On two CPU cores the loop is as fast as three Newton iterations, or faster; the times are reported, not judged.

Preflight of the paper preset (256 windows of 2048 tokens, the optimiser's state shared between chips), GB of a v5p chip's
95. On a slice of 4x4x4: ParaGRU 3b 33.2 and 7b 79.5; Transformer 7b 93.1; Mamba-2 7b 94.4. ParaLSTM 7b wants 123 there,
and 94.4 on 4x4x8.
"""

register(
    Experiment(
        name="pararnn",
        paper="Danieli, Rodriguez, Sarabia, Suau, Zappella 2025, ParaRNN: Unlocking Parallel Training of Nonlinear RNNs for "
        "Large Language Models",
        claim="A nonlinear recurrent network trained in parallel by Newton's method learns parity at full length and "
        "beyond, which a linear recurrence cannot, and equals the same network run step by step.",
        presets={
            "smoke": Config(
                parity=ParityTask(("newton", "linear"), 8, 1, 8, TINY, test_size=8, time=6, test_times=(6,)),
                measurements=Measurements((8,), rows=1, width=4, residual_time=32, exact_time=0, truncated=()),
            ),
            "quick": Config(),
            "paper": Config(task="lm"),
        },
        arms=arms,
        measure=measure,
        figures=figures,
        stand_in=stand_in,
        checks={
            "quick": (
                Check("ParaGRU by Newton's method, 32 bits as trained", "newton/accuracy_32", ">=", 0.95),
                Check("... 64 bits", "newton/accuracy_64", ">=", 0.95),
                Check("a gated linear recurrence, 32 bits", "linear/accuracy_32", "<=", 0.80),
                Check("trained network: Newton's logits are the loop's", "trained/logits_difference", "<=", 1e-3),
                Check("residual of a fresh cell after 3 iterations", "fresh/residual_3", "<=", 1e-2),
                Check("every iteration gains more than the last", "fresh/ratio_growth", "<", 1.0),
                Check("states equal the loop's, float32", "exact/states_float32", "<=", 1e-4),
                Check("gradients equal the loop's, float32, relative", "exact/gradients_float32", "<=", 1e-4),
                Check("states equal the loop's, float64", "exact/states_float64", "<=", 1e-10),
                Check("gradients equal the loop's, float64, relative", "exact/gradients_float64", "<=", 1e-10),
            ),
            "paper": (Check("ParaGRU's perplexity over the Transformer's", "perplexity_ratio", "<=", 1.05),),
        },
        next_steps="try associative recall with --set=task=recall, or hops with --set=task=hops; other arms with "
        "--set=parity.mixers=paralstm,gru,lstm",
        notes=NOTES,
    )
)
