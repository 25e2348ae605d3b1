"""The Universal Transformer's own problems, at the paper's sizes: part of experiments/papers/universal_transformer.py.

Every problem compares ``kinds`` of one size: "universal" (a fixed number of depth steps), "act" (adaptive halting with a
ponder cost) and "transformer" (as many layers with weights of their own); sequence-to-sequence problems also "lstm" (with
attention). The ablation "timeless" (universal, without the step signal) runs when it is named. Arms are called
``<problem>_<kind>``.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.core import FrozenDict

from experiments.experiment import Arm, Training
from zoo.checks import check_choice
from zoo.decoding import Beams, beam_search
from zoo.layers import accuracy, cross_entropy, masked_mean
from zoo.mixers import ponder_cost
from zoo.models import (
    EncoderDecoder,
    UniversalTransformerLM,
    UniversalTransformerReader,
    UniversalTransformerSeq2Seq,
)
from zoo.tasks import Agreement, Algorithmic, Babi, Batch, HostTask, Lambada, LearningToExecute, ParallelText, Task
from zoo.tasks.agreement import prefers_right_form
from zoo.tasks.algorithmic import END
from zoo.tasks.babi import TASKS
from zoo.tasks.lambada import reading_loss
from zoo.tasks.learning_to_execute import MEMORISATION, PROBLEMS, VOCAB_SIZE
from zoo.tasks.metrics import bleu
from zoo.tasks.parallel_text import open_vocabulary
from zoo.tasks.sequence_metrics import sequence_scores

KINDS = ("universal", "act", "transformer")
SEQUENCE_KINDS = (*KINDS, "lstm")
ABLATIONS = ("timeless",)
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


def depth_options(kind: str, size: Size, **options: Any) -> dict[str, Any]:
    """Options of the zoo's Universal Transformers that make up a kind."""
    check_choice("kind", kind, (*KINDS, *ABLATIONS))
    options |= {"heads": size.heads, "mlp_dim": size.mlp_dim}
    if kind == "act":
        return options | {"steps": 2 * size.steps, "recurrence": "act"}
    if kind == "timeless":
        return options | {"steps": size.steps, "step_signal": "none"}
    return options | {"steps": size.steps, "shared": kind == "universal"}


def real(batch: Batch) -> jax.Array:
    """True where ``batch.inputs`` [B, T, ...] is no padding."""
    return jnp.arange(batch.inputs.shape[1]) < batch.lengths[:, None]


# How the models are run. ``call`` is their method ``run`` with parameters; each returns the outputs, and for every
# part of the model what happened over depth and where it has real positions.


def run_reader(call: Callable, batch: Batch, deterministic: bool):
    """``UniversalTransformerReader``."""
    outputs, depth = call(batch.inputs, batch.lengths, deterministic=deterministic)
    return outputs, [(depth, real(batch))]


def run_language_model(call: Callable, batch: Batch, deterministic: bool):
    """``UniversalTransformerLM``."""
    logits, _, depth = call(batch.inputs, valid=real(batch), deterministic=deterministic)
    return logits, [(depth, real(batch))]


def run_seq2seq(call: Callable, batch: Batch, deterministic: bool):
    """``UniversalTransformerSeq2Seq``, told the true answer so far."""
    logits, read, written = call(
        batch.inputs, begun(batch), batch.lengths, target_mask=batch.mask, deterministic=deterministic
    )
    return logits, [(read, real(batch)), (written, batch.mask)]


def run_encoder_decoder(call: Callable, batch: Batch, deterministic: bool):
    """``EncoderDecoder``, told the true answer so far; it takes no depth steps."""
    return call(batch.inputs, begun(batch), batch.lengths, deterministic=deterministic), []


def begun(batch: Batch) -> jax.Array:
    """What the decoder reads: PAD, then the answer but for its last token."""
    return jnp.pad(batch.targets[:, :-1], ((0, 0), (1, 0)))


