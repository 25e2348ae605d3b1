"""What the survey teaches about recurrent networks, each claim on the smallest problem that shows it.

Lipton, Berkowitz, Elkan (2015), A Critical Review of Recurrent Neural Networks for Sequence Learning. The survey has no
experiment of its own. "smoke" and "quick" run these:

1. gradients: the Jacobian of 40 steps of networks with an orthogonal recurrent matrix times c;
2. recall: the first of 40 symbols is asked for at the end; plain, gated, and windowed networks;
3. future: labels that depend on what comes two steps later; one direction against two;
4. reversal: sequence to sequence, teacher-forced in training, free-running in the test; strokes: a bidirectional
   LSTM with connectionist temporal classification; captions: a convolutional network that starts an LSTM;
5. clipping: a network whose gradients explode, with and without.

"paper" trains on one of the corpora that the survey reports on: ``task`` is "words" (Penn Treebank), "characters" (text8),
"handwriting" (IAM-OnDB or TIMIT), "translation" (WMT14) or "captions" (MS-COCO), ``data.path`` says where it lies.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import zoo
from experiments import stand_ins
from experiments.arms import classification
from experiments.experiment import Arm, Check, Experiment, Trained, Training, register
from experiments.papers.critical_review_arms import START, captioning, greedy, streaming, translation, unsegmented
from zoo.analysis import jacobian_log_norms, mixer_step, weight_sweep
from zoo.checks import check_choice
from zoo.decoding import ctc_best_path
from zoo.models import Captioner, EncoderDecoder, LanguageModel, SequenceClassifier, fit_ngram, ngram_entropy
from zoo.tasks import (
    Adding,
    DelayedRecall,
    FeatureCaptions,
    FutureContext,
    LabelledFrames,
    NoisyStrokes,
    ParallelText,
    Reversal,
    ShapeCaptions,
    TextStreams,
    bleu,
    error_rate,
)
from zoo.tasks.reversal import END
from zoo.training import clip_gradients

PROBLEMS = ("gradients", "recall", "future", "reversal", "strokes", "captions", "clipping")
TASKS = ("survey", "words", "characters", "handwriting", "translation", "captions")
PLAIN = {"mlp": "none", "norm": "none"}  # a recurrent layer and nothing else, but for the residual connection
ADAM = Training(steps=600, batch_size=32, optimizer="adam", learning_rate=3e-3, clip_norm=1.0, steps_per_call=100)
FAST = dataclasses.replace(ADAM, steps=400, learning_rate=1e-2)
STROKES = dataclasses.replace(FAST, steps=300)
CAPTION = dataclasses.replace(FAST, learning_rate=3e-3)
REVERSAL = dataclasses.replace(FAST, steps=1500, schedule="cosine", final_scale=0.1)


@dataclasses.dataclass(frozen=True)
class Gradients:
    """Jacobian profiles: ``dim`` units, ``time`` steps, recurrent matrices ``scales`` times an orthogonal one."""

    dim: int = 32
    time: int = 40
    scales: tuple[float, ...] = (0.5, 1.0, 2.0)


@dataclasses.dataclass(frozen=True)
class Recall:
    """Delayed recall over ``time`` steps; ``gate_bias`` opens the forget gate (LSTM) and the update gate (GRU) at first."""

    time: int = 40
    dim: int = 32
    gate_bias: float = 4.0
    window: int = 8
    training: Training = ADAM


@dataclasses.dataclass(frozen=True)
class Future:
    """Framewise labelling with future context."""

    time: int = 24
    dim: int = 32
    training: Training = FAST


@dataclasses.dataclass(frozen=True)
class Sequences:
    """Reversal, strokes and captions.

    Attributes:
      dim: width of the encoder-decoder.
      reversal: training of the encoder-decoder.
      label_dim: width of the stroke labeller and the captioner.
      strokes: training of the labeller.
      captions: training of the captioner.
      beam_size: for BLEU.
      sentences: how many test sentences are decoded for BLEU and error rates.
    """

    dim: int = 64
    reversal: Training = REVERSAL
    label_dim: int = 32
    strokes: Training = STROKES
    captions: Training = CAPTION
    beam_size: int = 4
    sentences: int = 200


@dataclasses.dataclass(frozen=True)
class Clipping:
    """SGD on the adding problem with recurrent weights ``scale`` times their usual size."""

    time: int = 50
    dim: int = 32
    scale: float = 3.0
    learning_rate: float = 0.5
    clip: float = 1.0
    steps: int = 200
    batch_size: int = 32


@dataclasses.dataclass(frozen=True)
class Data:
    """Where the corpus of a "paper" task lies: a file or a folder, see the task's loader in zoo.tasks."""

    path: str = ""


