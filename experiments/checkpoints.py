"""Checkpoints that survive a kill, a full disk and a flipped bit.

Layout, below a folder per arm::

    <step>/state/          the arrays, written by Orbax
    <step>/manifest.json   format, fingerprint of the run, step, and the SHA-256 and size of every file of state/
    <step>/COMMIT          SHA-256 of manifest.json

A checkpoint is written under a temporary name, flushed to disk and then renamed, so it is there whole or not at all;
older ones are removed only after that. Reading checks every hash, and falls back to the one before when a file is
damaged. In a run of several processes, the first writes and all read.
"""

import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.errors import RunError, UsageError
from experiments.optimizers import parameter_path

FORMAT = 1


class Damaged(Exception):
    """A checkpoint whose files are not what was written."""


class Checkpoints:
    """The checkpoints of one arm.

    Args:
      directory: where they lie.
      fingerprint: identifies the run; a checkpoint with another one is refused.
      keep: how many are kept.
      say: prints a message for the user.
    """

    def __init__(
        self, directory: str | os.PathLike, fingerprint: str, *, keep: int = 3, say: Callable[[str], None] = print
    ):
        self.directory = pathlib.Path(directory).absolute()
        self.fingerprint = fingerprint
        self.keep = keep
        self.say = say

    def steps(self) -> list[int]:
        """Steps of the committed checkpoints, oldest first; they may still turn out to be damaged."""
        if not self.directory.is_dir():
            return []
        return sorted(int(p.name) for p in self.directory.iterdir() if p.name.isdigit() and p.is_dir())

    def save(self, step: int, state: Any, extra: Mapping[str, Any] | None = None) -> None:
        """Writes ``state`` (a pytree of host arrays) as the checkpoint of ``step``.

        Raises:
          RunError: it could not be written (disk full, no permission), or ``state`` holds values that are not finite;
            the checkpoints that were there are untouched.
        """
        named = _named(state)
        _check_finite(named)
        target = self.directory / str(step)
        temporary = self.directory / f"{step}.tmp"
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            for leftover in self.directory.glob("*.tmp"):
                shutil.rmtree(leftover)
            temporary.mkdir()
            _checkpointer().save(temporary / "state", _nested({k: v for k, v in named.items() if v.size}))
            manifest = json.dumps(
                {
                    "format": FORMAT,
                    "fingerprint": self.fingerprint,
                    "step": step,
                    "extra": dict(extra or {}),
                    "leaves": {k: [list(v.shape), str(v.dtype)] for k, v in named.items()},
                    "files": _hashes(temporary / "state"),
                },
                indent=1,
            ).encode()
            (temporary / "manifest.json").write_bytes(manifest)
            (temporary / "COMMIT").write_text(hashlib.sha256(manifest).hexdigest())
            for path in [*temporary.rglob("*"), temporary]:
                _flush(path)
            if target.exists():
                shutil.rmtree(target)
            temporary.rename(target)
            _flush(self.directory)
        except Exception as error:  # Orbax reports a failed write with several types
            shutil.rmtree(temporary, ignore_errors=True)
            reason = error.strerror if isinstance(error, OSError) and error.strerror else _short(error)
            there = self.steps()
            kept = f"the checkpoint of step {there[-1]} is intact" if there else "there is no earlier one"
            raise RunError(
                f"the checkpoint of step {step} could not be written to {self.directory}: {reason}; {kept}"
            ) from error
        for old in self.steps()[: -self.keep]:
            shutil.rmtree(self.directory / str(old), ignore_errors=True)

    def restore(self, template: Any) -> tuple[int, Any, dict[str, Any]] | None:
        """The newest intact checkpoint as (step, state, extra), or None if there is none at all.

        Args:
          template: pytree of arrays or shapes with the structure that is wanted.

        Raises:
          UsageError: the checkpoint belongs to another run or another version of this program, does not fit the
            model, or none of those there is intact.
        """
        steps = self.steps()
        for step in reversed(steps):
            try:
                manifest = self._verify(step)
                return step, self._read(step, manifest, template), manifest["extra"]
            except Damaged as error:
                older = [s for s in steps if s < step]
                then = f"using the one of step {older[-1]}" if older else "and there is no earlier one"
                self.say(f"the checkpoint of step {step} is damaged ({error}); {then}")
        if steps:
            raise UsageError(f"no checkpoint in {self.directory} is intact; start again with --overwrite")
        return None

    def _verify(self, step: int) -> dict[str, Any]:
        folder = self.directory / str(step)
        try:
            raw = (folder / "manifest.json").read_bytes()
            commit = (folder / "COMMIT").read_text().strip()
        except (FileNotFoundError, UnicodeDecodeError) as error:
            name = pathlib.Path(getattr(error, "filename", None) or "COMMIT").name
            if not (folder / "COMMIT").exists() and not (folder / "manifest.json").exists():
                raise UsageError(
                    f"{folder} is not a checkpoint of this program: it has neither manifest.json nor COMMIT"
                ) from None
            raise Damaged(f"{name} is missing or unreadable") from None
        if hashlib.sha256(raw).hexdigest() != commit:
            raise Damaged("manifest.json does not match COMMIT")
        manifest = json.loads(raw)
        if manifest.get("format") != FORMAT:
            raise UsageError(
                f"{folder} has checkpoint format {manifest.get('format')!r}, this version reads format {FORMAT}; "
                "resume it with the version that wrote it"
            )
        if manifest["fingerprint"] != self.fingerprint:
            raise UsageError(f"{folder} belongs to another run (its configuration differs from config.json)")
        found = _hashes(folder / "state")
        for name, wanted in manifest["files"].items():
            if name not in found:
                raise Damaged(f"state/{name} is missing")
            if found[name]["size"] != wanted["size"]:
                raise Damaged(f"state/{name} has {found[name]['size']} bytes instead of {wanted['size']}")
            if found[name] != wanted:
                raise Damaged(f"state/{name} has another SHA-256 than when it was written")
        return manifest

    def _read(self, step: int, manifest: dict[str, Any], template: Any) -> Any:
        folder = self.directory / str(step)
        stored = {k: (tuple(shape), dtype) for k, (shape, dtype) in manifest["leaves"].items()}
        wanted = {k: (tuple(v.shape), str(v.dtype)) for k, v in _named(template, arrays=False).items()}
        for name in [*wanted, *stored]:
            if wanted.get(name) != stored.get(name):
                raise UsageError(
                    f"{folder} does not fit the model: {name} is {_shape(stored.get(name))} there and "
                    f"{_shape(wanted.get(name))} here"
                )
        nested = _checkpointer().restore(folder / "state") if any(0 not in s for s, _ in stored.values()) else {}
        found = {k: np.asarray(v) for k, v in _named(nested).items()}
        leaves = []
        for name, (shape, dtype) in wanted.items():
            value = found.get(name, np.zeros(0))  # what is not there is empty
            leaves.append(value.astype(jnp.dtype(dtype), copy=False).reshape(shape))
        return jax.tree.unflatten(jax.tree.structure(template), leaves)


