"""Saved models: a folder with the description of a module and its parameters.

    model.json        what ``zoo.describe`` says, versions, the name, size and SHA-256 of the parameter file, and the
                      path, dtype and shape of every parameter
    parameters.npz    one NumPy array per parameter, named by its path; no pickled objects

The folder appears whole or not at all: it is written under another name beside the target, flushed to the disk and
renamed. Loading checks the sum before it reads a single array. Dtypes that NumPy's format does not know (bfloat16,
float8) are stored as unsigned integers of the same bits.
"""

import hashlib
import json
import os
import zipfile
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import zoo
from zoo.interchange.folders import written_whole
from zoo.registry import create, describe

FORMAT, FORMAT_VERSION = "scanzoo model", 1
DESCRIPTION, PARAMETERS = "model.json", "parameters.npz"


def save(path: str | os.PathLike, module: Any, params: Mapping[str, Any], *, overwrite: bool = False) -> Path:
    """Saves a registered module and its parameters as the folder ``path``.

    Args:
      path: folder to make; its parent must exist.
      module: a registered Flax module.
      params: nested mappings with string keys, ending in arrays (or None): what ``module.init`` returned, trained.
      overwrite: replace a model saved at ``path`` before. The old one stays whole until the new one is.

    Returns:
      The folder.

    Raises:
      FileExistsError: ``path`` exists and ``overwrite`` is False, or it is not a saved model.
      FileNotFoundError: the parent folder does not exist.
      TypeError: ``params`` holds something else than mappings, arrays and None.
      ValueError: the module is not registered, or a key is empty or contains "/".
    """
    path = Path(path)
    description = describe(module)
    entries = list(_flatten(params, ()))
    with written_whole(path, overwrite=overwrite, marker=DESCRIPTION, kind="saved model") as folder:
        _write(folder, description, entries)
    return path


def load(path: str | os.PathLike) -> tuple[Any, dict[str, Any]]:
    """Loads what ``save`` saved.

    Returns:
      (module, params): an equal module, and nested dicts of JAX arrays with the saved dtypes.

    Raises:
      FileNotFoundError: there is no folder ``path``, or it lacks one of its two files.
      ValueError: the folder is not a saved model, is of a newer format, or was damaged; or it holds 64-bit numbers
        while JAX runs with 32 bits.
    """
    path = Path(path)
    if not path.is_dir():
        raise FileNotFoundError(f"there is no saved model at {path}")
    about = _read_description(path)
    source = path / about["file"]["name"]
    if not source.is_file():
        raise FileNotFoundError(f"{path} is incomplete: {source.name} is missing")
    size, digest = source.stat().st_size, _digest(source)
    if size != about["file"]["bytes"] or digest != about["file"]["sha256"]:
        raise ValueError(
            f"{source} is damaged: {size} bytes with SHA-256 {digest[:12]}..., "
            f"but {about['file']['bytes']} bytes with {about['file']['sha256'][:12]}... were saved"
        )
    return create(about["module"]), _read_parameters(source, about["parameters"])


def _flatten(tree: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Leaves with their paths; an empty mapping is a leaf, so that it comes back."""
    if isinstance(tree, Mapping) and (tree or not path):
        for key, value in tree.items():
            if not isinstance(key, str) or not key or "/" in key:
                raise ValueError(f"parameter keys must be non-empty strings without '/', got {key!r} under {path}")
            yield from _flatten(value, (*path, key))
        return
    if not path:
        raise TypeError(f"params must be a mapping of arrays, got {type(tree).__name__}")
    if tree is None or isinstance(tree, Mapping):
        yield path, tree
        return
    dtype = getattr(tree, "dtype", None)
    if isinstance(tree, bool | int | float | complex):
        yield path, np.asarray(jnp.asarray(tree))
    elif dtype is None or jax.dtypes.issubdtype(dtype, jax.dtypes.extended) or np.dtype(dtype).hasobject:
        raise TypeError(f"params[{'/'.join(path)}] must be an array of numbers, got {dtype or type(tree).__name__}")
    else:
        yield path, np.asarray(tree)


def _write(folder: Path, description: dict, entries: list) -> None:
    records, arrays = [], {}
    for path, value in entries:
        record = {"path": "/".join(path)}
        if isinstance(value, np.ndarray):
            record |= {"dtype": value.dtype.name, "shape": list(value.shape)}
            arrays[record["path"]] = value.view(_storage(value.dtype))
        else:
            record["dtype"] = "none" if value is None else "empty"
        records.append(record)
    target = folder / PARAMETERS
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.ascontiguousarray(array).reshape(array.shape), allow_pickle=False)
    about = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "module": description,
        "file": {"name": PARAMETERS, "bytes": target.stat().st_size, "sha256": _digest(target)},
        "parameters": records,
        "versions": {"scanzoo": zoo.__version__, **{p: metadata.version(p) for p in ("jax", "flax", "numpy")}},
    }
    (folder / DESCRIPTION).write_text(json.dumps(about, indent=2) + "\n")


def _storage(dtype: np.dtype) -> np.dtype:
    """``dtype`` itself, or unsigned integers of its size where NumPy's file format does not know it."""
    return np.dtype(f"u{dtype.itemsize}") if dtype.kind == "V" else dtype


def _read_description(path: Path) -> dict:
    source = path / DESCRIPTION
    if not source.is_file():
        raise FileNotFoundError(f"{path} is not a saved model: {DESCRIPTION} is missing")
    try:
        about = json.loads(source.read_text())
    except ValueError as error:
        raise ValueError(f"{source} is damaged: {error}") from error
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise ValueError(f"{source} does not describe a model saved by zoo.save")
    if about.get("format_version") != FORMAT_VERSION:
        raise ValueError(
            f"{source} has format version {about.get('format_version')!r}; "
            f"scanzoo {zoo.__version__} reads version {FORMAT_VERSION}"
        )
    missing = {"module", "file", "parameters"} - set(about)
    if missing or not {"name", "bytes", "sha256"} <= set(about["file"]) or about["file"]["name"] != PARAMETERS:
        raise ValueError(f"{source} is damaged: entries are missing")
    return about


def _read_parameters(source: Path, records: list[dict]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    with np.load(source, allow_pickle=False) as arrays:
        for record in records:
            *folders, last = record["path"].split("/")
            node = tree
            for folder in folders:
                node = node.setdefault(folder, {})
            node[last] = _value(source, arrays, record)
    return tree


def _value(source: Path, arrays: Any, record: Mapping[str, Any]) -> Any:
    name, dtype = record["path"], record["dtype"]
    if dtype in ("none", "empty"):
        return None if dtype == "none" else {}
    if name not in arrays:
        raise ValueError(f"{source} has no parameter {name}, which {DESCRIPTION} lists")
    stored, wanted = arrays[name], jnp.dtype(dtype)
    if list(stored.shape) != record["shape"] or stored.dtype != _storage(wanted):
        raise ValueError(
            f"{source}: {name} is {stored.dtype} {list(stored.shape)}, but {DESCRIPTION} says {dtype} {record['shape']}"
        )
    array = jnp.asarray(stored.view(wanted)) if jax.dtypes.canonicalize_dtype(wanted) == wanted else None
    if array is None:
        raise ValueError(
            f"{source}: {name} is {dtype}, which JAX would round to 32 bits; "
            "set jax.config.update('jax_enable_x64', True) to load it"
        )
    return array


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