def problem_arm(
    model: nn.Module, run: Callable, task: Task | HostTask, training: Training, ponder: float, objective: Callable,
    score: Callable, test: Batch,
) -> Arm:  # fmt: skip
    """An arm with a ponder cost.

    Args:
      model: what is trained.
      run: how it is run, see above.
      task: training examples.
      training: see ``Training``.
      ponder: weight of the ponder cost.
      objective: ``objective(outputs, batch) -> (loss, metrics)``.
      score: ``score(outputs, batch, params) -> {metric: value per row}`` for the evaluation, which reports the means.
      test: all rows of the evaluation.
    """
    method = "__call__" if run is run_encoder_decoder else "run"

    def init(key, batch):
        made = {}

        def call(*inputs, **options):
            outputs, made["params"] = model.init_with_output(key, *inputs, method=method, **options)
            return outputs

        run(call, batch, True)
        return made["params"]

    def loss(params, batch, key, step, carry):
        call = functools.partial(model.apply, params, method=method, rngs={"dropout": key})
        outputs, depths = run(call, batch, False)
        value, metrics = objective(outputs, batch)
        cost = sum(ponder_cost(depth.steps, depth.remainder, valid) for depth, valid in depths)
        taken = [masked_mean(depth.steps.astype(jnp.float32), valid) for depth, valid in depths]
        metrics = {**metrics, "steps_taken": sum(taken) / len(taken)} if taken else metrics
        return value + ponder * cost, (metrics, carry)

    def evaluate(params, key, data):
        def of_row(row):
            row = jax.tree.map(lambda x: x[None], row)
            outputs, _ = run(functools.partial(model.apply, params, method=method), row, True)
            return {name: jnp.asarray(v[0], jnp.float32) for name, v in score(outputs, row, params).items()}

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
    training: Training = released_training(TINY, steps=50_000, batch_size=512)

    def arms(self) -> dict[str, Arm]:
        """One arm per task and kind, or per kind."""
        generated = self.folder is None
        tasks = tuple(t for t in self.tasks if t <= 3) if generated else self.tasks
        groups = {"joint": tasks} if self.joint else {f"qa{task}": (task,) for task in tasks}
        return {f"{name}_{kind}": self.arm(group, kind) for name, group in groups.items() for kind in self.kinds}

    def arm(self, tasks: tuple[int, ...], kind: str) -> Arm:
        task = Babi(self.folder, tasks)
        test = dataclasses.replace(task, split="test").data()
        model = UniversalTransformerReader(
            task.vocabulary.num_answers, self.size.dim, task.vocabulary.num_words,
            max_words=max(task.data().inputs.shape[2], test.inputs.shape[2]),
            encoder=depth_options(kind, self.size), dropout=self.size.dropout,
        )  # fmt: skip

        def objective(logits, batch):
            return cross_entropy(logits, batch.targets), {"accuracy": accuracy(logits, batch.targets)}

        def score(logits, batch, params):
            correct = jnp.argmax(logits, axis=-1) == batch.targets
            wrong = 100.0 * ~correct
            # The mean over all rows of rows / rows of the task, at the rows of the task, is the task's own mean.
            of_task = {
                f"error_{t}": jnp.where(batch.extra["task"] == t, wrong * len(test.targets) / count, 0)
                for t, count in zip(*np.unique(test.extra["task"], return_counts=True))
            }
            return {"error": wrong, "accuracy": correct, **of_task}

        return problem_arm(model, run_reader, task, self.training, self.size.ponder, objective, score, test)


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
    training: Training = released_training(SMALL, steps=50_000, batch_size=128)

    def arms(self) -> dict[str, Arm]:
        """One arm per kind."""
        return {f"agreement_{kind}": self.arm(kind) for kind in self.kinds}

    def arm(self, kind: str) -> Arm:
        task = Agreement(self.file, vocab_size=self.vocab_size, max_length=self.max_length)
        test = dataclasses.replace(task, split="test").data()
        model = language_model(kind, self.size, len(task.vocabulary) + 2, self.max_length)

        def score(logits, batch, params):
            right = prefers_right_form(logits, batch)
            of_number = {
                f"accuracy_{k}": jnp.where(batch.extra["attractors"] == k, right * len(test.lengths) / count, 0)
                for k, count in zip(*np.unique(test.extra["attractors"], return_counts=True))
            }
            return {"accuracy": right, **of_number}

        return problem_arm(model, run_language_model, task, self.training, self.size.ponder, next_word, score, test)


