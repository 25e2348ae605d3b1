"""The Universal Transformer's own problems, at the paper's sizes: part of experiments/papers/universal_transformer.py.

Every problem compares ``kinds`` of one size: "universal" (a fixed number of depth steps), "act" (adaptive halting with a
ponder cost) and "transformer" (as many layers with weights of their own). Arms are called ``<problem>_<kind>``.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from experiments.experiment import Arm, Training
from zoo.layers import accuracy, cross_entropy, masked_mean
from zoo.mixers import UniversalTransformer, UniversalTransformerEncoder, ponder_cost
from zoo.tasks import Agreement, Babi, Batch, Lambada
from zoo.tasks.agreement import prefers_right_form
from zoo.tasks.babi import PAD, TASKS
from zoo.tasks.lambada import reading_loss

KINDS = ("universal", "act", "transformer")
CHUNK = 32  # rows at a time in an evaluation of a whole set


@dataclasses.dataclass(frozen=True)
class Size:
    """Size of a model.

    Attributes:
      dim: width.
      heads: attention heads.
      mlp_dim: inner width of the transition.
      steps: depth steps, or layers of the Transformer; with adaptive halting at most twice as many.
      dropout: rate.
      ponder: weight of the ponder cost, with adaptive halting.
    """

    dim: int = 128
    heads: int = 4
    mlp_dim: int = 512
    steps: int = 8
    dropout: float = 0.1
    ponder: float = 0.01


TINY = Size()
SMALL = Size(dim=512, heads=8, mlp_dim=2048, steps=6)
BASE = Size(dim=1024, heads=16, mlp_dim=4096, steps=6, dropout=0.3)


def released_training(size: Size, **training: Any) -> Training:
    """Adam; 8000 steps up to 2 (8000 dim)^-1/2, then falling with the root of the step (the released settings)."""
    return Training(
        optimizer="adam", b2=0.997, eps=1e-9, clip_norm=None, schedule="inverse_sqrt", warmup=8000,
        learning_rate=2 * (8000 * size.dim) ** -0.5, checkpoint_every=10_000, **training,
    )  # fmt: skip


def depth_options(kind: str, size: Size) -> dict[str, Any]:
    """Options of the zoo's Universal Transformers that make up a kind."""
    options = {"dim": size.dim, "heads": size.heads, "mlp_dim": size.mlp_dim, "dropout": size.dropout}
    if kind == "transformer":
        return options | {"steps": 1, "inner_layers": size.steps, "step_signal": "none"}
    if kind == "act":
        return options | {"steps": 2 * size.steps, "recurrence": "act"}
    return options | {"steps": size.steps}


def embed(module: nn.Module, words: jax.Array, size: int, dim: int) -> jax.Array:
    """Embeddings N(0, 1/dim) times sqrt(dim); the table is the parameter ``embedding`` of ``module``."""
    return module.param("embedding", nn.initializers.normal(dim**-0.5), (size, dim))[words] * dim**0.5


def real(batch: Batch) -> jax.Array:
    """True where ``batch.inputs`` [B, T, ...] is no padding."""
    return jnp.arange(batch.inputs.shape[1]) < batch.lengths[:, None]


class StoryReader(nn.Module):
    """Answers questions on stories: a softmax over the answers on the mean of what the encoder says.

    A sentence is the sum of its words' embeddings, each times a learned mask of its position (initially 1).
    """

    num_words: int
    num_answers: int
    width: int
    encoder: UniversalTransformerEncoder

    @nn.compact
    def __call__(self, batch: Batch, deterministic: bool = True):
        dim, valid = self.encoder.dim, real(batch)
        words = embed(self, batch.inputs, self.num_words, dim)
        mask = self.param("position_mask", nn.initializers.ones, (self.width, dim))[: words.shape[2]]
        sentences = jnp.sum(jnp.where((batch.inputs == PAD)[..., None], 0, words * mask), axis=2)
        y, _, depth = self.encoder.run(sentences, valid=valid, deterministic=deterministic)
        pooled = jnp.sum(jnp.where(valid[..., None], y, 0), axis=1) / batch.lengths[:, None]
        return nn.Dense(self.num_answers, name="answer")(pooled), [(depth, valid)]


