"""The compiled training step: data-parallel, several optimiser steps per call, data made on the device.

Everything here is a pure function of an ``Arm``; nothing is run. The trainer calls what ``compile_step`` returns, and
the preflight lowers the same function for hardware that is not there, from ``abstract_arguments``.

Randomness. A seed gives one key each for parameters, training data, dropout, evaluation and measurements (``keys``).
Row i of step n's global batch is made from ``split(fold_in(data key, n), batch_size)[i]``, wherever it is made, so any
number of devices sees the same batches, and step n can be made again from (seed, n) alone. All arms of a run share
the keys: arms with equal batch sizes see the same examples.

Layout. The state is replicated: every leaf has a leading axis of local devices, as ``jax.pmap`` wants it. Only
``carry`` differs between devices, by rows, and with ``Training.shard_optimizer`` the optimiser's state: what belongs
to a parameter is split along that parameter's first axis that the number of devices divides, if it has one. Gradients
are then summed straight into the parts (reduce-scatter), each device updates its parts of the parameters, and these
are gathered. ``state_axes`` says which leaf is split where.

A step whose loss or gradient is not finite is not taken: from there on the state is frozen as it was before that step,
and the summary says which step and which parameter. This costs a select that fuses into the update, and no
synchronisation with the host.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax import lax

from experiments.experiment import Arm, Training
from experiments.optimizers import learning_rate, optimizer
from zoo.tasks import HostTask

AXIS = "devices"


@flax.struct.dataclass
class TrainState:
    """What training changes.

    Attributes:
      step: int32, optimiser steps taken.
      params: parameters.
      opt_state: optax state.
      ema: moving average of ``params``, or None.
      carry: what ``Arm.loss`` carries between steps (this device's rows), or None.
      bad_step: int32, the step whose loss or gradient was not finite, or -1.
      bad_leaf: int32, index of the first parameter leaf with a non-finite gradient at ``bad_step``, or -1.
    """

    step: Any
    params: Any
    opt_state: Any
    ema: Any
    carry: Any
    bad_step: Any
    bad_leaf: Any


@flax.struct.dataclass
class Inputs:
    """What a call of the step reads besides the state.

    Attributes:
      keys: key data (uint32) of the "data" and "dropout" keys.
      data: arrays of ``Task.data``, or None.
      rows: for a ``HostTask`` the rows of this device, [steps per call, rows, ...], else None.
    """

    keys: Any
    data: Any
    rows: Any = None


@flax.struct.dataclass
class Summary:
    """What a call reports, replicated: means over its steps, the last learning rate, and the state's ``bad_*``."""

    metrics: Any
    bad_step: Any
    bad_leaf: Any
    bad_loss: Any


@functools.partial(jax.jit, static_argnums=0)
def keys(seed: int) -> dict[str, jax.Array]:
    """The keys of a run by purpose: init, data, dropout, evaluation, measure."""
    names = ("init", "data", "dropout", "evaluation", "measure")
    return dict(zip(names, jax.random.split(jax.random.key(seed), len(names))))


def step_keys(seed: int) -> dict[str, jax.Array]:
    """Key data of the keys that the step reads."""
    every = keys(seed)
    return {name: jax.random.key_data(every[name]) for name in ("data", "dropout")}


def call_length(training: Training) -> int:
    """Optimiser steps in one compiled call: at most ``steps_per_call``, in equal calls between two stops.

    A call that must end early (at an evaluation, a checkpoint, the last step) freezes its remaining steps, so that one
    compiled program serves all calls; spreading the steps evenly keeps that waste below one step per call.
    """
    stops = [training.steps, training.evaluate_every, training.checkpoint_every]
    span = max(1, min(s for s in stops if s is not None))
    calls = math.ceil(span / training.steps_per_call)
    return math.ceil(span / calls)


def initial_state(arm: Arm, seed: int, num_devices: int, data: Any) -> TrainState:
    """State before the first step, of one device, without the leading device axis. Trace it or jit it.

    ``data`` is ``arm.task.data()``, or for a ``HostTask`` one row of step 0.
    """
    run_keys = keys(seed)
    if isinstance(arm.task, HostTask):
        batch = data
    else:
        row_keys = jax.random.split(jax.random.fold_in(run_keys["data"], 0), arm.training.batch_size)
        batch = arm.task.rows(row_keys[:1], data)
    params = arm.init(run_keys["init"], batch)
    return TrainState(
        step=jnp.int32(0),
        params=params,
        opt_state=optimizer(arm.training).init(params),
        ema=None if arm.training.ema is None else params,
        carry=None if arm.carry is None else arm.carry(arm.training.batch_size // num_devices),
        bad_step=jnp.int32(-1),
        bad_leaf=jnp.int32(-1),
    )


def state_axes(arm: Arm, state: TrainState, num_devices: int) -> TrainState:
    """The axis of every leaf that is split over the devices, -1 where each device has the whole.

    ``state`` is that of ``initial_state``, or its shapes. Its ``carry``, already one device's rows, is split along 0.
    """
    axes = jax.tree.map(lambda _: -1, state)
    axes = axes.replace(carry=jax.tree.map(lambda _: 0, state.carry))
    if not arm.training.shard_optimizer:
        return axes
    of_parameters = jax.tree.map(lambda p: split_axis(p.shape, num_devices), state.params)
    transform = optimizer(arm.training)
    opt_state = optax.tree_utils.tree_map_params(
        transform, lambda _, axis: axis, state.opt_state, of_parameters, transform_non_params=lambda _: -1
    )
    return axes.replace(opt_state=opt_state)


def split_axis(shape: Sequence[int], num_devices: int) -> int:
    """The first axis that ``num_devices`` divides, or -1."""
    return next((axis for axis, size in enumerate(shape) if size and size % num_devices == 0), -1)


def training_step(arm: Arm, num_devices: int) -> Callable[[TrainState, jax.Array, Inputs], tuple[TrainState, Summary]]:
    """The function that every device runs: ``call(state, count, inputs) -> (state, summary)``.

    It takes ``count`` optimiser steps, at most ``call_length(arm.training)``, inside one ``lax.scan``, and must run
    under a mapped axis called ``AXIS`` of ``num_devices`` devices.
    """
    training = arm.training
    rate = learning_rate(training)
    length = call_length(training)
    rows_per_device = training.batch_size // num_devices

    def batch_of(step, inputs, host_rows):
        if host_rows is not None:
            return host_rows
        row_keys = jax.random.split(
            jax.random.fold_in(jax.random.wrap_key_data(inputs.keys["data"]), step), training.batch_size
        )
        if num_devices > 1:
            row_keys = lax.dynamic_slice_in_dim(row_keys, lax.axis_index(AXIS) * rows_per_device, rows_per_device)
        return arm.task.rows(row_keys, inputs.data)

    def loss_of(*arguments):
        loss, (metrics, carry, *renewed) = arm.loss(*arguments)
        return loss, (dict(metrics), carry, dict(renewed[0]) if arm.mutable else {})

    def gradients(params, batch, key, step, carry):
        """Mean over the micro-batches of (loss, metrics, renewed collections, gradients), and the new carry."""
        differentiate = jax.value_and_grad(loss_of, has_aux=True)
        if training.accumulate == 1:
            (loss, (metrics, carry, renewed)), grads = differentiate(params, batch, key, step, carry)
            return loss, metrics, renewed, grads, carry

        def split(x):
            return x.reshape(training.accumulate, -1, *x.shape[1:])

        def micro(total, xs):
            index, batch, carry = xs
            (loss, (metrics, carry, renewed)), grads = differentiate(
                params, batch, jax.random.fold_in(key, index), step, carry
            )
            return jax.tree.map(jnp.add, total, (loss, metrics, renewed, grads)), carry

        xs = (jnp.arange(training.accumulate), *jax.tree.map(split, (batch, carry)))
        shapes = jax.eval_shape(
            lambda x: differentiate(params, x[1], key, step, x[2]), jax.tree.map(lambda x: x[0], xs)
        )
        (loss, (metrics, _, renewed)), grads = shapes
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (loss, metrics, renewed, grads))
        total, carry = lax.scan(micro, zeros, xs)
        mean = jax.tree.map(lambda x: x / training.accumulate, total)
        return *mean, jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), carry)

    def one_step(state, xs, count, inputs):
        index, host_rows = xs
        key = jax.random.fold_in(jax.random.wrap_key_data(inputs.keys["dropout"]), state.step)
        key = jax.random.fold_in(key, lax.axis_index(AXIS))
        batch = batch_of(state.step, inputs, host_rows)
        loss, metrics, renewed, grads, carry = gradients(state.params, batch, key, state.step, state.carry)
        metrics = {"loss": loss, **metrics}
        metrics = {name: jnp.asarray(value, jnp.float32) for name, value in metrics.items()}
        metrics = lax.pmean(metrics, AXIS)
        parts = _Parts(state.params, num_devices if training.shard_optimizer else None)
        grads = parts.mean(grads)
        grads = jax.tree.map(lambda g: g.conj() if jnp.iscomplexobj(g) else g, grads)  # the direction of ascent
        squares = parts.squares(grads)
        norm = jnp.sqrt(sum(squares))
        finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(norm)

        transform = optimizer(
            training, (lambda g: jnp.sqrt(sum(parts.squares(g)))) if training.shard_optimizer else None
        )
        own = parts.own(state.params)
        updates, opt_state = transform.update(grads, state.opt_state, own)
        params = parts.whole(optax.apply_updates(own, updates))
        if arm.mutable:
            params = {**params, **lax.pmean(renewed, AXIS)}
        ema = state.ema
        if training.ema is not None:
            # early steps average over the steps there are, not over the initial parameters
            decay = jnp.minimum(training.ema, (1.0 + state.step) / (10.0 + state.step))
            ema = jax.tree.map(lambda e, p: (decay * e + (1 - decay) * p).astype(e.dtype), state.ema, params)

        active = (index < count) & (state.bad_step < 0)
        failed = active & ~finite
        bad = ~jnp.isfinite(jnp.stack(squares))
        new = state.replace(step=state.step + 1, params=params, opt_state=opt_state, ema=ema, carry=carry)
        new = jax.tree.map(lambda new, old: jnp.where(active & finite, new, old), new, state)
        new = new.replace(
            bad_step=jnp.where(failed, state.step, state.bad_step),
            bad_leaf=jnp.where(failed, jnp.where(bad.any(), jnp.argmax(bad).astype(jnp.int32), -1), state.bad_leaf),
        )
        return new, (active, failed, {**metrics, "grad_norm": norm})

    def call(state, count, inputs):
        state, (active, failed, metrics) = lax.scan(
            lambda state, xs: one_step(state, xs, count, inputs), state, (jnp.arange(length), inputs.rows)
        )
        taken = jnp.maximum(jnp.sum(active), 1)
        means = {name: jnp.sum(jnp.where(active, value, 0)) / taken for name, value in metrics.items()}
        means["learning_rate"] = jnp.asarray(rate(state.step - 1), jnp.float32)
        bad_loss = jnp.sum(jnp.where(failed, metrics["loss"], 0))
        return state, Summary(means, state.bad_step, state.bad_leaf, bad_loss)

    return call