@dataclasses.dataclass(frozen=True)
class Corpus:
    """A network for a corpus.

    Attributes:
      dim: width.
      depth: recurrent layers (on each side of an encoder-decoder).
      time: steps of a segment, or longest sentence or caption.
      vocabulary: most words; None: all of the corpus.
      dropout: on non-recurrent connections.
      test_size: rows, streams or sentences in the evaluation.
      training: how it is trained.
    """

    dim: int
    depth: int
    time: int
    vocabulary: int | None
    dropout: float
    test_size: int
    training: Training


SGD = Training(optimizer="sgd", b1=0.0, steps_per_call=100, evaluate_every=10_000, checkpoint_every=10_000)
# 39 epochs of 929,589 words in 20 streams of 35 (Zaremba et al. 2014, medium network).
WORDS = Corpus(650, 2, 35, 10_000, 0.5, 10, dataclasses.replace(
    SGD, steps=51_800, batch_size=20, learning_rate=1.0, schedule="linear", final_scale=1e-3, clip_norm=5.0))  # fmt: skip
CHARACTERS = Corpus(1024, 2, 128, None, 0.1, 16, dataclasses.replace(
    ADAM, steps=100_000, batch_size=128, learning_rate=1e-3, schedule="cosine", warmup=1000, evaluate_every=10_000,
    checkpoint_every=10_000))  # fmt: skip
HANDWRITING = Corpus(128, 2, 0, None, 0.0, 1000, dataclasses.replace(
    ADAM, steps=50_000, learning_rate=1e-3, evaluate_every=5000, checkpoint_every=5000))  # fmt: skip
# 7.5 epochs of 12 million pairs; the published schedule halves the rate each half epoch after five.
TRANSLATION = Corpus(1000, 4, 50, 160_000, 0.0, 1000, dataclasses.replace(
    SGD, steps=703_000, batch_size=128, learning_rate=0.7, schedule="linear", final_scale=0.03, clip_norm=5.0))  # fmt: skip
CAPTIONS = Corpus(512, 1, 20, None, 0.5, 1000, dataclasses.replace(
    ADAM, steps=100_000, batch_size=128, learning_rate=4e-4, evaluate_every=10_000, checkpoint_every=10_000))  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Config:
    """What is run, and every size.

    Attributes:
      task: "survey" for the small problems; otherwise a corpus.
      problems: which of the small problems.
      data: where the corpus lies.
      gradients, recall, future, sequences, clipping: of "survey".
      words, characters, handwriting, translation, captions: of the corpora.
    """

    task: str = "survey"
    problems: tuple[str, ...] = PROBLEMS
    data: Data = Data()
    gradients: Gradients = Gradients()
    recall: Recall = Recall()
    future: Future = Future()
    sequences: Sequences = Sequences()
    clipping: Clipping = Clipping()
    words: Corpus = WORDS
    characters: Corpus = CHARACTERS
    handwriting: Corpus = HANDWRITING
    translation: Corpus = TRANSLATION
    captions: Corpus = CAPTIONS

    def __post_init__(self):
        check_choice("task", self.task, TASKS)
        for problem in self.problems:
            check_choice("problems", problem, PROBLEMS)


