"""Arms for the usual cases, so that a paper's file only says what is its own."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.experiment import Arm, Training
from zoo.layers import accuracy, cross_entropy
from zoo.tasks import Batch, HostTask, IndexedTask, Task


def supervised(
    model: Any,
    task: Task | HostTask,
    training: Training,
    *,
    forward: Callable[..., jax.Array],
    objective: Callable[[jax.Array, Batch], tuple[jax.Array, dict[str, jax.Array]]],
    test: Task | None = None,
    test_size: int = 1000,
) -> Arm:
    """An arm that minimises ``objective(outputs, batch) -> (loss, metrics)`` on ``outputs = forward(params, batch, ...)``.

    Args:
      model: Flax module; ``forward(params, batch, deterministic=..., rngs=...)`` must call it.
      task: training examples.
      training: see ``Training``.
      forward: runs the model on a batch. Where the model has norm="batch", it is also called with ``mutable=``, to hand
        on to ``model.apply``, and then returns (outputs, renewed collections).
      objective: loss and metrics, means over the batch.
      test: task of the final evaluation; None takes ``task`` (fresh examples). A ``HostTask`` cannot be read from a compiled
        evaluation: the arm then wants an ``evaluate`` and ``evaluation_data`` of the caller's (``dataclasses.replace``).
      test_size: examples in the evaluation.
    """
    test = task if test is None else test

    def init(key, batch):
        return model.init(key, *model_inputs(batch))

    mutable = renewed_collections(model)

    def loss(params, batch, key, step, carry):
        outputs, *renewed = _in_training(forward, mutable, params, batch, key)
        value, metrics = objective(outputs, batch)
        return value, (metrics, carry, *renewed)

    def evaluate(params, key, data):
        batch = test.batch(key, test_size, data)
        value, metrics = objective(forward(params, batch, deterministic=True, rngs=None), batch)
        return {"loss": value, **metrics}

    data = test.data() if isinstance(test, Task) else None
    return Arm(init, loss, task, training, evaluate, evaluation_data=data, model=model, mutable=mutable)


def renewed_collections(model: Any) -> tuple[str, ...]:
    """``Arm.mutable`` of a model: running statistics, where it or its encoder has norm="batch"."""
    encoder = getattr(model, "encoder", None)
    norms = (getattr(model, "norm", None), encoder.get("norm") if isinstance(encoder, Mapping) else None)
    return ("batch_stats",) if "batch" in norms else ()


def _in_training(forward: Callable[..., Any], mutable: tuple[str, ...], params: Any, batch: Batch, key: Any) -> tuple:
    """(outputs,) of a call with dropout, or (outputs, renewed collections)."""
    options = {"deterministic": False, "rngs": {"dropout": key}}
    return forward(params, batch, **options, mutable=list(mutable)) if mutable else (forward(params, batch, **options),)


def model_inputs(batch: Batch) -> tuple:
    """Positional inputs of a classifier: ``(inputs,)`` or ``(inputs, lengths)``."""
    return (batch.inputs,) if batch.lengths is None else (batch.inputs, batch.lengths)


def classification(
    model: Any, task: Task, training: Training, *, test: Task | None = None, test_size: int = 1000
) -> Arm:
    """Cross-entropy of a ``SequenceClassifier`` (one label per row, or per step with ``pooling="none"``).

    Metrics: ``loss`` in nats, ``accuracy``.
    """

    def forward(params, batch, **options):
        return model.apply(params, *model_inputs(batch), **options)

    def objective(logits, batch):
        return cross_entropy(logits, batch.targets, batch.mask), {
            "accuracy": accuracy(logits, batch.targets, batch.mask)
        }

    return supervised(model, task, training, forward=forward, objective=objective, test=test, test_size=test_size)


def language_modelling(
    model: Any, task: Task, training: Training, *, test: Task | None = None, test_size: int = 256
) -> Arm:
    """Next-token cross-entropy of a ``LanguageModel``: ``inputs`` [T] tokens, ``targets`` the tokens that follow.

    Metrics: ``loss`` in nats, ``accuracy``, ``bits`` per token.
    """

    def forward(params, batch, **options):
        return model.apply(params, batch.inputs, **options)[0]

    def objective(logits, batch):
        value = cross_entropy(logits, batch.targets, batch.mask)
        hits = accuracy(logits, batch.targets, batch.mask)
        return value, {"accuracy": hits, "bits": value / jnp.log(2.0)}

    return supervised(model, task, training, forward=forward, objective=objective, test=test, test_size=test_size)


def classification_of_files(
    model: Any,
    task: IndexedTask,
    training: Training,
    *,
    test: IndexedTask,
    test_size: int | None = None,
    chunk: int = 50,
) -> Arm:
    """As ``classification``, for examples in files; evaluated on every example of ``test``, or on ``test_size`` of them.

    Args:
      model: maps ``inputs`` (and ``lengths``) to one row of logits.
      task: training examples.
      training: see ``Training``.
      test: examples of the evaluation; these are kept on the device.
      test_size: how many of them, drawn once for all; None: all.
      chunk: examples classified at once.
    """

    def init(key, batch):
        return model.init(key, *model_inputs(batch))

    def forward(params, batch, **options):
        return model.apply(params, *model_inputs(batch), **options)

    mutable = renewed_collections(model)

    def loss(params, batch, key, step, carry):
        logits, *renewed = _in_training(forward, mutable, params, batch, key)
        metrics = {"accuracy": accuracy(logits, batch.targets)}
        return cross_entropy(logits, batch.targets), (metrics, carry, *renewed)

    def evaluate(params, key, batch):
        count = len(batch.targets)
        size = min(chunk, count)
        places = jnp.arange(-(-count // size) * size).reshape(-1, size)

        def one(places):
            part = jax.tree.map(lambda x: x[jnp.minimum(places, count - 1)], batch)
            logits = model.apply(params, *model_inputs(part))
            losses = -jnp.take_along_axis(jax.nn.log_softmax(logits), part.targets[:, None], axis=1)[:, 0]
            valid = places < count
            hits = jnp.argmax(logits, axis=1) == part.targets
            return jnp.sum(jnp.where(valid, losses, 0)), jnp.sum(valid & hits)

        losses, hits = jax.lax.map(one, places)
        return {"loss": jnp.sum(losses) / count, "accuracy": jnp.sum(hits) / count}

    chosen = np.random.default_rng(0).permutation(test.count)[:test_size]
    held_out = jax.tree.map(jnp.asarray, test.rows_at(chosen))
    return Arm(init, loss, task, training, evaluate, evaluation_data=held_out, model=model, mutable=mutable)
