"""DeltaProduct (Siems et al. 2025): more Householder factors per token let one layer follow more of a group.

State tracking (``task=tracking``): read elements of a finite group, say their product so far, at every position. Trained on
short words, tested on longer ones. Models of one layer, by name:

* deltaproduct<n>: n factors per token, eigenvalues in [-1, 1]; deltaproduct<n>_positive: in [0, 1];
* deltanet, deltanet_negative: one factor, eigenvalues in [0, 1] and in [-1, 1]: deltaproduct1_positive and deltaproduct1;
* gated_deltanet, gated_deltanet_negative: with a forget gate as well;
* mamba, mamba2: diagonal transitions.

The quick preset trains on S3, the permutations of three things, which takes products of two reflections, and on Z2, which is
parity and takes one. Words get longer as training goes on: the loss counts the first 3, then 6, then all positions.

Language modelling (``--set=task=lm``): the paper's models of 213, 392 and 805 million parameters on a file of tokens; loss
by position beyond the training context, and the effective rank of the states there.
"""

import dataclasses
import functools
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.core import freeze

import zoo
from experiments.experiment import Arm, Check, Experiment, Trained, Training, register
from zoo.analysis import effective_rank, rank_along_sequence, state_collapse
from zoo.checks import check_choice, check_positive, nearest
from zoo.layers import accuracy, cross_entropy
from zoo.tasks import GroupWords, TokenFile, position_accuracy, sequence_scores

BASELINES = ("deltanet", "deltanet_negative", "gated_deltanet", "gated_deltanet_negative", "mamba", "mamba2")
PRODUCT = re.compile(r"deltaproduct([1-9][0-9]?)(_positive)?")

QUICK = Training(
    steps=1200, batch_size=128, learning_rate=5e-3, schedule="cosine", warmup=50, weight_decay=1e-4, clip_norm=1.0,
    steps_per_call=100,
)  # fmt: skip
PAPER_TRACKING = Training(
    steps=4834, batch_size=2048, learning_rate=1e-3, schedule="cosine", weight_decay=1e-6, clip_norm=None, b2=0.999,
    steps_per_call=50, evaluate_every=480, checkpoint_every=480,
)  # fmt: skip  # 100 epochs of 99,000 words


def parse_model(name: str) -> tuple[int, bool] | None:
    """(factors per token, eigenvalues may be negative) of a deltaproduct; None for a baseline; ValueError otherwise."""
    match = PRODUCT.fullmatch(name)
    if match:
        return int(match[1]), match[2] is None
    if name not in BASELINES:
        every = ("deltaproduct<n>", "deltaproduct<n>_positive", *BASELINES)
        raise ValueError(f"models: {name!r} is not one of {', '.join(every)}{nearest(name, BASELINES)}")
    return None


