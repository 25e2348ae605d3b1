"""Trains one arm: feeds the compiled step, logs, evaluates, saves.

The host never waits for a step. It dispatches a call of many steps, and reads the summary of a call only after the next
one is on its way. It waits only to evaluate, to save and at the end.
"""

import dataclasses
import pathlib
import signal
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from experiments.checkpoints import Checkpoints
from experiments.errors import RunError, Stopped, StopRequest
from experiments.experiment import Arm, Trained
from experiments.logs import RunLog
from experiments.optimizers import parameter_path
from experiments.progress import Progress
from experiments.steps import (
    AXIS,
    Inputs,
    Summary,
    TrainState,
    call_length,
    compile_step,
    initial_state,
    keys,
    state_axes,
    step_keys,
)
from zoo.tasks import HostTask


@dataclasses.dataclass(frozen=True)
class Session:
    """What the arms of a run share.

    Attributes:
      seed: of the run.
      devices: of all hosts.
      workdir: the run's folder.
      fingerprint: of the run's configuration.
      log: rows go here.
      stop: signals arrive here.
      progress: whether to print.
      say: prints a message.
    """

    seed: int
    devices: tuple[jax.Device, ...]
    workdir: pathlib.Path
    fingerprint: str
    log: RunLog
    stop: StopRequest
    progress: bool
    say: Callable[[str], None]

    @property
    def local_devices(self) -> list[jax.Device]:
        return [d for d in self.devices if d.process_index == jax.process_index()]

    def checkpoints(self, arm: str) -> Checkpoints:
        """Where the checkpoints of ``arm`` lie."""
        return Checkpoints(
            self.workdir / "checkpoints" / arm, f"{self.fingerprint}/{arm}", say=lambda m: self.say(f"{arm}: {m}")
        )


def train(name: str, arm: Arm, data: Any, session: Session, *, resume: bool = False) -> Trained:
    """Trains ``arm`` to its last step, from its newest intact checkpoint if ``resume`` says so and there is one.

    Args:
      name: of the arm.
      arm: what is trained.
      data: ``arm.task.data()``; for a ``HostTask`` one row of step 0.
      session: seed, devices, folders.
      resume: go on where a checkpoint ends.

    Raises:
      RunError: the loss or a gradient is not finite, or a file cannot be written.
      Stopped: a signal arrived; the checkpoint is written.
    """
    return _Run(name, arm, data, session).train(resume)