def arms(config: Config) -> dict[str, Arm]:
    """The arms of the task."""
    return survey_arms(config) if config.task == "survey" else {config.task: CORPORA[config.task](config)}


def stand_in(config: Config, folder: pathlib.Path) -> Config:
    """Penn Treebank's sizes for the word and character models, where no corpus is given."""
    if config.data.path or config.task not in ("words", "characters"):
        return config
    return dataclasses.replace(config, data=Data(stand_ins.words(folder)))


def survey_arms(config: Config) -> dict[str, Arm]:
    """The networks that are trained on the chosen small problems."""
    makers = {"recall": _recall, "future": _future, "reversal": _reversal, "strokes": _strokes, "captions": _shapes}
    result: dict[str, Arm] = {}
    for problem in config.problems:
        if problem in makers:
            result |= makers[problem](config)
    return result


def _recall(config: Config) -> dict[str, Arm]:
    sizes, task = config.recall, DelayedRecall(time=config.recall.time)
    mixers = {
        "tanh": {"name": "elman"},
        "lstm": {"name": "lstm", "forget_bias": sizes.gate_bias},
        "lstm97": {"name": "lstm", "forget_gate": False},
        "gru": {"name": "gru", "update_bias": sizes.gate_bias},
        "window_mlp": {"name": "window_mlp", "window": sizes.window},
    }
    result = {}
    for name, mixer in mixers.items():
        model = SequenceClassifier(
            num_outputs=task.symbols,
            dim=sizes.dim,
            vocab_size=task.vocab_size,
            pooling="last",
            pattern=(mixer,),
            **PLAIN,
        )
        result[f"recall_{name}"] = classification(model, task, sizes.training)
    return result


def _future(config: Config) -> dict[str, Arm]:
    sizes, task = config.future, FutureContext(time=config.future.time)
    result = {}
    # With a linear head alone the logits are a sum of what each direction knows, and no sum is an XOR: both arms get a
    # hidden layer on top.
    for name, mixer in {"causal": {"name": "lstm"}, "both_ways": {"name": "bidirectional", "mixer": "lstm"}}.items():
        model = SequenceClassifier(
            num_outputs=2, dim=sizes.dim, vocab_size=2, pooling="none", pattern=(mixer,), mlp="gelu", norm="none"
        )
        result[f"future_{name}"] = classification(model, task, sizes.training)
    return result


def _reversal(config: Config) -> dict[str, Arm]:
    sizes, task = config.sequences, Reversal()
    model = EncoderDecoder(task.vocab_size, task.vocab_size, sizes.dim, encoder=("lstm",), bridge="state", **PLAIN)
    return {"reversal": translation(model, task, sizes.reversal)}


def _strokes(config: Config) -> dict[str, Arm]:
    sizes, task = config.sequences, NoisyStrokes()
    return {"strokes": unsegmented(labeller(task.symbols, sizes.label_dim, depth=1), task, sizes.strokes)}


def _shapes(config: Config) -> dict[str, Arm]:
    sizes, task = config.sequences, ShapeCaptions()
    model = Captioner(
        task.vocab_size, sizes.label_dim, mode="initial_state", channels=(8, 16), pattern=("lstm",), **PLAIN
    )
    return {"captions": captioning(model, task, sizes.captions)}


def labeller(symbols: int, dim: int, depth: int, dropout: float = 0.0) -> SequenceClassifier:
    """Bidirectional LSTM that classifies frames into ``symbols`` labels and the blank."""
    return SequenceClassifier(
        num_outputs=symbols + 1, dim=dim, pooling="none", pattern=({"name": "bidirectional", "mixer": "lstm"},),
        depth=depth, dropout=dropout, **PLAIN,
    )  # fmt: skip