class PositionScorer(nn.Module):
    """Reading comprehension: one score for every word of the passage."""

    num_words: int
    encoder: UniversalTransformerEncoder

    @nn.compact
    def __call__(self, batch: Batch, deterministic: bool = True):
        valid = real(batch)
        x = embed(self, batch.inputs, self.num_words, self.encoder.dim)
        y, _, depth = self.encoder.run(x, valid=valid, deterministic=deterministic)
        return nn.Dense(1, name="score")(y)[..., 0], [(depth, valid)]


class WordModel(nn.Module):
    """Next-word logits; the output matrix is the embedding's."""

    num_words: int
    decoder: UniversalTransformer

    @nn.compact
    def __call__(self, batch: Batch, deterministic: bool = True):
        valid = real(batch)
        x = embed(self, batch.inputs, self.num_words, self.decoder.dim)
        y, _, depth = self.decoder.run(x, valid=valid, deterministic=deterministic)
        return y @ self.get_variable("params", "embedding").T, [(depth, valid)]


def problem_arm(
    model: nn.Module, task: Any, training: Training, ponder: float, objective: Callable, score: Callable, test: Batch
) -> Arm:
    """An arm with a ponder cost.

    Args:
      model: ``model(batch, deterministic) -> (outputs, [(what happened over depth, real positions), ...])``.
      task: training examples.
      training: see ``Training``.
      ponder: weight of the ponder cost.
      objective: ``objective(outputs, batch) -> (loss, metrics)``.
      score: ``score(params, batch) -> {metric: value per row}`` for the evaluation, which reports the means.
      test: all rows of the evaluation.
    """

    def init(key, batch):
        return model.init(key, batch)

    def loss(params, batch, key, step, carry):
        outputs, depths = model.apply(params, batch, deterministic=False, rngs={"dropout": key})
        value, metrics = objective(outputs, batch)
        cost = sum(ponder_cost(depth.steps, depth.remainder, valid) for depth, valid in depths)
        taken = sum(masked_mean(depth.steps.astype(jnp.float32), valid) for depth, valid in depths) / len(depths)
        return value + ponder * cost, ({**metrics, "steps_taken": taken}, carry)

    def evaluate(params, key, data):
        def of_row(row):
            scores = score(params, jax.tree.map(lambda x: x[None], row))
            return jax.tree.map(lambda x: jnp.asarray(x[0], jnp.float32), scores)

        return jax.tree.map(jnp.mean, jax.lax.map(of_row, data, batch_size=CHUNK))

    return Arm(init, loss, task, training, evaluate, evaluation_data=test, model=model)


@dataclasses.dataclass(frozen=True)
class Stories:
    """bAbI: questions on stories.

    Attributes:
      folder: the data's ``en`` or ``en-10k``; None: generated stories of tasks 1 to 3.
      tasks: trained one by one, or ``joint``ly.
      joint: one model for all tasks.
      kinds: what is compared.
      size, training: as for every problem.
    """

    folder: str | None = None
    tasks: tuple[int, ...] = TASKS
    joint: bool = False
    kinds: tuple[str, ...] = KINDS
    size: Size = TINY
    training: Training = released_training(TINY, steps=50_000, batch_size=512)  # noqa: RUF009

    def arms(self) -> dict[str, Arm]:
        """One arm per task and kind, or per kind."""
        generated = self.folder is None
        tasks = tuple(t for t in self.tasks if t <= 3) if generated else self.tasks
        groups = {"joint": tasks} if self.joint else {f"qa{task}": (task,) for task in tasks}
        return {f"{name}_{kind}": self.arm(group, kind) for name, group in groups.items() for kind in self.kinds}

    def arm(self, tasks: tuple[int, ...], kind: str) -> Arm:
        task = Babi(self.folder, tasks)
        test = dataclasses.replace(task, split="test").data()
        width = max(task.data().inputs.shape[2], test.inputs.shape[2])
        encoder = UniversalTransformerEncoder(**depth_options(kind, self.size))
        model = StoryReader(task.vocabulary.num_words, task.vocabulary.num_answers, width, encoder)

        def objective(logits, batch):
            return cross_entropy(logits, batch.targets), {"accuracy": accuracy(logits, batch.targets)}

        def score(params, batch):
            correct = jnp.argmax(model.apply(params, batch)[0], axis=-1) == batch.targets
            wrong = 100.0 * ~correct
            # The mean over all rows of rows / rows of the task, at the rows of the task, is the task's own mean.
            of_task = {
                f"error_{t}": jnp.where(batch.extra["task"] == t, wrong * len(test.targets) / count, 0)
                for t, count in zip(*np.unique(test.extra["task"], return_counts=True))
            }
            return {"error": wrong, "accuracy": correct, **of_task}

        return problem_arm(model, task, self.training, self.size.ponder, objective, score, test)