@dataclasses.dataclass(frozen=True)
class Tracking:
    """Word problems of groups, one arm for every pair of ``runs``.

    Attributes:
      runs: (group, model): a group of ``zoo.tasks.group_words``, and a model as in the module docstring.
      limit_to: for groups of permutations: inputs move at most so many points ("S5 only swaps": 2); None: all elements.
      dim, depth, heads, head_dim, expand_v: of the models.
      mlp_dim: of the feed-forward layers, None for 8/3 dim.
      conv_size: taps of the short convolutions; None: no convolutions.
      chunk_size: tokens per chunk of the delta rule; None: chosen from the shape.
      use_forget_gate: of deltaproduct.
      use_output_gate: of all delta-rule layers.
      time: elements of a word in training.
      curriculum: (share of the steps, positions): up to that share only so many first positions count in the loss, which for
        a causal model is training on shorter words; after the last all do.
      pool: words of the training set; None: every word is new.
      test_time: elements of a word in the test.
      test_size: words in the test.
      training: how they are trained.
      shorter: group -> share of the steps that its models are trained for, for groups that take less.
      dtype: compute dtype.
    """

    runs: tuple[tuple[str, str], ...]
    limit_to: int | None = None
    dim: int = 32
    depth: int = 1
    heads: int = 8
    head_dim: int = 8
    expand_v: float = 1.0
    mlp_dim: int | None = 64
    conv_size: int | None = None
    chunk_size: int | None = 4
    use_forget_gate: bool = False
    use_output_gate: bool = True
    time: int = 12
    curriculum: tuple[tuple[float, int], ...] = ((0.25, 3), (0.5, 6))
    pool: int | None = None
    test_time: int = 48
    test_size: int = 512
    training: Training = QUICK
    shorter: Mapping[str, float] = dataclasses.field(default_factory=lambda: {"Z2": 0.5})
    dtype: str = "float32"

    def __post_init__(self):
        for _, model in self.runs:
            parse_model(model)
        if self.test_time <= self.time:
            raise ValueError(f"test_time={self.test_time} must be longer than time={self.time}")
        for share, positions in self.curriculum:
            check_positive("curriculum positions", positions)
            if not 0 < share < 1:
                raise ValueError(f"curriculum: shares must lie between 0 and 1, got {share}")

    def mixer(self, name: str) -> dict[str, Any]:
        """Specification of the model ``name``'s mixer."""
        product = parse_model(name)
        gates = {"conv_size": self.conv_size, "use_output_gate": self.use_output_gate, "chunk_size": self.chunk_size}
        if product is not None:
            return {
                "name": "deltaproduct", "householders": product[0], "allow_neg_eigval": product[1], "heads": self.heads,
                "head_dim": self.head_dim, "expand_v": self.expand_v, "use_forget_gate": self.use_forget_gate, **gates,
            }  # fmt: skip
        if name.startswith("deltanet"):
            sizes = {"heads": self.heads, "head_dim": self.head_dim, "expand_v": self.expand_v}
            return {"name": "deltanet", "allow_neg_eigval": name.endswith("negative"), **sizes, **gates}
        if name.startswith("gated_deltanet"):
            sizes = {"heads": self.heads, "key_dim": self.head_dim, "head_dim": round(self.head_dim * self.expand_v)}
            return {"name": "gated_deltanet", "allow_neg_eigval": name.endswith("negative"), **sizes, **gates}
        # a state of as many numbers: heads * K * V over an inner width of 2 dim
        size = max(1, round(self.heads * self.head_dim**2 * self.expand_v / (2 * self.dim)))
        head = {"head_dim": 2 * self.dim // self.heads} if name == "mamba2" else {}
        return {"name": name, "state_dim": size, **head}

    def task(self, group: str, *, test: bool = False) -> GroupWords:
        """Words of the training set, or of the test."""
        return GroupWords(group, self.test_time if test else self.time, self.limit_to, None if test else self.pool)

    def model(self, group: str, name: str) -> Any:
        """The model: embedding, one layer of mixer and SwiGLU, a head of its own."""
        return zoo.LanguageModel(
            vocab_size=self.task(group).vocab_size, dim=self.dim, depth=self.depth, pattern=(freeze(self.mixer(name)),),
            mlp_dim=self.mlp_dim, dtype=self.dtype,
        )  # fmt: skip

    def counted(self, step: jax.Array, steps: int) -> jax.Array:
        """Positions that count in the loss at ``step`` of ``steps``."""
        positions = jnp.int32(self.time)
        for share, count in reversed(self.curriculum):
            positions = jnp.where(step < share * steps, min(count, self.time), positions)
        return positions

    def arm(self, group: str, name: str) -> Arm:
        """One model on one group."""
        model, task, test = self.model(group, name), self.task(group), self.task(group, test=True)
        steps = max(1, round(self.training.steps * self.shorter.get(group, 1.0)))
        training = dataclasses.replace(self.training, steps=steps)

        def init(key, batch):
            return model.init(key, batch.inputs)

        def loss(params, batch, key, step, carry):
            logits, _ = model.apply(params, batch.inputs)
            mask = jnp.broadcast_to(jnp.arange(self.time) < self.counted(step, steps), batch.targets.shape)
            hits = accuracy(logits, batch.targets, mask)
            return cross_entropy(logits, batch.targets, mask), ({"accuracy": hits}, carry)

        def evaluate(params, key, data):
            batch = test.batch(key, self.test_size, data)
            logits = model.apply(params, batch.inputs)[0]
            predicted = jnp.argmax(logits, axis=-1)
            by_position = position_accuracy(predicted, batch.targets)
            everywhere = jnp.ones_like(batch.targets, bool)
            return {
                "loss": cross_entropy(logits, batch.targets),
                "accuracy": jnp.mean(by_position),
                "at_training_length": by_position[self.time - 1],
                "beyond": jnp.mean(by_position[self.time :]),
                "at_test_length": by_position[-1],
                "whole_words": sequence_scores(predicted, batch.targets, everywhere)["sequence_accuracy"],
            }

        return Arm(init, loss, task, training, evaluate, evaluation_data=test.data(), model=model)

    def arms(self) -> dict[str, Arm]:
        """ "<group>_<model>" -> arm."""
        return {f"{group}_{name}": self.arm(group, name) for group, name in self.runs}

    def measure(self, trained: Mapping[str, Trained], key: jax.Array) -> dict[str, float]:
        """Effective ranks of the states at the training length and at the test length; fewest factors that extrapolate."""
        found = {}
        for group, name in self.runs:
            arm = trained[f"{group}_{name}"]
            if "delta" in name:
                tokens = self.task(group, test=True).batch(key, 16).inputs
                for label, time in (("training", self.time), ("test", self.test_time)):
                    state = jax.jit(arm.arm.model.apply)(arm.params, tokens[:, :time])[1]
                    ranks = effective_rank(state_collapse.layer_states(state, lambda layer: layer.memory))
                    found[f"effective rank/{group}_{name} at {label} length"] = float(jnp.mean(ranks))
            product = parse_model(name)
            if product and product[1] and arm.metrics["beyond"] >= 0.95:
                key_of_group = f"fewest factors/{group}"
                found[key_of_group] = min(found.get(key_of_group, product[0]), product[0])
        return found

    def figures(self, trained: Mapping[str, Trained], metrics: Mapping[str, float]) -> dict[str, Any]:
        """Accuracy against position, one panel for every group."""
        from matplotlib.figure import Figure

        groups = list(dict.fromkeys(group for group, _ in self.runs))
        figure = Figure(figsize=(5 * len(groups), 3.8), layout="constrained")
        for axes, group in zip(figure.subplots(1, len(groups), squeeze=False)[0], groups):
            batch = self.task(group, test=True).batch(jax.random.key(0), self.test_size)
            for name, style in zip([n for g, n in self.runs if g == group], ("-", "--", "-.", ":") * 9):
                arm = trained[f"{group}_{name}"]
                logits = jax.jit(arm.arm.model.apply)(arm.params, batch.inputs)[0]
                curve = position_accuracy(jnp.argmax(logits, axis=-1), batch.targets)
                axes.plot(np.arange(1, self.test_time + 1), curve, style, label=name)
            axes.axvline(self.time, color="0.6", linewidth=1)
            axes.axhline(1 / self.task(group).vocab_size, color="0.6", linewidth=1, linestyle=":")
            axes.annotate(" training length", (self.time, 1.01), xycoords=("data", "axes fraction"), fontsize=8)
            axes.set(xlabel="position", ylabel="accuracy", ylim=(0, 1.03), title=group)
            axes.grid(alpha=0.3)
            axes.legend(frameon=False, fontsize=8)
        return {"accuracy_by_position.png": figure}


@dataclasses.dataclass(frozen=True)
class ModelSize:
    """Width, layers and heads of 128 channels of one of the paper's models with n = 3, and of DeltaNet's (n = 1)."""

    dim: int
    depth: int
    heads: int
    heads_of_one: int


SIZES = {
    "213m": ModelSize(768, 24, 4, 6), "392m": ModelSize(1024, 24, 6, 8), "805m": ModelSize(1536, 24, 8, 12),
}  # fmt: skip
LM_MODELS = (
    "deltanet", "deltanet_negative", "gated_deltanet", "deltaproduct2", "deltaproduct3", "gated_deltaproduct2",
    "gated_deltaproduct3",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class LanguageModelling:
    """The paper's language models, on a file of tokens such as FineWeb's by Mistral's tokeniser (32,000 tokens).

    Attributes:
      path: see ``zoo.tasks.token_file``.
      size: key of ``SIZES``; another ``dim``, ``depth`` or ``head_dim`` may be given.
      models: of ``LM_MODELS``, an arm each.
      match: as many parameters for every n: the number of heads is that of DeltaNet times 4 / (2 n + 2), rounded; else that
        of ``SIZES``.
      time: tokens in training.
      test_time: tokens of the held-out windows, a multiple of ``time``: the model reads on past its training context.
      test_rows: held-out windows.
      test_path: another file for them, such as code's or mathematics'; "": the end of ``path``.
      held_out: tokens at the end of the file that are kept for that.
      vocab_size: rows of the embedding.
      dim, depth, head_dim: see ``size``.
      training: how they are trained.
      dtype: of the layers.
    """

    path: str = ""
    size: str = "213m"
    models: tuple[str, ...] = ("deltanet_negative", "deltaproduct3", "gated_deltaproduct3")
    match: bool = False
    time: int = 4096
    test_time: int = 32_768
    test_rows: int = 16
    test_path: str = ""
    held_out: int = 2_000_000
    vocab_size: int = 32_000
    dim: int | None = None
    depth: int | None = None
    head_dim: int = 128
    training: Training = Training(
        steps=66_758, batch_size=128, learning_rate=3e-4, schedule="cosine", warmup=512, final_scale=0.1, b2=0.95,
        weight_decay=0.01, clip_norm=1.0, accumulate=1, steps_per_call=10, evaluate_every=5_000, checkpoint_every=1_000,
        shard_optimizer=True,
    )  # fmt: skip
    dtype: str = "bfloat16"

    def __post_init__(self):
        check_choice("size", self.size, SIZES)
        for name in self.models:
            check_choice("models", name, LM_MODELS)
        if self.test_time % self.time or self.test_time <= self.time:
            raise ValueError(f"test_time={self.test_time} must be a multiple of time={self.time}, and longer")

    def mixer(self, name: str) -> dict[str, Any]:
        """Specification of the model ``name``'s mixer, without output gate, V = K."""
        size, factors = SIZES[self.size], int(name[-1]) if name[-1].isdigit() else 1
        heads = size.heads_of_one if factors == 1 else size.heads
        if self.match:
            heads = max(1, round(size.heads_of_one * 4 / (2 * factors + 2)))
        if self.dim:
            heads = max(1, self.dim // self.head_dim)
        return {
            "name": "deltaproduct", "householders": factors, "heads": heads, "head_dim": self.head_dim, "expand_v": 1.0,
            "use_forget_gate": name.startswith("gated"), "use_output_gate": False,
            "allow_neg_eigval": name not in ("deltanet", "gated_deltanet"), "norm_eps": 1e-6,
        }  # fmt: skip

    def model(self, name: str) -> Any:
        """The language model: pre-norm blocks of mixer and SwiGLU of 8/3 the width, in multiples of 256; tied embeddings."""
        size = SIZES[self.size]
        dim = self.dim or size.dim
        return zoo.LanguageModel(
            vocab_size=self.vocab_size, dim=dim, depth=self.depth or size.depth, pattern=(freeze(self.mixer(name)),),
            mlp_dim=-(-8 * dim // (3 * 256)) * 256, tie_embeddings=True, remat=True, dtype=self.dtype,
        )  # fmt: skip

    def arms(self) -> dict[str, Arm]:
        """One arm for every model."""
        return {name: self.arm(name) for name in self.models}

    def arm(self, name: str) -> Arm:
        """Next-token prediction; metrics within the training context, and in the last part of the test's."""
        model = self.model(name)
        options = {"held_out": self.held_out}
        test = TokenFile(self.test_path or self.path, self.test_time, "validation", **options)
        rows = test.read(0, 0, range(self.test_rows), self.test_rows)
        tokens = jnp.asarray(np.concatenate([rows.inputs, rows.targets[:, -1:]], axis=1))

        def init(key, batch):
            return model.init(key, batch.inputs[:, :2])

        def loss(params, batch, key, step, carry):
            logits, _ = model.apply(params, batch.inputs)
            return cross_entropy(logits, batch.targets), ({"accuracy": accuracy(logits, batch.targets)}, carry)

        def evaluate(params, key, data):
            losses = jnp.mean(losses_by_position(model, params, data, self.time), axis=0)
            within, beyond = jnp.mean(losses[: self.time]), jnp.mean(losses[-self.time :])
            return {
                "loss": within, "perplexity": jnp.exp(within), "loss_beyond": beyond, "perplexity_beyond": jnp.exp(beyond),
                "growth": beyond - within,
            }  # fmt: skip

        task = TokenFile(self.path, self.time, "train", **options)
        return Arm(init, loss, task, self.training, evaluate, evaluation_data=tokens, model=model)

    def measure(self, trained: Mapping[str, Trained], key: jax.Array) -> dict[str, float]:
        """Mean effective rank of all states at the end of the training context and of the test's."""
        found = {}
        for name, arm in trained.items():
            ranks = self.ranks(arm)
            found[f"effective rank/{name} within"] = float(ranks[0].mean())
            found[f"effective rank/{name} beyond"] = float(ranks[-1].mean())
        return found

    def ranks(self, arm: Trained) -> jax.Array:
        """Effective ranks [looks, layers, 1, heads] in the first held-out window, at every multiple of ``time``."""
        read = functools.partial(rank_along_sequence, arm.arm.model, every=self.time)
        return jax.jit(lambda params, tokens: read(params, tokens)[1])(arm.params, arm.arm.evaluation_data[:1])

    def figures(self, trained: Mapping[str, Trained], metrics: Mapping[str, float]) -> dict[str, Any]:
        """Loss against position, and effective rank against position."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(10, 3.8), layout="constrained")
        losses, ranks = figure.subplots(1, 2)
        for name, arm in trained.items():
            model = arm.arm.model
            read = jax.jit(lambda p, t, model=model: losses_by_position(model, p, t, self.time))
            ends, mean, _ = state_collapse.loss_by_position(
                read(arm.params, arm.arm.evaluation_data), self.time // 8 or 1
            )
            losses.plot(ends, mean, label=name)
            found = np.asarray(self.ranks(arm)).mean(axis=(1, 2, 3))
            ranks.plot(self.time * np.arange(1, len(found) + 1), found, marker="o", label=name)
        losses.axvline(self.time, color="0.6", linewidth=1)
        losses.set(xlabel="position", ylabel="loss, nats")
        ranks.set(xlabel="tokens read", ylabel="effective rank of the states")
        for axes in (losses, ranks):
            axes.grid(alpha=0.3)
            axes.legend(frameon=False, fontsize=8)
        return {"beyond_the_training_context.png": figure}


def losses_by_position(model: Any, params: Any, tokens: jax.Array, every: int) -> jax.Array:
    """[rows, T - 1] losses in nats of predicting the next token, row by row and segment by segment."""
    return jax.lax.map(
        lambda row: state_collapse.stream(model, params, row[None], every=every, measure=lambda _: None).losses[0],
        tokens,
    )


QUICK_RUNS = (
    ("S3", "deltaproduct2"),
    ("S3", "deltaproduct1"),
    ("S3", "deltaproduct2_positive"),
    ("Z2", "deltanet_negative"),
    ("Z2", "deltanet"),
)
PAPER_RUNS = tuple((group, f"deltaproduct{n}") for group in ("S3", "S4", "A5", "S5") for n in (1, 2, 3, 4)) + tuple(
    ("S3", model) for model in ("deltanet", "deltaproduct2_positive", "gated_deltanet_negative", "mamba2")
)


@dataclasses.dataclass(frozen=True)
class Config:
    """What is run: ``task`` names one of the other fields."""

    task: str = "tracking"
    tracking: Tracking = Tracking(QUICK_RUNS)
    lm: LanguageModelling = LanguageModelling()

    def __post_init__(self):
        check_choice("task", self.task, ("tracking", "lm"))

    @property
    def chosen(self) -> Tracking | LanguageModelling:
        return getattr(self, self.task)


def stand_in(config: Config, folder: pathlib.Path) -> Config:
    """A short file of random tokens for a language model that has no path."""
    if config.task != "lm" or config.lm.path:
        return config
    lm = config.lm
    need = 2 * lm.test_time
    tokens = np.random.default_rng(0).integers(1, lm.vocab_size, need + 4 * lm.time, np.uint16)
    path = folder / "tokens.bin"
    tokens.tofile(path)
    return dataclasses.replace(config, lm=dataclasses.replace(lm, path=str(path), held_out=need))


SMOKE = Tracking(
    (("S3", "deltaproduct2"),), dim=8, heads=2, head_dim=2, mlp_dim=8, time=4, test_time=6,
    curriculum=((0.5, 2),), test_size=8, training=dataclasses.replace(QUICK, steps=4, batch_size=4, steps_per_call=2),
)  # fmt: skip
PAPER = Tracking(
    PAPER_RUNS, dim=128, heads=8, head_dim=32, mlp_dim=None, time=128, test_time=512, curriculum=(), pool=99_000,
    use_output_gate=False, chunk_size=None, shorter={}, test_size=1000, training=PAPER_TRACKING, dtype="bfloat16",
)  # fmt: skip

NOTES = """\
deltaproduct1 is DeltaNet with eigenvalues in [-1, 1]. On S3 it ends near 1/3, where chance is 1/6, on seeds 0 and 1: what
knowing the parity of the permutation, and nothing else, would give. On seed 2 it learns the training length by some other
means, 0.92 at position 12, and loses it beyond, 0.42 at position 48; its mean over the positions beyond, 0.65, is more than
the 0.55 that the check allows. Two factors have 0.91 to 0.995 there. Accuracy by position is in figures/.

Words grow by masking the loss: the model is causal, so this is training on shorter words. Parity trains for half the steps;
with a quarter of them it came to 0.949 beyond the training length on seed 0, just below the threshold of 0.95, which stayed.

Not here: the paper stops a run at a validation accuracy of 0.99 and reports the best of three seeds (experiments.claims runs
three seeds and means over them); its language models begin with a standard deviation of 0.006, ours as all of the zoo's; and
the evaluation harness of language models reads them from zoo.save_pretrained(layout="gated_deltaproduct").
"""

register(
    Experiment(
        name="deltaproduct",
        paper="Siems, Carstensen, Zela, Hutter, Pontil, Grazzi 2025, DeltaProduct: Improving State-Tracking in Linear RNNs "
        "via Householder Products",
        claim="One layer with two Householder factors per token and eigenvalues in [-1, 1] follows products of permutations "
        "of three things beyond its training length; one factor, or eigenvalues in [0, 1], do not.",
        presets={
            "smoke": Config(tracking=SMOKE),
            "quick": Config(),
            "paper": Config(tracking=PAPER),
        },
        arms=lambda config: config.chosen.arms(),
        measure=lambda config, trained, key: config.chosen.measure(trained, key),
        figures=lambda config, trained, metrics: config.chosen.figures(trained, metrics),
        stand_in=stand_in,
        checks={
            "quick": (
                Check("S3 beyond the training length, two factors", "S3_deltaproduct2/beyond", ">=", 0.85),
                Check("... one factor", "S3_deltaproduct1/beyond", "<=", 0.55),
                Check("... two factors, eigenvalues in [0, 1]", "S3_deltaproduct2_positive/beyond", "<=", 0.55),
                Check("parity beyond the training length, one factor", "Z2_deltanet_negative/beyond", ">=", 0.95),
                Check("... eigenvalues in [0, 1]", "Z2_deltanet/beyond", "<=", 0.7),
            ),
            "paper": (
                *(
                    Check(f"fewest factors that extrapolate, {group}", f"fewest factors/{group}", "<=", fewest)
                    for group, fewest in (("S3", 2), ("S4", 2), ("A5", 2), ("S5", 4))
                ),
                Check("S3 with one factor", "S3_deltaproduct1/beyond", "<=", 0.55),
                Check("... with two, eigenvalues in [0, 1]", "S3_deltaproduct2_positive/beyond", "<=", 0.55),
            ),
        },
        next_steps="other groups with --set='tracking.runs=[[\"S4\", \"deltaproduct2\"]]', the paper's size with "
        "--preset=paper, its language models with --preset=paper --set=task=lm --set=lm.path=FILE",
        notes=NOTES,
    )
)  # fmt: skip