class _Parts:
    """Trees of the parameters' structure, split over the devices as ``state_axes`` says; whole where ``devices`` is None."""

    def __init__(self, params: Any, devices: int | None):
        self.devices = devices
        self.axes = jax.tree.map(lambda p: -1 if devices is None else split_axis(p.shape, devices), params)

    def mean(self, grads: Any) -> Any:
        """This device's parts of the mean over the devices."""

        def one(g, axis):
            if axis < 0:
                return lax.pmean(g, AXIS)
            return lax.psum_scatter(g, AXIS, scatter_dimension=axis, tiled=True) / self.devices

        return jax.tree.map(one, grads, self.axes)

    def own(self, params: Any) -> Any:
        """This device's parts of what every device has."""

        def one(p, axis):
            if axis < 0:
                return p
            size = p.shape[axis] // self.devices
            return lax.dynamic_slice_in_dim(p, lax.axis_index(AXIS) * size, size, axis)

        return jax.tree.map(one, params, self.axes)

    def whole(self, params: Any) -> Any:
        """The parts of all devices put together."""
        return jax.tree.map(
            lambda p, axis: p if axis < 0 else lax.all_gather(p, AXIS, axis=axis, tiled=True), params, self.axes
        )

    def squares(self, grads: Any) -> list[jax.Array]:
        """Sum of squares of every leaf, all parts of it."""

        def one(g, axis):
            own = jnp.sum((g * g.conj()).real).astype(jnp.float32)
            return own if axis < 0 else lax.psum(own, AXIS)

        return jax.tree.leaves(jax.tree.map(one, grads, self.axes))