class _Run:
    """State of training one arm. ``step`` counts what is dispatched, ``logged`` what is read back."""

    def __init__(self, name: str, arm: Arm, data: Any, session: Session):
        self.name, self.arm, self.session = name, arm, session
        self.training = arm.training
        self.host = isinstance(arm.task, HostTask)
        self.local = session.local_devices
        self.sharding = NamedSharding(Mesh(np.array(self.local), (AXIS,)), PartitionSpec(AXIS))
        self.checkpoints = session.checkpoints(name)
        self.data = data
        self.length = call_length(self.training)
        self.call = compile_step(arm, session.devices)
        self.evaluate_call = jax.jit(lambda params, key, data: arm.evaluate(_first(params), key, data))
        self.evaluation_data = jax.device_put(arm.evaluation_data, self.local[0])
        self.evaluation_key = keys(session.seed)["evaluation"]
        self.counts: dict[int, jax.Array] = {}
        self.rows_per_device = self.training.batch_size // len(session.devices)
        self.history: list[dict[str, float]] = []
        self.seconds_before = 0.0

    def train(self, resume: bool) -> Trained:
        self.began = time.monotonic()
        make = jax.jit(lambda d: initial_state(self.arm, self.session.seed, len(self.session.devices), d))
        self.axes = state_axes(self.arm, jax.eval_shape(make, self.data), len(self.session.devices))
        state, self.step = self._restore(make) if resume else (None, 0)
        if state is None:
            self.session.log.forget(self.name, -1)
            state = jax.tree.map(np.asarray, make(self.data))
            carry = self._replicate(state.carry)  # one device's rows, the same at the start
            rest = jax.tree.map(self._place, state.replace(carry=None), self.axes.replace(carry=None))
            state = rest.replace(carry=carry)
        self.logged, self.logged_at = self.step, time.monotonic()
        paths = jax.tree_util.tree_leaves_with_path(state.params)
        self.leaf_paths = [parameter_path(path) for path, _ in paths]
        inputs = Inputs(*self._replicate((step_keys(self.session.seed), None if self.host else self.data)))
        per_step, unit = self._size_of_step()
        self.bar = Progress(
            self.name, self.training.steps, start=self.step, per_step=per_step, unit=unit, show=self.session.progress
        )
        self.session.stop.defer(True)
        try:
            state = self._loop(state, inputs)
        finally:
            self.bar.close()
        metrics = self.history[-1]
        self.session.stop.defer(False)
        final = {k.removeprefix("evaluation/"): v for k, v in metrics.items() if k.startswith("evaluation/")}
        params = jax.jit(_first)(_on_first_device(state.params if state.ema is None else state.ema))
        return Trained(self.arm, params, final, self.history, self._seconds())

    def _loop(self, state: TrainState, inputs: Inputs) -> TrainState:
        """Calls the compiled step until the last one, with an evaluation and a checkpoint at the end."""
        pending = None
        evaluated = any("evaluation/" in k for row in self.history if row["step"] == self.step for k in row)
        saved = self.step if self.checkpoints.steps() and self.step else -1
        while self.step < self.training.steps:
            count = min(self.length, self._next_stop() - self.step)
            rows = self._host_rows(count) if self.host else None
            state, summary = self.call(state, self._count(count), inputs.replace(rows=rows))
            stop = self._agree()
            self.step += count
            if pending is not None:
                self._finish(*pending)
            pending = (self.step, summary)
            evaluated = False
            due = {
                "evaluate": _due(self.step, self.training.evaluate_every),
                "save": _due(self.step, self.training.checkpoint_every),
            }
            if stop() or any(due.values()) or self.step == self.training.steps:
                self._finish(*pending)
                pending = None
                if due["evaluate"] or self.step == self.training.steps:
                    self._evaluate(state)
                    evaluated = True
                if due["save"] or stop() or self.step == self.training.steps:
                    self._save(state)
                    saved = self.step
                if stop() and self.step < self.training.steps:
                    number = self.session.stop.number or signal.SIGTERM
                    raise Stopped(
                        number,
                        f"stopped by {signal.Signals(number).name}: {self.name} is saved at step {self.step}; "
                        "go on with --resume",
                    )
        if not evaluated:
            self._evaluate(state)
        if saved != self.training.steps:
            self._save(state)
        return state

    def _next_stop(self) -> int:
        """The step at which the host must look at the state next."""
        stops = [self.training.steps]
        for every in (self.training.evaluate_every, self.training.checkpoint_every):
            if every is not None:
                stops.append((self.step // every + 1) * every)
        return min(stops)

    def _finish(self, step: int, summary: Summary) -> None:
        """Waits for a call and logs its summary."""
        summary = jax.tree.map(lambda x: np.asarray(x.addressable_shards[0].data)[0], summary)
        if summary.bad_step >= 0:
            self._not_finite(summary)
        now = time.monotonic()
        row = {"step": step, **{k: float(v) for k, v in summary.metrics.items()}}
        row["seconds"] = self._seconds()
        row["steps_per_second"] = (step - self.logged) / max(now - self.logged_at, 1e-9)
        self.logged, self.logged_at = step, now
        self._log(row)
        self.bar.update(step, row["loss"])

    def _not_finite(self, summary: Summary) -> None:
        leaf = int(summary.bad_leaf)
        loss = float(summary.bad_loss)
        what = "the loss" if not np.isfinite(loss) else f"the loss is {loss:.6g}, but a gradient"
        where = f"; first parameter with a non-finite gradient: {self.leaf_paths[leaf]}" if leaf >= 0 else ""
        kept = self.checkpoints.steps()
        last = f"the checkpoint of step {kept[-1]} is kept" if kept else "no checkpoint had been written yet"
        raise RunError(f"{self.name}: step {int(summary.bad_step)}: {what} is not finite{where}; {last}")

    def _evaluate(self, state: TrainState) -> None:
        params = _on_first_device(state.params if state.ema is None else state.ema)
        metrics = self.evaluate_call(params, self.evaluation_key, self.evaluation_data)
        row = {"step": self.step, **{f"evaluation/{k}": float(v) for k, v in jax.device_get(dict(metrics)).items()}}
        row["seconds"] = self._seconds()
        self._log(row)
        self.logged_at = time.monotonic()

    def _log(self, row: dict[str, float]) -> None:
        self.history.append(row)
        self.session.log.write(self.name, row)

    def _save(self, state: TrainState) -> None:
        host = jax.tree.map(self._gather, state, self.axes)
        if jax.process_index() == 0:
            self.checkpoints.save(self.step, host, {"seconds": self._seconds()})
        self.logged_at = time.monotonic()

    def _restore(self, make: Callable[[Any], TrainState]) -> tuple[TrainState | None, int]:
        shapes = jax.eval_shape(make, self.data)
        rows = len(self.session.devices)
        carry = jax.tree.map(lambda x: jax.ShapeDtypeStruct((x.shape[0] * rows, *x.shape[1:]), x.dtype), shapes.carry)
        found = self.checkpoints.restore(shapes.replace(carry=carry))
        if found is None:
            return None, 0
        step, host, extra = found
        self.session.log.forget(self.name, step)
        self.history = self.session.log.rows(self.name, step)
        self.seconds_before = float(extra.get("seconds", 0.0))
        self.session.say(f"{self.name}: resumed at step {step}")
        return jax.tree.map(self._place, host, self.axes), step

    def _gather(self, x: jax.Array, axis: int) -> np.ndarray:
        """A leaf of the state as checkpoints hold it: put together along ``axis`` over the devices of all hosts."""
        if axis < 0:
            return np.asarray(_shard(x))[0]
        local = np.stack([np.asarray(s.data)[0] for s in x.addressable_shards])
        if jax.process_count() > 1:
            from jax.experimental import multihost_utils

            local = np.asarray(multihost_utils.process_allgather(local, tiled=True))
        return np.concatenate(local, axis=axis)

    def _place(self, x: Any, axis: int) -> jax.Array:
        """A leaf of a checkpoint on the local devices, whole on each or split along ``axis``."""
        if axis < 0:
            return self._replicate(x)
        first = jax.process_index() * len(self.local)
        parts = np.split(np.asarray(x), len(self.session.devices), axis)[first : first + len(self.local)]
        return jax.device_put(np.stack(parts), self.sharding)

    def _replicate(self, tree: Any) -> Any:
        """One copy on every local device, with a leading device axis."""
        n = len(self.local)

        def put(x):
            x = np.asarray(x)
            return jax.device_put(np.broadcast_to(x[None], (n, *x.shape)), self.sharding)

        return jax.tree.map(put, tree)

    def _count(self, count: int) -> jax.Array:
        if count not in self.counts:
            self.counts[count] = self._replicate(np.int32(count))
        return self.counts[count]

    def _host_rows(self, count: int) -> Any:
        """Rows of the next ``count`` steps, [local devices, steps per call, rows, ...]; steps after them repeat the last."""
        first = jax.process_index() * len(self.local)
        per_step = []
        for step in range(self.step, self.step + count):
            per_device = [
                self.arm.task.read(
                    self.session.seed,
                    step,
                    range((first + i) * self.rows_per_device, (first + i + 1) * self.rows_per_device),
                    self.training.batch_size,
                )
                for i in range(len(self.local))
            ]
            per_step.append(jax.tree.map(lambda *x: np.stack(x), *per_device))
        per_step += [per_step[-1]] * (self.length - count)
        return jax.device_put(jax.tree.map(lambda *x: np.stack(x, axis=1), *per_step), self.sharding)

    def _agree(self) -> Callable[[], bool]:
        """Whether a signal asks to stop, the same answer in every process."""
        requested = self.session.stop.number is not None
        if jax.process_count() == 1:
            return lambda: requested
        flags = jax.device_put(np.full(len(self.local), requested, np.int32), self.sharding)
        answer = _any_device(tuple(self.session.devices))(flags)
        return lambda: bool(np.asarray(answer.addressable_shards[0].data)[0])

    def _size_of_step(self) -> tuple[int, str]:
        """Tokens (integer inputs with a time axis) or examples in an optimiser step."""
        if self.host:
            inputs = jax.tree.map(lambda x: x[0], self.data).inputs
        else:
            inputs = jax.eval_shape(self.arm.task.example, jax.random.key(0), self.data).inputs
        leaf = jax.tree.leaves(inputs)[0] if jax.tree.leaves(inputs) else None
        if leaf is not None and leaf.ndim == 1 and jnp.issubdtype(leaf.dtype, jnp.integer):
            return self.training.batch_size * leaf.shape[0], "tokens"
        return self.training.batch_size, "examples"

    def _seconds(self) -> float:
        return round(self.seconds_before + time.monotonic() - self.began, 3)


def _any_device(devices: tuple[jax.Device, ...]) -> Callable:
    if devices not in _ANY:
        _ANY[devices] = jax.pmap(lambda x: jax.lax.pmax(x, AXIS), axis_name=AXIS, devices=list(devices))
    return _ANY[devices]


_ANY: dict[tuple, Callable] = {}


def _due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0


def _shard(x: jax.Array) -> jax.Array:
    return x.addressable_shards[0].data


def _on_first_device(tree: Any) -> Any:
    """The copy of this process's first device, still with its device axis of length 1."""
    return jax.tree.map(_shard, tree)


def _first(tree: Any) -> Any:
    return jax.tree.map(lambda x: x[0], tree)
