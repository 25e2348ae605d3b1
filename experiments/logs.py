"""The log of a run: metrics.jsonl, one JSON object per line, and TensorBoard events."""

import json
import math
import os
import pathlib
import sys
from collections.abc import Mapping
from typing import Any


class RunLog:
    """Writes and reads the rows of a run.

    Args:
      workdir: the run's folder.
      active: False for processes that do not write.
    """

    def __init__(self, workdir: str | os.PathLike, active: bool = True):
        self.path = pathlib.Path(workdir) / "metrics.jsonl"
        self.active = active
        self._file = None
        self._boards: dict[str, Any] = {}

    def write(self, arm: str, row: Mapping[str, float]) -> None:
        """Appends a row; on disk (of the operating system) when this returns."""
        if not self.active:
            return
        if self._file is None:
            self._file = self.path.open("a", encoding="utf-8")
        self._file.write(json.dumps({"arm": arm, **{k: jsonable(v) for k, v in row.items()}}) + "\n")
        self._file.flush()
        board = self._board(arm, row["step"])
        for name, value in row.items():
            if name != "step":
                board.add_scalar(name, value, row["step"])

    def rows(self, arm: str, until: int | None = None) -> list[dict[str, float]]:
        """The rows of an arm, up to step ``until``. A line torn by a kill is left out."""
        return [row for name, row in self._read() if name == arm and (until is None or row["step"] <= until)]

    def forget(self, arm: str, after: int) -> None:
        """Removes the rows of ``arm`` after step ``after``, which are going to be written again."""
        if not self.active or not self.path.exists():
            return
        kept = [(name, row) for name, row in self._read() if name != arm or row["step"] <= after]
        text = "".join(
            json.dumps({"arm": name, **{k: jsonable(v) for k, v in row.items()}}) + "\n" for name, row in kept
        )
        self.close()
        replace_file(self.path, text)

    def close(self) -> None:
        """Flushes and closes the files."""
        for board in self._boards.values():
            board.close()
        self._boards.clear()
        if self._file is not None:
            self._file.close()
            self._file = None

    def _board(self, arm: str, step: int):
        if arm not in self._boards:
            folder = self.path.parent / "tensorboard" / arm
            self._boards[arm] = _summary_writer()(str(folder), purge_step=int(step), flush_secs=30)
        return self._boards[arm]

    def _read(self) -> list[tuple[str, dict[str, float]]]:
        if not self.path.exists():
            return []
        result = []
        for line in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                row = json.loads(line)
                result.append((row.pop("arm"), {k: number(v) for k, v in row.items()}))
            except (json.JSONDecodeError, KeyError, AttributeError):
                continue
        return result


def _summary_writer() -> type:
    """tensorboardX's writer. The package imports torch where it finds it, which takes seconds and is not needed here."""
    hide = "torch" not in sys.modules
    if hide:
        sys.modules["torch"] = None
    try:
        from tensorboardX import SummaryWriter
    finally:
        if hide:
            del sys.modules["torch"]
    return SummaryWriter


def jsonable(value: Any) -> Any:
    """A number as strict JSON: NaN and the infinities, which JSON lacks, become text."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def number(value: Any) -> Any:
    """The inverse of ``jsonable``."""
    return float(value) if value in ("nan", "inf", "-inf") else value


def replace_file(path: pathlib.Path, text: str) -> None:
    """Writes a file whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes ``value`` as strict JSON, whole or not at all."""
    replace_file(path, json.dumps(_strict(value), indent=2, allow_nan=False) + "\n")


def _strict(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _strict(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(v) for v in value]
    return jsonable(value)
