"""Arms of the survey: translation, unsegmented labelling, captioning, and language models with a carried state."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.experiment import Arm, Training
from zoo.decoding import ctc_best_path
from zoo.layers import accuracy, batch_axes, cross_entropy, ctc_loss, rows_back, rows_first
from zoo.models import Captioner, EncoderDecoder, LanguageModel, SequenceClassifier
from zoo.tasks import Batch, HostTask, Task, TextStreams
from zoo.tasks.byte_text import streams
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