def _words(config: Config, unit: str = "word") -> Arm:
    corpus = config.words if unit == "word" else config.characters
    task = TextStreams(config.data.path, unit, "train", corpus.time, corpus.vocabulary)
    model = LanguageModel(
        task.vocab_size, corpus.dim, pattern=("lstm",), depth=corpus.depth, dropout=corpus.dropout, **PLAIN
    )
    test = dataclasses.replace(task, split="test")
    sum_time = corpus.training.optimizer == "sgd"
    return streaming(model, task, corpus.training, test=test, rows=corpus.test_size, sum_time=sum_time)


def _handwriting(config: Config) -> Arm:
    corpus, task = config.handwriting, LabelledFrames(config.data.path)
    model = labeller(task.symbols, corpus.dim, corpus.depth, corpus.dropout)
    return unsegmented(model, task, corpus.training, test_size=corpus.test_size)


def _translation(config: Config) -> Arm:
    # One bucket: every step has the same shape.
    corpus, task = config.translation, ParallelText(config.data.path, buckets=(config.translation.time,))
    model = EncoderDecoder(
        task.vocab_size, task.vocab_size, corpus.dim, encoder=("lstm",), depth=corpus.depth, bridge="state",
        reverse_source=True, dropout=corpus.dropout, **PLAIN,
    )  # fmt: skip
    return translation(model, task, corpus.training, test=task.first(corpus.test_size))


def _captions(config: Config) -> Arm:
    corpus, task = config.captions, FeatureCaptions(config.data.path, config.captions.time)
    model = Captioner(
        task.vocab_size, corpus.dim, pattern=("lstm",), depth=corpus.depth, dropout=corpus.dropout, **PLAIN
    )
    return captioning(model, task, corpus.training, test_size=corpus.test_size)


CORPORA = {
    "words": _words,
    "characters": lambda config: _words(config, "byte"),
    "handwriting": _handwriting,
    "translation": _translation,
    "captions": _captions,
}


def measure(config: Config, trained: Mapping[str, Trained], key: jax.Array) -> dict[str, float]:
    """Untrained numbers (gradients, clipping, baselines) and what is decoded on the host (BLEU, error rates)."""
    if config.task != "survey":
        return corpus_numbers(config, trained[config.task])
    keys = jax.random.split(key, 4)
    metrics: dict[str, float] = {}
    if "gradients" in config.problems:
        profiles = gradient_profiles(config.gradients, keys[0])
        metrics |= {f"gradient/{name}": float(jnp.exp(norms[-1])) for name, norms in profiles.items()}
    if "clipping" in config.problems:
        metrics |= clipping(config.clipping, keys[1])
    if "future" in config.problems:
        both_ways, causal = (trained[f"future_{name}"].metrics["accuracy"] for name in ("both_ways", "causal"))
        metrics["future/both_ways - causal"] = both_ways - causal
    if "reversal" in config.problems:
        reversal = trained["reversal"]
        batch = reversal.arm.task.batch(keys[2], config.sequences.sentences)
        counts = np.bincount(np.asarray(batch.targets)[np.asarray(batch.mask)])
        unigram = float(counts.max() / counts.sum())
        metrics["reversal/unigram_accuracy"] = unigram
        metrics["reversal/free_accuracy - unigram"] = reversal.metrics["free_accuracy"] - unigram
        metrics |= decoded(config, reversal, batch)
    if "strokes" in config.problems:
        metrics["strokes/label_error_rate"] = label_error_rate(trained["strokes"], config.sequences.sentences, keys[3])
    return metrics