def language_model(kind: str, size: Size, num_words: int, window: int) -> UniversalTransformerLM:
    """A language model of a kind."""
    options = depth_options(kind, size, window=window)
    return UniversalTransformerLM(num_words, size.dim, decoder=options, dropout=size.dropout)


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
    training: Training = released_training(SMALL, steps=100_000, batch_size=64)

    def arms(self) -> dict[str, Arm]:
        """One arm per kind."""
        if self.novels is None or self.passages is None:
            raise ValueError("lambada needs --set=lambada.novels=FOLDER and --set=lambada.passages=FILE")
        return {f"lambada_{kind}": self.arm(kind) for kind in self.kinds}

    def arm(self, kind: str) -> Arm:
        task = Lambada(self.novels, None, self.objective, self.vocab_size, self.max_length)
        test = dataclasses.replace(task, passages=self.passages).data()
        words, reading = len(task.vocabulary) + 2, self.objective == "reading"
        if reading:
            model = UniversalTransformerReader(
                1,
                self.size.dim,
                words,
                pooling="none",
                encoder=depth_options(kind, self.size),
                dropout=self.size.dropout,
            )
        else:
            model = language_model(kind, self.size, words, self.max_length)

        def objective(outputs, batch):
            if not reading:
                return next_word(outputs, batch)
            value, correct = reading_loss(outputs[..., 0], batch)
            return value, {"accuracy": jnp.mean(correct)}

        def score(outputs, batch, params):
            value, metrics = objective(outputs, batch)
            return {"loss": value[None], "accuracy": metrics["accuracy"][None]}

        run = run_reader if reading else run_language_model
        return problem_arm(model, run, task, self.training, self.size.ponder, objective, score, test)


