"""Safetensors files: one, or several with an index, read tensor by tensor; never a pickle."""

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from zoo.interchange.config import read_json

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
FLOATING = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def safetensors_module() -> Any:
    """The package safetensors, imported where it is used; ImportError that says how to get it."""
    try:
        import safetensors
        import safetensors.numpy
    except ImportError as error:
        raise ImportError("checkpoints in safetensors files need the package: pip install 'scanzoo[hub]'") from error
    return safetensors


class TensorArrays:
    """Tensors that are in memory already, read as ``TensorFiles`` reads files.

    Attributes:
      shapes, dtypes: as in ``TensorFiles``.
    """

    def __init__(self, arrays: Mapping[str, np.ndarray], source: str):
        self._arrays, self._source = {key: np.asarray(array) for key, array in arrays.items()}, source
        self.shapes = {key: array.shape for key, array in self._arrays.items()}
        names = {dtype: name for name, dtype in FLOATING.items()}
        self.dtypes = {key: names.get(array.dtype.name, array.dtype.name) for key, array in self._arrays.items()}

    def read(self, key: str) -> np.ndarray:
        """As ``TensorFiles.read``."""
        return _checked(self._arrays[key], key, self.dtypes[key], self._source)

    def where(self, key: str) -> str:
        """What messages call the source."""
        return self._source


def _checked(array: np.ndarray, key: str, dtype: str, source: Path | str) -> np.ndarray:
    if dtype not in FLOATING:
        raise ValueError(f"{source}: {key} is {dtype}, expected one of {', '.join(FLOATING)}")
    array = array.astype(np.float64 if dtype == "F64" else np.float32)
    if not np.all(np.isfinite(array)):
        raise ValueError(f"{source}: {key} has NaN or infinity among its values")
    return array


class TensorFiles:
    """The tensors of a checkpoint folder, by key. A context manager.

    Attributes:
      shapes: key -> shape, from the headers alone.
      dtypes: key -> dtype as safetensors names it ("F32", "BF16", ...).
    """

    def __init__(self, folder: Path):
        self._stack = contextlib.ExitStack()
        self._files: dict[str, tuple[Path, Any]] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, str] = {}
        try:
            for path, keys in _files(folder):
                self._open(path, keys)
        except BaseException:
            self._stack.close()
            raise

    def _open(self, path: Path, keys: set[str] | None) -> None:
        safetensors = safetensors_module()
        try:
            file = self._stack.enter_context(safetensors.safe_open(path, framework="np"))
            present = list(file.keys())
            for key in present:
                piece = file.get_slice(key)
                self.shapes[key], self.dtypes[key] = tuple(piece.get_shape()), str(piece.get_dtype())
                self._files[key] = path, file
        except safetensors.SafetensorError as error:
            raise ValueError(f"{path} is damaged or not a safetensors file: {error}") from error
        missing = sorted((keys or set()) - set(present))
        if missing:
            raise ValueError(f"{path} lacks {', '.join(missing[:5])}, which {INDEX} places there")

    def read(self, key: str) -> np.ndarray:
        """The tensor called ``key``, as float32 or wider; ValueError for other dtypes and for NaN or infinity."""
        path, file = self._files[key]
        try:
            array = file.get_tensor(key)
        except safetensors_module().SafetensorError as error:
            raise ValueError(f"{path}: {key} cannot be read: {error}") from error
        return _checked(array, key, self.dtypes[key], path)

    def where(self, key: str) -> Path:
        """The file that holds ``key``."""
        return self._files[key][0]

    def __enter__(self) -> "TensorFiles":
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.close()


def _files(folder: Path) -> Iterator[tuple[Path, set[str] | None]]:
    """(file, keys that the index places in it, or None without an index)."""
    if (folder / INDEX).is_file():
        table = read_json(folder / INDEX).get("weight_map")
        if not isinstance(table, dict) or not all(isinstance(name, str) for name in table.values()):
            raise ValueError(f"{folder / INDEX} needs weight_map, an object from keys to file names")
        by_file: dict[str, set[str]] = {}
        for key, name in table.items():
            by_file.setdefault(name, set()).add(key)
        for name, keys in sorted(by_file.items()):
            if Path(name).name != name or name in ("", ".", ".."):
                raise ValueError(f"{folder / INDEX} points outside of its folder: {name!r}")
            if not (folder / name).is_file():
                raise FileNotFoundError(f"{folder / name} is missing, which {INDEX} names")
            yield folder / name, keys
        return
    if (folder / SINGLE).is_file():
        yield folder / SINGLE, None
        return
    pickles = sorted(p.name for p in folder.glob("*.bin")) + sorted(p.name for p in folder.glob("*.pt*"))
    if pickles:
        raise ValueError(
            f"{folder} has its weights in pickles only ({', '.join(pickles[:3])}), which are not read, since loading a "
            "pickle can run any code; convert them to safetensors in the library that wrote them"
        )
    raise FileNotFoundError(f"{folder} has neither {SINGLE} nor {INDEX}")


def write_tensors(folder: Path, arrays: Mapping[str, np.ndarray], *, shard_bytes: int) -> None:
    """Writes ``arrays`` as one file, or as several of at most ``shard_bytes`` (where a tensor fits) with an index."""
    safetensors = safetensors_module()
    shards: list[dict[str, np.ndarray]] = [{}]
    used = 0
    for key, array in arrays.items():
        if used and used + array.nbytes > shard_bytes:
            shards.append({})
            used = 0
        shards[-1][key] = np.ascontiguousarray(array)
        used += array.nbytes
    if len(shards) == 1:
        safetensors.numpy.save_file(shards[0], folder / SINGLE, metadata={"format": "pt"})
        return
    names = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    for name, shard in zip(names, shards):
        safetensors.numpy.save_file(shard, folder / name, metadata={"format": "pt"})
    table = {key: name for name, shard in zip(names, shards) for key in shard}
    total = sum(array.nbytes for array in arrays.values())
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": table}, indent=2) + "\n")