def corpus_numbers(config: Config, trained: Trained) -> dict[str, float]:
    """Baselines and decoded numbers of a corpus, and by how much its aim is missed (negative: reached).

    Aims: words, a perplexity of 90; characters, the bits of an n-gram model; translation, a BLEU of 0.26 (Sutskever et
    al. 2014, single LSTM); the others, for which the survey has no comparable number, a finite loss.
    """
    metrics = {}
    if config.task in ("words", "characters"):
        metrics = ngram_baseline(trained.arm.task)
    elif config.task == "translation":
        metrics = decoded(config, trained, trained.arm.evaluation_data)
    missed = {
        "words": lambda: trained.metrics["perplexity"] - 90,
        "characters": lambda: trained.metrics["bits"] - metrics["n-gram/bits"],
        "translation": lambda: 0.26 - metrics["translation/bleu_beam"],
    }.get(config.task, lambda: 0.0 if np.isfinite(trained.metrics["loss"]) else np.inf)
    return {**metrics, "corpus/missed_by": float(missed())}


def clipping(sizes: Clipping, key: jax.Array) -> dict[str, float]:
    """Worst and last losses of SGD with and without clipping (infinite where a loss was not finite)."""
    metrics = {}
    for name, clip in (("unclipped", None), ("clipped", sizes.clip)):
        losses = np.nan_to_num(np.asarray(sgd_losses(sizes, clip, key)), nan=np.inf)
        metrics[f"clipping/{name}_worst_loss"] = float(losses.max())
        metrics[f"clipping/{name}_last_loss"] = float(losses[-1])
    return metrics


def label_error_rate(trained: Trained, count: int, key: jax.Array) -> float:
    """Edit distance per label between the best paths and the labels of ``count`` new sequences."""
    batch = trained.arm.task.batch(key, count)
    logits = jax.jit(trained.arm.model.apply)(trained.params, batch.inputs, batch.lengths)
    labels, sizes = ctc_best_path(logits, batch.lengths)
    said = [row[:size] for row, size in zip(np.asarray(labels).tolist(), np.asarray(sizes))]
    return error_rate(said, [[label for label in row if label] for row in np.asarray(batch.targets).tolist()])


def gradient_profiles(sizes: Gradients, key: jax.Array) -> dict[str, jax.Array]:
    """Log-norms [time] of the Jacobian of plain networks, and of the cell of LSTMs whose gates see only the input."""
    profiles = {
        f"{activation} x{scale:g}": norms
        for activation, by_scale in weight_sweep(key, scales=sizes.scales, dim=sizes.dim, time=sizes.time).items()
        for scale, norms in by_scale.items()
    }
    x = 1e-3 * jax.random.normal(key, (sizes.time, sizes.dim))
    cells = {"lstm 1997": {"forget_gate": False}, "lstm bias 1": {}, "lstm bias 4": {"forget_bias": 4.0}}
    for label, options in cells.items():
        params = zoo.create("lstm", dim=sizes.dim, **options).init(key, x[None])["params"]
        params = {"params": {**params, "recurrent_kernel": jnp.zeros_like(params["recurrent_kernel"])}}
        profiles[f"{label} cell"] = _cell_profile(options.get("forget_gate", True), params, x)
    return profiles


@functools.partial(jax.jit, static_argnums=0)
def _cell_profile(forget_gate, params, x):
    lstm = zoo.create("lstm", dim=x.shape[1], forget_gate=forget_gate)
    return jacobian_log_norms(mixer_step(lstm), params, x, lstm.initial_state(1), select=lambda state: state.cell)


@functools.partial(jax.jit, static_argnums=(0, 1))
def sgd_losses(sizes: Clipping, clip: float | None, key: jax.Array) -> jax.Array:
    """Losses of plain SGD on the adding problem, step by step, before each step."""
    task = Adding(sizes.time)
    model = SequenceClassifier(
        num_outputs=1,
        dim=sizes.dim,
        pooling="last",
        pattern=({"name": "elman", "recurrent_scale": sizes.scale},),
        **PLAIN,
    )
    optimizer = optax.chain(clip_gradients(norm=clip), optax.sgd(sizes.learning_rate))

    def loss(params, batch):
        return jnp.mean((model.apply(params, batch.inputs) - batch.targets) ** 2)

    def step(carry, key):
        params, state = carry
        value, grads = jax.value_and_grad(loss)(params, task.batch(key, sizes.batch_size))
        updates, state = optimizer.update(grads, state)
        return (optax.apply_updates(params, updates), state), value

    key_init, key_steps = jax.random.split(key)
    params = model.init(key_init, task.batch(key_steps, 1).inputs)
    return jax.lax.scan(step, (params, optimizer.init(params)), jax.random.split(key_steps, sizes.steps))[1]