def sequence_model(
    kind: str, size: Size, vocab_size: int, window: int, position_start: str = "none"
) -> UniversalTransformerSeq2Seq | EncoderDecoder:
    """An encoder-decoder of a kind; "lstm" is bidirectional, with attention, half as deep."""
    if kind == "lstm":
        return EncoderDecoder(
            vocab_size, vocab_size, size.dim, encoder=(FrozenDict(name="bidirectional", mixer="lstm"),), decoder=("lstm",),
            depth=max(size.steps // 2, 1), mlp="none", heads=size.heads, dropout=size.dropout,
        )  # fmt: skip
    return UniversalTransformerSeq2Seq(
        vocab_size, size.dim, encoder=depth_options(kind, size, position_start=position_start),
        decoder=depth_options(kind, size, window=window), dropout=size.dropout,
    )  # fmt: skip


def sequence_arm(
    task: Task | HostTask, model: nn.Module, training: Training, size: Size, test: Batch, smoothing: float = 0.0,
    free: bool = True,
) -> Arm:  # fmt: skip
    """Cross-entropy of the answers; characters and whole answers right, told the truth so far or writing ``free``ly."""

    def objective(logits, batch):
        value = cross_entropy(logits, batch.targets, batch.mask)
        spread = masked_mean(jax.nn.logsumexp(logits, axis=-1) - jnp.mean(logits, axis=-1), batch.mask)
        scores = sequence_scores(jnp.argmax(logits, axis=-1), batch.targets, batch.mask)
        return (1 - smoothing) * value + smoothing * spread, {"cross_entropy": value, **scores}

    def score(logits, batch, params):
        forced = sequence_scores(jnp.argmax(logits, axis=-1), batch.targets, batch.mask)
        scores = {"loss": cross_entropy(logits, batch.targets, batch.mask)}
        scores |= {f"forced_{name}": value for name, value in forced.items()}
        if free:
            written = write(model, params, batch, beam_size=1).tokens[:, 0]
            scores |= sequence_scores(written, batch.targets, batch.mask)
        return {name: value[None] for name, value in scores.items()}

    run = run_encoder_decoder if isinstance(model, EncoderDecoder) else run_seq2seq
    return problem_arm(model, run, task, training, size.ponder, objective, score, test)


def write(model: nn.Module, params: Any, batch: Batch, beam_size: int, length_penalty: float = 0.0) -> Beams:
    """Answers by beam search, as long as the targets at most."""
    return beam_search(
        model,
        params,
        jnp.zeros((batch.inputs.shape[0], 1), batch.inputs.dtype),
        beam_size=beam_size,
        max_new_tokens=batch.targets.shape[1],
        stop_token=END,
        length_penalty=length_penalty,
        source=batch.inputs,
        source_lengths=batch.lengths,
    )


@dataclasses.dataclass(frozen=True)
class Strings:
    """Copy, reverse and addition: trained on short strings, tested on ten times longer ones.

    Attributes:
      problems: of ``zoo.tasks.algorithmic``.
      max_length: longest string in training.
      test_length: length of the test strings.
      test_size: test strings.
      kinds, size, training: as for every problem.
    """

    problems: tuple[str, ...] = ("copy", "reverse", "addition")
    max_length: int = 40
    test_length: int = 400
    test_size: int = 256
    kinds: tuple[str, ...] = SEQUENCE_KINDS
    size: Size = TINY
    training: Training = released_training(TINY, steps=100_000, batch_size=64)

    def arms(self) -> dict[str, Arm]:
        """One arm per problem and kind."""
        return {f"{problem}_{kind}": self.arm(problem, kind) for problem in self.problems for kind in self.kinds}

    def arm(self, problem: str, kind: str) -> Arm:
        task = Algorithmic(problem, max_length=self.max_length)
        longer = Algorithmic(problem, self.test_length, self.test_length)
        test = jax.tree.map(np.asarray, longer.batch(jax.random.key(0), self.test_size))
        model = sequence_model(kind, self.size, task.vocab_size, self.test_length + 1, "random")
        return sequence_arm(task, model, self.training, self.size, test)


@dataclasses.dataclass(frozen=True)
class Programs:
    """Learning to execute: programs, and strings to memorise.

    Attributes:
      problems: of ``zoo.tasks.learning_to_execute``.
      length, nesting, curriculum: as there.
      memorised: length of the strings to memorise.
      test_size: test programs, all of full length and nesting.
      kinds, size, training: as for every problem.
    """

    problems: tuple[str, ...] = PROBLEMS
    length: int = 4
    nesting: int = 3
    memorised: int = 40
    curriculum: str = "combined"
    test_size: int = 512
    kinds: tuple[str, ...] = SEQUENCE_KINDS
    size: Size = TINY
    training: Training = released_training(TINY, steps=100_000, batch_size=128)

    def arms(self) -> dict[str, Arm]:
        """One arm per problem and kind."""
        return {f"{problem}_{kind}": self.arm(problem, kind) for problem in self.problems for kind in self.kinds}

    def arm(self, problem: str, kind: str) -> Arm:
        length = self.memorised if problem in MEMORISATION else self.length
        task = LearningToExecute(problem, length, self.nesting, self.curriculum)
        full = dataclasses.replace(task, curriculum="baseline")
        test = full.read(TEST_SEED, 0, range(self.test_size), self.test_size)
        window = max(task.source_length, task.target_length)
        model = sequence_model(kind, self.size, VOCAB_SIZE, window, "none")
        return sequence_arm(task, model, self.training, self.size, test)


TEST_SEED = -1  # no run trains on it


@dataclasses.dataclass(frozen=True)
class Translation:
    """Translation between two languages (WMT14 English-German), with folders of ``zoo.tasks.parallel_text.prepare``.

    Attributes:
      folder: training pairs.
      test_folder: test pairs, in the vocabulary of the training pairs.
      buckets: lengths; longer sentences are left out.
      test_size: test sentences.
      smoothing: of the labels.
      beam_size, length_penalty: how BLEU is decoded.
      kinds, size, training: as for every problem. ``batch_size`` counts sentences of the longest bucket.
    """

    folder: str | None = None
    test_folder: str | None = None
    buckets: tuple[int, ...] = (16, 32, 64, 128)
    test_size: int = 3003
    smoothing: float = 0.1
    beam_size: int = 4
    length_penalty: float = 0.6
    kinds: tuple[str, ...] = KINDS
    size: Size = BASE
    training: Training = released_training(BASE, steps=100_000, batch_size=256, steps_per_call=1)

    def arms(self) -> dict[str, Arm]:
        """One arm per kind."""
        if self.folder is None or self.test_folder is None:
            raise ValueError(
                "translation needs --set=translation.folder=FOLDER and --set=translation.test_folder=FOLDER, both made by "
                "zoo.tasks.parallel_text.prepare from parallel text"
            )
        task, test = (ParallelText(folder, self.buckets) for folder in (self.folder, self.test_folder))
        if task.vocab_size != test.vocab_size:
            raise ValueError(
                f"the folders have {task.vocab_size} and {test.vocab_size} sub-words: prepare both with one"
            )
        test = test.first(self.test_size)

        def arm(kind):
            model = sequence_model(kind, self.size, task.vocab_size, self.buckets[-1], "none")
            return sequence_arm(task, model, self.training, self.size, test, self.smoothing, free=False)

        return {f"translation_{kind}": arm(kind) for kind in self.kinds}

    def bleu(self, arm: Arm, params: Any) -> float:
        """BLEU of the test sentences, split at blanks, in per cent."""
        vocabulary, rows = open_vocabulary(self.test_folder), arm.evaluation_data
        written = []
        for start in range(0, len(rows.lengths), CHUNK):
            chunk = jax.tree.map(lambda x, i=start: x[i : i + CHUNK], rows)
            beams = write(arm.model, params, chunk, self.beam_size, self.length_penalty)
            written += [vocabulary.decode(row).split() for row in np.asarray(beams.tokens[:, 0])]
        return 100 * bleu(written, [[vocabulary.decode(row).split()] for row in rows.targets])


HIGHER_IS_BETTER = ("bleu", "character_accuracy", "accuracy")


def compare(scores: Mapping[str, Mapping[str, float]], measured: Mapping[str, float]) -> dict[str, float]:
    """What Universal Transformers gain over the Transformer of the same problem.

    Args:
      scores: arm -> metrics.
      measured: "<arm>/<metric>" -> number, from after the training.

    Returns:
      ``gain`` the mean over problems of the difference between the better of "universal" and "act" and "transformer", in
      the first of HIGHER_IS_BETTER that they have; for bAbI also ``failed_<kind>``, the tasks with more than 5 % error.
    """
    by_problem: dict[str, dict[str, float]] = {}
    failed: dict[str, float] = {}
    for arm, metrics in scores.items():
        problem, kind = arm.rsplit("_", 1)
        everything = {
            **metrics,
            **{k.removeprefix(f"{arm}/"): v for k, v in measured.items() if k.startswith(f"{arm}/")},
        }
        by_problem.setdefault(problem, {})[kind] = next(everything[m] for m in HIGHER_IS_BETTER if m in everything)
        errors = [v for k, v in metrics.items() if k.startswith("error_")]
        if errors:
            failed[f"failed_{kind}"] = failed.get(f"failed_{kind}", 0.0) + sum(error > 5 for error in errors)
    gains = [
        max(v for kind, v in kinds.items() if kind in ("universal", "act")) - kinds["transformer"]
        for kinds in by_problem.values()
        if "transformer" in kinds and len(kinds.keys() & {"universal", "act"})
    ]
    return {**failed, **({"gain": sum(gains) / len(gains)} if gains else {})}