def _checkpointer():
    """An Orbax checkpointer that acts for this process alone: no barrier with other processes."""
    import logging

    import orbax.checkpoint as ocp

    logging.getLogger("absl").setLevel(logging.ERROR)
    me = jax.process_index()
    options = ocp.options.MultiprocessingOptions(
        primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"process{me}"
    )
    return ocp.Checkpointer(
        ocp.PyTreeCheckpointHandler(multiprocessing_options=options), multiprocessing_options=options
    )


def _named(tree: Any, arrays: bool = True) -> dict[str, Any]:
    """Leaves by path, in the order of the tree."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {parameter_path(path): np.asarray(leaf) if arrays else leaf for path, leaf in leaves}


def _nested(named: Mapping[str, Any]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name, value in named.items():
        *above, last = name.split("/")
        node = result
        for part in above:
            node = node.setdefault(part, {})
        node[last] = value
    return result


def _check_finite(named: Mapping[str, np.ndarray]) -> None:
    for name, value in named.items():
        if name.startswith("params") and np.issubdtype(value.dtype, np.inexact) and not np.isfinite(value).all():
            raise RunError(f"{name} is no longer finite; the last good checkpoint is kept")


def _hashes(folder: pathlib.Path) -> dict[str, dict[str, Any]]:
    """File name -> SHA-256 and size, for every file below ``folder``."""
    result = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            result[str(path.relative_to(folder))] = {"sha256": digest, "size": path.stat().st_size}
    return result


def _flush(path: pathlib.Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _shape(entry: tuple | None) -> str:
    return "missing" if entry is None else f"{entry[1]}{list(entry[0])}"


def _short(error: Exception) -> str:
    """The part of a long library message that says what happened."""
    text = " ".join(str(error).split())
    for known in ("No space left on device", "File too large", "Read-only file system", "Permission denied"):
        if known in text:
            return known
    return text[:200] or type(error).__name__