def compile_step(arm: Arm, devices: Sequence[jax.Device]) -> Callable:
    """``training_step`` under ``jax.pmap`` over ``devices`` (those of all hosts); the state's buffers are donated."""
    return jax.pmap(training_step(arm, len(devices)), axis_name=AXIS, devices=list(devices), donate_argnums=(0,))


def abstract_arguments(arm: Arm, num_devices: int, num_local_devices: int | None = None, seed: int = 0) -> tuple:
    """Shapes and dtypes of the arguments of ``compile_step``'s function: (state, count, inputs).

    Args:
      arm: what would be trained.
      num_devices: devices of all hosts.
      num_local_devices: devices of one host, the leading axis of every argument; None: ``num_devices``.
      seed: any; shapes do not depend on it.
    """
    local = num_devices if num_local_devices is None else num_local_devices
    length = call_length(arm.training)
    data, rows = None, None
    if isinstance(arm.task, HostTask):
        data = arm.task.read(seed, 0, range(0, 1), arm.training.batch_size)
        per_device = arm.training.batch_size // num_devices
        rows = jax.tree.map(lambda x: jax.ShapeDtypeStruct((length, per_device, *x.shape[1:]), x.dtype), data)
    else:
        data = arm.task.data()
    state = jax.eval_shape(lambda d: initial_state(arm, seed, num_devices, d), data)

    def part(x, axis):
        shape = [size // num_devices if i == axis else size for i, size in enumerate(x.shape)]
        return jax.ShapeDtypeStruct(shape, x.dtype)

    axes = state_axes(arm, state, num_devices)
    state = jax.tree.map(part, state.replace(carry=None), axes.replace(carry=None)).replace(carry=state.carry)
    inputs = Inputs(jax.eval_shape(lambda: step_keys(seed)), None if rows is not None else data, rows)
    arguments = (state, jax.ShapeDtypeStruct((), jnp.int32), inputs)
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((local, *x.shape), jax.dtypes.canonicalize_dtype(x.dtype)), arguments
    )