def decoded(config: Config, trained: Trained, batch: Any) -> dict[str, float]:
    """BLEU of greedy and beam search on ``batch``, for the arm's model."""
    model, params = trained.arm.model, trained.params
    name = config.task if config.task != "survey" else "reversal"
    true = [[sentence(row)] for row in np.asarray(batch.targets)]
    said = np.asarray(jax.jit(lambda p, b: greedy(model, p, b))(params, batch))
    prompts = jnp.full((batch.inputs.shape[0], 1), START, jnp.int32)
    beams = zoo.beam_search(
        model, params, prompts, beam_size=config.sequences.beam_size, max_new_tokens=batch.targets.shape[1],
        stop_token=END, length_penalty=1.0, source=batch.inputs, source_lengths=batch.lengths,
    )  # fmt: skip
    return {
        f"{name}/bleu_greedy": bleu([sentence(row) for row in said], true),
        f"{name}/bleu_beam": bleu([sentence(row) for row in np.asarray(beams.tokens[:, 0])], true),
    }


def sentence(row: np.ndarray) -> list[int]:
    """Tokens up to the first END."""
    tokens = row.tolist()
    return tokens[: tokens.index(END)] if END in tokens else tokens


def ngram_baseline(task: TextStreams) -> dict[str, float]:
    """Perplexity of the longest n-gram model whose table has at most 2^24 entries, on the test split."""
    size = task.vocab_size
    order = next(n for n in (4, 3, 2, 1) if size**n <= 2**24)
    train, test = (
        jnp.asarray(np.asarray(dataclasses.replace(task, split=split).tokens().ids), jnp.int32)[None]
        for split in ("train", "test")
    )
    model, length = fit_ngram(train, size, order), min(1024, test.shape[1])
    pieces = [test[:, i : i + length] for i in range(0, test.shape[1] - length + 1, length)]
    nats = np.mean([ngram_entropy(model, piece) for piece in pieces])
    return {"n-gram/order": order, "n-gram/perplexity": float(np.exp(nats)), "n-gram/bits": float(nats / np.log(2))}


def figures(config: Config, trained: Mapping[str, Trained], metrics: Mapping[str, float]) -> dict[str, Any]:
    """How gradients vanish and explode; what clipping does."""
    if config.task != "survey" or not {"gradients", "clipping"} <= set(config.problems):
        return {}
    from matplotlib.figure import Figure

    del trained, metrics
    figure = Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    steps = np.arange(1, config.gradients.time + 1)
    colours = {"tanh": "C0", "sigmoid": "C1", "relu": "C2", "identity": "C3", "lstm": "C4"}
    styles = {f"x{scale:g}": style for scale, style in zip(config.gradients.scales, ("--", "-", ":", "-."))}
    for label, norms in gradient_profiles(config.gradients, jax.random.key(0)).items():
        kind, _, rest = label.partition(" ")
        style = styles.get(rest, {"1997 cell": "-", "bias 1 cell": "--", "bias 4 cell": ":"}.get(rest, "-"))
        left.plot(steps, np.asarray(norms) / np.log(10), style, color=colours[kind], label=label)
    left.set(xlabel="steps back in time", ylabel="log10 of the spectral norm of the Jacobian", title="Gradient flow")
    left.legend(fontsize=6, ncols=2)
    for label, clip in (("without", None), (f"clipped to {config.clipping.clip:g}", config.clipping.clip)):
        right.plot(np.asarray(sgd_losses(config.clipping, clip, jax.random.key(0))), label=label)
    right.set(xlabel="step", ylabel="mean squared error", yscale="log", title="Clipping, adding problem")
    right.axhline(1 / 6, color="0.6", lw=1, label="always answering 1")
    right.legend()
    return {"gradients.png": figure}