@dataclasses.dataclass(frozen=True)
class Verbs:
    """Subject-verb agreement of a language model, by number of attractors.

    Attributes:
      file: Linzen et al.'s or Gulordava et al.'s data; None: generated sentences.
      vocab_size: words kept.
      max_length: words before a verb.
      kinds, size, training: as for every problem.
    """

    file: str | None = None
    vocab_size: int = 10_000
    max_length: int = 50
    kinds: tuple[str, ...] = KINDS
    size: Size = SMALL
    training: Training = released_training(SMALL, steps=50_000, batch_size=128)  # noqa: RUF009

    def arms(self) -> dict[str, Arm]:
        """One arm per kind."""
        return {f"agreement_{kind}": self.arm(kind) for kind in self.kinds}

    def arm(self, kind: str) -> Arm:
        task = Agreement(self.file, vocab_size=self.vocab_size, max_length=self.max_length)
        test = dataclasses.replace(task, split="test").data()
        decoder = UniversalTransformer(window=self.max_length, **depth_options(kind, self.size))
        model = WordModel(len(task.vocabulary) + 2, decoder)

        def score(params, batch):
            right = prefers_right_form(model.apply(params, batch)[0], batch)
            of_number = {
                f"accuracy_{k}": jnp.where(batch.extra["attractors"] == k, right * len(test.lengths) / count, 0)
                for k, count in zip(*np.unique(test.extra["attractors"], return_counts=True))
            }
            return {"accuracy": right, **of_number}

        return problem_arm(model, task, self.training, self.size.ponder, next_word, score, test)


def next_word(logits: jax.Array, batch: Batch) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Cross-entropy of a language model where ``batch.mask`` says so."""
    value = cross_entropy(logits, batch.targets, batch.mask)
    return value, {"accuracy": accuracy(logits, batch.targets, batch.mask), "perplexity": jnp.exp(value)}


@dataclasses.dataclass(frozen=True)
class Passages:
    """LAMBADA: the last word of a passage.

    Attributes:
      novels: training text, a file or a folder.
      passages: test passages.
      objective: "language_model" or "reading".
      vocab_size: words kept.
      max_length: words before the last.
      kinds, size, training: as for every problem.
    """

    novels: str | None = None
    passages: str | None = None
    objective: str = "reading"
    vocab_size: int = 60_000
    max_length: int = 200
    kinds: tuple[str, ...] = KINDS
    size: Size = SMALL
    training: Training = released_training(SMALL, steps=100_000, batch_size=64)  # noqa: RUF009

    def arms(self) -> dict[str, Arm]:
        """One arm per kind."""
        if self.novels is None or self.passages is None:
            raise ValueError("lambada needs --set=lambada.novels=FOLDER and --set=lambada.passages=FILE")
        return {f"lambada_{kind}": self.arm(kind) for kind in self.kinds}

    def arm(self, kind: str) -> Arm:
        task = Lambada(self.novels, None, self.objective, self.vocab_size, self.max_length)
        test = dataclasses.replace(task, passages=self.passages).data()
        words, options = len(task.vocabulary) + 2, depth_options(kind, self.size)
        reading = self.objective == "reading"
        if reading:
            model = PositionScorer(words, UniversalTransformerEncoder(**options))
        else:
            model = WordModel(words, UniversalTransformer(window=self.max_length, **options))

        def read(scores, batch):
            value, correct = reading_loss(scores, batch)
            return value, {"accuracy": jnp.mean(correct)}

        def score(params, batch):
            outputs = model.apply(params, batch)[0]
            if reading:
                value, correct = reading_loss(outputs, batch)
                return {"loss": value[None], "accuracy": correct}
            value, metrics = next_word(outputs, batch)
            return {"loss": value[None], "accuracy": metrics["accuracy"][None]}

        return problem_arm(model, task, self.training, self.size.ponder, read if reading else next_word, score, test)
