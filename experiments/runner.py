"""Runs an experiment from its name to its verdict. The launcher and notebooks call ``run``; nothing else is needed."""

import errno
import hashlib
import importlib.metadata
import json
import os
import pathlib
import platform
import shutil
import sys
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from experiments import experiment as registry
from experiments.config import first_line, flat, override, plain
from experiments.distributed import barrier
from experiments.errors import RunError, StopRequest, UsageError
from experiments.experiment import PRESETS, Arm, Check, Experiment, Trained
from experiments.logs import RunLog, write_json
from experiments.optimizers import validate
from experiments.progress import say
from experiments.steps import initial_state, keys
from experiments.trainer import Session, train
from zoo.checks import check_choice, nearest
from zoo.tasks import HostTask

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
UNRECORDED = ("workdir", "texts", "next_steps")  # what the caller gets, but verdict.json does not
OWN_FILES = ("config.json", "metrics.jsonl", "verdict.json", "report.md", "curves.png")
OWN_FOLDERS = ("checkpoints", "tensorboard", "arms", "figures")


def run(
    name: str,
    preset: str = "quick",
    seed: int = 0,
    workdir: str | os.PathLike | None = None,
    overrides: Mapping[str, Any] | None = None,
    resume: bool = False,
    progress: bool = True,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Trains every arm of an experiment, measures, checks and reports.

    Args:
      name: of the experiment.
      preset: "smoke", "quick" or "paper".
      seed: of parameters, data, dropout and evaluation.
      workdir: folder for everything the run writes; None: runs/<name>-<preset>-seed<seed>.
      overrides: dotted path -> value on the preset, e.g. ``{"training.steps": 10}``; text is read by type.
      resume: go on with the run that ``workdir`` holds; arms that were finished are not trained again.
      progress: show bars and messages.
      overwrite: remove the run that ``workdir`` holds and start afresh.

    Returns:
      What verdict.json holds (experiment, paper, preset, seed, passed, checks, seconds, versions, metrics), and
      workdir, texts (samples and the like, by title) and next_steps.

    Raises:
      UsageError: a name, value, file or folder that cannot be.
      RunError: a loss that is not finite, a full disk, and the like.
      Stopped: SIGTERM or Ctrl-C; the state is saved.
    """
    began = time.monotonic()
    main = jax.process_index() == 0
    shown = progress and main
    experiment, config = configure(name, preset, seed, overrides)
    devices = tuple(jax.devices())
    arms, data = _prepare(experiment, config, seed, len(devices))
    folder = pathlib.Path(workdir or default_workdir(name, preset, seed)).expanduser().absolute()
    record = _record(experiment, preset, seed, config, overrides, devices)
    if resume:
        _check_resumable(folder, record)
    barrier("workdir checked")  # before the first process writes what the others would trip over
    if main:
        _open_workdir(folder, record, resume, overwrite)
    barrier("workdir ready")

    log = RunLog(folder, active=main)
    fingerprint = hashlib.sha256(json.dumps(_identity(record), sort_keys=True).encode()).hexdigest()[:16]
    try:
        with StopRequest() as stop:
            session = Session(seed, devices, folder, fingerprint, log, stop, shown, lambda message: say(message, shown))
            trained = {
                arm_name: _train_or_load(arm_name, arm, data[arm_name], session, resume)
                for arm_name, arm in arms.items()
            }
            stop.defer(False)
            verdict = _conclude(experiment, preset, seed, config, trained, record, folder, session)
        verdict["seconds"] = round(sum(t.seconds for t in trained.values()) + verdict.pop("_measuring"), 1)
        if main:
            from experiments.report import write_report

            write_json(folder / "verdict.json", {k: v for k, v in verdict.items() if k not in UNRECORDED})
            write_report(folder, experiment, config, trained, verdict, record)
            say(f"{name}: report in {folder / 'report.md'} after {time.monotonic() - began:.0f} s", shown)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EDQUOT, errno.EPERM, errno.EIO):
            raise RunError(
                f"cannot write {error.filename or folder}: {error.strerror}; what was saved is intact"
            ) from error
        raise
    finally:
        _close(log)
    barrier("verdict written")
    return verdict


def configure(name: str, preset: str, seed: int, overrides: Mapping[str, Any] | None = None) -> tuple[Experiment, Any]:
    """The experiment and its configuration; UsageError for names and values that cannot be."""
    try:
        experiment = registry.get(name)
        check_choice("preset", preset, PRESETS)
    except ValueError as error:
        raise UsageError(str(error)) from None
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise UsageError(f"seed must be an integer from 0 to 2**32 - 1, got {seed!r}")
    return experiment, override(experiment.presets[preset], overrides or {})


def default_workdir(name: str, preset: str, seed: int) -> str:
    """Where a run goes unless told otherwise."""
    return os.path.join("runs", f"{name}-{preset}-seed{seed}")


def versions() -> dict[str, str]:
    """Python and the packages whose versions can change a number."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        found[package] = importlib.metadata.version(package)
    return found


def _prepare(experiment: Experiment, config: Any, seed: int, num_devices: int) -> tuple[dict[str, Arm], dict[str, Any]]:
    """Arms and their data. Whatever is wrong with sizes and files shows here, before anything is compiled."""
    try:
        arms = dict(experiment.arms(config))
        data: dict[str, Any] = {}
        loaded: list[tuple[Any, Any]] = []
        for name, arm in arms.items():
            validate(arm.training, num_devices)
            if isinstance(arm.task, HostTask):
                data[name] = arm.task.read(seed, 0, range(0, 1), arm.training.batch_size)
            else:
                known = [d for task, d in loaded if task is arm.task or task == arm.task]
                data[name] = known[0] if known else arm.task.data()
                loaded.append((arm.task, data[name]))
            shapes = jax.eval_shape(lambda d, arm=arm: initial_state(arm, seed, num_devices, d), data[name])
            wrong = [x.dtype for x in jax.tree.leaves(shapes.params) if not np.issubdtype(x.dtype, np.inexact)]
            if wrong:
                raise ValueError(f"parameters must be floating-point arrays, found {wrong[0]}")
    except UsageError as error:
        raise UsageError(f"{experiment.name}: {error}") from error
    except OSError as error:
        what = f"{error.filename}: {error.strerror}" if error.filename and error.strerror else first_line(error)
        raise UsageError(f"{experiment.name}: {what}") from error
    except (ValueError, TypeError, ZeroDivisionError) as error:
        raise UsageError(f"{experiment.name}: this configuration is not possible: {first_line(error)}") from error
    return arms, data


def _record(experiment, preset, seed, config, overrides, devices) -> dict[str, Any]:
    """What config.json holds."""
    return {
        "experiment": experiment.name,
        "preset": preset,
        "seed": seed,
        "config": plain(config),
        "overrides": plain(dict(overrides or {})),
        "versions": versions(),
        "devices": {"platform": devices[0].platform, "kind": devices[0].device_kind, "count": len(devices)},
        "processes": jax.process_count(),
        "argv": [os.path.basename(sys.argv[0]), *sys.argv[1:]] if sys.argv else [],
    }


def _identity(record: Mapping[str, Any]) -> dict[str, Any]:
    """The part of config.json that must be equal when a run is resumed."""
    return {key: record[key] for key in ("experiment", "preset", "seed", "config")}


def _check_resumable(folder: pathlib.Path, record: Mapping[str, Any]) -> None:
    """UsageError unless ``folder`` holds this very run."""
    old = read_record(folder)
    before, now = flat(_identity(old)), flat(json.loads(json.dumps(_identity(record))))
    for path in [*now, *before]:
        if before.get(path) != now.get(path):
            raise UsageError(
                f"{folder} holds a run with {path.removeprefix('config.')}={before.get(path)}, not {now.get(path)}; "
                "resume it as it was, or choose another --workdir"
            )
    if old.get("devices", {}).get("count") != record["devices"]["count"]:
        say(
            f"resuming on {record['devices']['count']} devices what began on {old.get('devices', {}).get('count')}: "
            "equal within rounding, not to the bit"
        )


def read_record(folder: pathlib.Path) -> dict[str, Any]:
    """config.json of the run in ``folder``; UsageError if there is none."""
    try:
        record = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        _identity(record)
        return record
    except FileNotFoundError:
        siblings = [str(p) for p in folder.parent.iterdir()] if folder.parent.is_dir() else []
        there = [p for p in siblings if os.path.exists(os.path.join(p, "config.json"))]
        raise UsageError(f"nothing to resume: {folder} has no config.json{nearest(str(folder), there)}") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{folder / 'config.json'} cannot be read: {first_line(error)}") from None


def _open_workdir(folder: pathlib.Path, record: Mapping[str, Any], resume: bool, overwrite: bool) -> None:
    """Makes ``folder`` and writes config.json, unless it holds a run that was not mentioned."""
    try:
        if overwrite and not resume:
            _clear(folder)
        if not resume and (folder / "config.json").exists():
            raise UsageError(
                f"{folder} already holds a run: --resume goes on with it, --overwrite starts it afresh, "
                "--workdir=DIR chooses another folder"
            )
        folder.mkdir(parents=True, exist_ok=True)
        if not resume:
            write_json(folder / "config.json", record)
        else:
            (folder / ".writable").touch()
            (folder / ".writable").unlink()
    except OSError as error:
        raise UsageError(f"the workdir {folder} cannot be written: {error.strerror}") from None


def _clear(folder: pathlib.Path) -> None:
    """Removes what a run has written, and nothing else."""
    for name in OWN_FILES:
        (folder / name).unlink(missing_ok=True)
    for name in OWN_FOLDERS:
        if (folder / name).is_dir():
            shutil.rmtree(folder / name)


def _train_or_load(name: str, arm: Arm, data: Any, session: Session, resume: bool) -> Trained:
    """Trains an arm, or reads it back when an earlier part of this run has finished it."""
    path = session.workdir / "arms" / f"{name}.json"
    if resume and path.exists():
        try:
            done = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            done = None  # damaged: the checkpoints decide
        if done is not None:
            restored = _final_params(arm, data, session, name)
            if restored is not None:
                session.say(f"{name}: already trained")
                history = session.log.rows(name)
                metrics = {k: float(v) for k, v in done["metrics"].items()}
                return Trained(arm, restored, metrics, history, done["seconds"])
    trained = train(name, arm, data, session, resume=resume)
    if jax.process_index() == 0:
        path.parent.mkdir(exist_ok=True)
        write_json(path, {"metrics": trained.metrics, "seconds": trained.seconds, "steps": arm.training.steps})
    barrier(f"{name} finished")
    return trained


def _final_params(arm: Arm, data: Any, session: Session, name: str) -> Any:
    """Parameters of a finished arm, or None when its last checkpoint is not there any more."""
    devices = len(session.devices)
    shapes = jax.eval_shape(lambda d: initial_state(arm, session.seed, devices, d), data)
    carry = jax.tree.map(lambda x: jax.ShapeDtypeStruct((x.shape[0] * devices, *x.shape[1:]), x.dtype), shapes.carry)
    found = session.checkpoints(name).restore(shapes.replace(carry=carry))
    if found is None or found[0] != arm.training.steps:
        return None
    state = found[1]
    return jax.device_put(state.params if state.ema is None else state.ema, session.local_devices[0])


def _conclude(experiment, preset, seed, config, trained, record, folder, session) -> dict[str, Any]:
    """Measures and checks; returns the verdict."""
    began = time.monotonic()
    metrics: dict[str, float] = {}
    for name, result in trained.items():
        metrics.update({f"{name}/{key}": value for key, value in result.metrics.items()})
        rows = [row for row in result.history if "loss" in row]
        if rows:
            metrics[f"{name}/train_loss"] = rows[-1]["loss"]
        metrics[f"{name}/parameters"] = float(sum(x.size for x in jax.tree.leaves(result.params)))
        metrics[f"{name}/seconds"] = result.seconds
    if experiment.measure is not None:
        measured = experiment.measure(config, trained, keys(seed)["measure"])
        metrics.update({key: float(value) for key, value in measured.items()})
    checks = [check.verdict(metrics) for check in _checks(experiment, preset, trained, metrics)]
    texts = {}
    if experiment.texts is not None:
        texts = dict(experiment.texts(config, trained, metrics, keys(seed)["measure"]))
    return {
        "experiment": experiment.name,
        "paper": experiment.paper,
        "preset": preset,
        "seed": seed,
        "passed": all(check["passed"] for check in checks),
        "checks": [{**c, "threshold": None if c["op"] == "finite" else c["threshold"]} for c in checks],
        "_measuring": time.monotonic() - began,
        "seconds": 0.0,
        "versions": record["versions"],
        "metrics": metrics,
        "workdir": str(folder),
        "texts": texts,
        "next_steps": experiment.next_steps,
    }


def _checks(experiment: Experiment, preset: str, trained: Mapping[str, Trained], metrics: Mapping[str, float]):
    """The preset's checks; where there are none, that every arm ended with a finite loss."""
    if preset in experiment.checks:
        return experiment.checks[preset]
    keys = [next(k for k in (f"{n}/train_loss", f"{n}/loss", *metrics) if k in metrics) for n in trained]
    return tuple(Check(f"{name}: finite loss", key, "finite") for name, key in zip(trained, keys))


def _close(log: RunLog) -> None:
    try:
        log.close()
    except OSError:
        if sys.exc_info()[0] is None:
            raise
