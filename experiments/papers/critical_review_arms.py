"""Arms of the survey (translation, unsegmented labelling, captioning, language models with a carried state), and what is
measured on them.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.experiment import Arm, Trained, Training
from experiments.optimizers import optimizer
from zoo.decoding import ctc_best_path
from zoo.layers import accuracy, batch_axes, cross_entropy, ctc_loss, rows_back, rows_first
from zoo.models import Captioner, EncoderDecoder, LanguageModel, SequenceClassifier, fit_ngram, ngram_entropy
from zoo.tasks import Batch, HostTask, Task, TextStreams, error_rate
from zoo.tasks.byte_text import streams
from zoo.tasks.reversal import END
from zoo.training import free_running, scheduled_sampling, truth_probability

START = 0  # fed before the first target


def shifted(targets: jax.Array) -> jax.Array:
    """What a teacher feeds: START, then all targets but the last."""
    return jnp.pad(targets, ((0, 0), (1, 0)), constant_values=START)[:, :-1]


def translation(
    model: EncoderDecoder,
    task: Task | HostTask,
    training: Training,
    *,
    test: Task | Batch | None = None,
    test_size: int = 500,
    sampling_rate: float | None = None,
) -> Arm:
    """Encoder-decoder under teacher forcing, evaluated under teacher forcing and free-running.

    Metrics: ``loss`` in nats per token and ``accuracy`` under teacher forcing; ``free_accuracy``, the share of target
    tokens that the greedy, free-running decoder says at their place, and ``free_exact``, of whole targets.

    Args:
      model: what is trained.
      task: makes ``inputs``, ``lengths``, ``targets`` and ``mask``.
      training: how.
      test: other task for the evaluation, or the evaluation's batch itself.
      test_size: rows drawn from a task.
      sampling_rate: scheduled sampling: the truth is fed with probability k / (k + exp(step / k)) (Bengio et al. 2015);
        None: always.
    """

    def init(key, batch):
        return model.init(key, batch.inputs, batch.targets, batch.lengths)

    def decode(params, tokens, state):
        return model.apply(params, tokens, state, method="decode")

    def loss(params, batch, key, step, carry):
        rngs = {"dropout": key}
        if sampling_rate is None:
            logits = model.apply(
                params, batch.inputs, shifted(batch.targets), batch.lengths, deterministic=False, rngs=rngs
            )
        else:
            # Without dropout: the decoder runs token by token here.
            state = model.apply(params, batch.inputs, batch.lengths, method="encode")
            start = jnp.full(batch.targets.shape[:1], START, batch.targets.dtype)
            truth = truth_probability(step, "inverse_sigmoid", rate=sampling_rate)
            logits, _ = scheduled_sampling(decode, params, start, batch.targets, state, truth=truth, key=key)
        value = cross_entropy(logits, batch.targets, batch.mask)
        return value, ({"accuracy": accuracy(logits, batch.targets, batch.mask)}, carry)

    def evaluate(params, key, data):
        batch = data if isinstance(data, Batch) else (task if test is None else test).batch(key, test_size, data)
        logits = model.apply(params, batch.inputs, shifted(batch.targets), batch.lengths)
        said = greedy(model, params, batch)
        hit = said == batch.targets
        return {
            "loss": cross_entropy(logits, batch.targets, batch.mask),
            "accuracy": accuracy(logits, batch.targets, batch.mask),
            "free_accuracy": jnp.sum(hit & batch.mask) / jnp.sum(batch.mask),
            "free_exact": jnp.mean(jnp.all(hit | ~batch.mask, axis=1)),
        }

    return Arm(init, loss, task, training, evaluate, evaluation_data=_held_out(task, test), model=model)


def greedy(model: EncoderDecoder, params: Any, batch: Batch) -> jax.Array:
    """What the free-running decoder says, as many tokens as ``batch.targets`` has; it does not stop at END."""
    state = model.apply(params, batch.inputs, batch.lengths, method="encode")
    start = jnp.full(batch.targets.shape[:1], START, batch.targets.dtype)

    def decode(params, tokens, state):
        return model.apply(params, tokens, state, method="decode")

    return free_running(decode, params, start, batch.targets, state)[1]


def _held_out(task, test):
    """Evaluation data: the batch itself, or what the task reads."""
    if isinstance(test, Batch):
        return jax.tree.map(jnp.asarray, test)
    return (task if test is None else test).data()


def unsegmented(
    model: SequenceClassifier, task: Task, training: Training, *, test: Task | None = None, test_size: int = 500
) -> Arm:
    """CTC on a frame classifier whose class 0 is the blank.

    Metrics: ``loss`` in nats per sequence; ``exact``, the share of sequences whose best path spells their labels.
    """
    test = task if test is None else test

    def init(key, batch):
        return model.init(key, batch.inputs, batch.lengths)

    def objective(params, batch, **how):
        logits = model.apply(params, batch.inputs, batch.lengths, **how)
        return jnp.mean(ctc_loss(logits, batch.lengths, batch.targets, jnp.sum(batch.mask, axis=1))), logits

    def loss(params, batch, key, step, carry):
        value, _ = objective(params, batch, deterministic=False, rngs={"dropout": key})
        return value, ({}, carry)

    def evaluate(params, key, data):
        batch = test.batch(key, test_size, data)
        value, logits = objective(params, batch)
        labels, counts = ctc_best_path(logits, batch.lengths)
        size = batch.targets.shape[1]
        right = jnp.all(labels[:, :size] == batch.targets, axis=1) & (counts == jnp.sum(batch.mask, axis=1))
        return {"loss": value, "exact": jnp.mean(right)}

    return Arm(init, loss, task, training, evaluate, evaluation_data=test.data(), model=model)


def captioning(
    model: Captioner, task: Task, training: Training, *, test: Task | None = None, test_size: int = 500
) -> Arm:
    """Captions under teacher forcing.

    Metrics: ``loss`` in nats per word, ``perplexity``, ``free_exact``: captions that the greedy decoder says word for
    word.
    """
    test = task if test is None else test

    def init(key, batch):
        return model.init(key, batch.inputs, batch.targets)

    def objective(params, batch, **how):
        logits = model.apply(params, batch.inputs, shifted(batch.targets), **how)
        return cross_entropy(logits, batch.targets, batch.mask)

    def loss(params, batch, key, step, carry):
        return objective(params, batch, deterministic=False, rngs={"dropout": key}), ({}, carry)

    def evaluate(params, key, data):
        batch = test.batch(key, test_size, data)
        value = objective(params, batch)
        mask = jnp.ones_like(batch.targets, bool) if batch.mask is None else batch.mask
        state = model.apply(params, batch.inputs, method="encode")
        start = jnp.full(batch.targets.shape[:1], START, batch.targets.dtype)

        def decode(params, tokens, state):
            return model.apply(params, tokens, state, method="decode")

        said = free_running(decode, params, start, batch.targets, state)[1]
        exact = jnp.mean(jnp.all((said == batch.targets) | ~mask, axis=1))
        return {"loss": value, "perplexity": jnp.exp(value), "free_exact": exact}

    return Arm(init, loss, task, training, evaluate, evaluation_data=test.data(), model=model)


def streaming(
    model: LanguageModel,
    task: TextStreams,
    training: Training,
    *,
    test: TextStreams,
    rows: int = 10,
    sum_time: bool = False,
) -> Arm:
    """Language model by truncated backpropagation: the state is carried from step to step, the gradient is not.

    Metrics per token: ``nats`` (training), ``loss`` in nats, ``perplexity`` and ``bits`` of the whole test split, read as
    ``rows`` streams with carried state.

    Args:
      model: what is trained.
      task: the training split.
      training: how.
      test: the split of the evaluation.
      rows: streams of the evaluation.
      sum_time: minimise the sum over the steps of a segment instead of their mean, which is what the learning rates
        and clipping bounds of plain SGD recipes are made for.
    """
    axes = batch_axes(model.initial_state)
    scale = task.time if sum_time else 1

    def init(key, batch):
        return model.init(key, batch.inputs)

    def carry(size):
        return rows_first(model.initial_state(size), axes)

    def loss(params, batch, key, step, carry):
        logits, state = model.apply(
            params, batch.inputs, rows_back(carry, axes), reset=batch.extra, deterministic=False, rngs={"dropout": key}
        )
        nats = cross_entropy(logits, batch.targets)
        return scale * nats, ({"nats": nats}, rows_first(state, axes))

    def evaluate(params, key, data):
        segments = jnp.moveaxis(data[:, :-1].reshape(rows, -1, task.time), 1, 0)
        targets = jnp.moveaxis(data[:, 1:].reshape(rows, -1, task.time), 1, 0)

        def step(state, xs):
            logits, state = model.apply(params, xs[0].astype(jnp.int32), state)
            return state, cross_entropy(logits, xs[1].astype(jnp.int32))

        nats = jnp.mean(jax.lax.scan(step, model.initial_state(rows), (segments, targets))[1])
        return {"loss": nats, "perplexity": jnp.exp(nats), "bits": nats / jnp.log(2.0)}

    held_out = streams(np.asarray(test.tokens().ids), rows, task.time)
    return Arm(init, loss, task, training, evaluate, evaluation_data=jnp.asarray(held_out), carry=carry, model=model)


def repeated_accuracy(arm: Arm, repeats: int, key: jax.Array) -> np.ndarray:
    """Accuracies [repeats] of an arm trained from as many initialisations on as many streams of data, side by side."""
    training = arm.training
    update = optimizer(training).update

    def train(key):
        key_init, key_data, key_test = jax.random.split(key, 3)

        def step(carry, inputs):
            params, state = carry
            index, key = inputs
            batch = arm.task.batch(key, training.batch_size)
            grads = jax.grad(arm.loss, has_aux=True)(params, batch, key, index, None)[0]
            updates, state = update(grads, state, params)
            return (optax.apply_updates(params, updates), state), None

        params = arm.init(key_init, arm.task.batch(key_data, 1))
        steps = (jnp.arange(training.steps), jax.random.split(key_data, training.steps))
        (params, _), _ = jax.lax.scan(step, (params, optimizer(training).init(params)), steps)
        return arm.evaluate(params, key_test, arm.evaluation_data)["accuracy"]

    return np.asarray(jax.jit(jax.vmap(train))(jax.random.split(key, repeats)))


def label_error_rate(trained: Trained, count: int, key: jax.Array) -> float:
    """Edit distance per label between the best paths and the labels of ``count`` new sequences."""
    batch = trained.arm.task.batch(key, count)
    logits = jax.jit(trained.arm.model.apply)(trained.params, batch.inputs, batch.lengths)
    labels, sizes = ctc_best_path(logits, batch.lengths)
    said = [row[:size] for row, size in zip(np.asarray(labels).tolist(), np.asarray(sizes))]
    return error_rate(said, [[label for label in row if label] for row in np.asarray(batch.targets).tolist()])


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