QUICK_CHECKS = (
    Check("a small recurrent matrix makes gradients vanish", "gradient/tanh x0.5", "<", 1e-8),
    Check("an orthogonal one keeps them (not too small)", "gradient/tanh x1", ">=", 1e-3),
    Check("an orthogonal one keeps them (not too large)", "gradient/tanh x1", "<=", 10.0),
    Check("a large one makes them explode", "gradient/identity x2", ">", 1e8),
    Check("the cell of 1997 carries them unchanged", "gradient/lstm 1997 cell", "==", 1.0),
    Check("the LSTM recalls over 40 steps", "recall_lstm/accuracy", ">=", 0.9),
    Check("the tanh network does not", "recall_tanh/accuracy", "<=", 0.4),
    Check("future context helps labelling", "future/both_ways - causal", ">=", 0.3),
    Check("sequence to sequence reverses, free-running", "reversal/free_accuracy", ">=", 0.7),
    Check("far above a unigram model", "reversal/free_accuracy - unigram", ">=", 0.4),
    Check("a bidirectional LSTM labels unsegmented strokes", "strokes/exact", ">=", 0.9),
    Check("an LSTM says what is in a picture", "captions/free_exact", ">=", 0.7),
    Check("with clipping the loss stays finite", "clipping/clipped_worst_loss", "finite"),
)

_SHORT = {"steps": 4, "batch_size": 8, "steps_per_call": 2}
SMOKE = Config(
    problems=("gradients", "reversal"),
    gradients=Gradients(dim=4, time=6),
    recall=Recall(time=6, dim=8, window=2, training=dataclasses.replace(ADAM, **_SHORT)),
    future=Future(time=8, dim=8, training=dataclasses.replace(ADAM, **_SHORT)),
    sequences=Sequences(
        dim=8, label_dim=8, sentences=8, beam_size=2, reversal=dataclasses.replace(ADAM, **_SHORT),
        strokes=dataclasses.replace(ADAM, **_SHORT), captions=dataclasses.replace(ADAM, **_SHORT),
    ),
    clipping=Clipping(time=6, dim=4, steps=4, batch_size=4),
)  # fmt: skip

register(
    Experiment(
        name="critical_review",
        paper="Lipton, Berkowitz, Elkan 2015, A Critical Review of Recurrent Neural Networks for Sequence Learning",
        claim=(
            "Gradients through plain recurrent networks vanish or explode; LSTMs and bidirectional networks work where "
            "those fail, and clipping makes training practical."
        ),
        presets={"smoke": SMOKE, "quick": Config(), "paper": Config(task="words")},
        arms=arms,
        measure=measure,
        figures=figures,
        stand_in=stand_in,
        notes=(
            "Recurrent layers stand in residual blocks (x + layer(x)) here, without normalisation. Recall: forget and "
            "update gates start open (bias 4); the LSTM of 1997 has no forget gate and needs no bias; the window of the "
            "MLP is too short by construction. Future context: one bidirectional layer under a linear head cannot "
            "compute an exclusive or across the directions, since its logits are a sum of what each direction knows; "
            "with such a head both arms stayed at .50. Both arms therefore have an MLP above the recurrent layer. "
            "Clipping: without it the loss is expected to leave the finite numbers (an infinite worst loss in the "
            "table); with it the loss stays finite, though at this learning rate it does not fall below that of always "
            "answering 1. Paper preset: the published schedules of stepwise decay are replaced by linear ones; plain SGD "
            "minimises the sum over a segment, as those recipes do; translation shares one sub-word vocabulary between "
            "both languages."
        ),
        checks={
            "quick": QUICK_CHECKS,
            "paper": (Check("reaches the aim of its corpus", "corpus/missed_by", "<=", 0.0),),
        },
    )
)
