"""Folders that appear whole or not at all."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def written_whole(path: Path, *, overwrite: bool, marker: str, kind: str) -> Iterator[Path]:
    """Yields an empty folder beside ``path``; what is written there becomes ``path``, flushed to the disk.

    Args:
      path: folder to make; its parent must exist.
      overwrite: replace a folder of this kind; the old one stays whole until the new one is.
      marker: the file by which such a folder is known.
      kind: what it is called in messages.

    Raises:
      FileExistsError: ``path`` exists and ``overwrite`` is False, or it is something else.
      FileNotFoundError: the parent folder does not exist.
    """
    if path.exists() or path.is_symlink():
        if not overwrite:
            raise FileExistsError(f"{path} exists; choose another path, or pass overwrite=True to replace a {kind}")
        if not (path / marker).is_file():
            raise FileExistsError(f"{path} exists and is not a {kind} ({marker} is missing): not overwritten")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"the folder {path.parent} does not exist, so {path.name} cannot be saved in it")
    work = Path(tempfile.mkdtemp(prefix=f".{path.name}.saving-", dir=path.parent))
    try:
        new = work / "new"
        new.mkdir()
        yield new
        for place in (*new.iterdir(), new):
            flush(place)
        if path.exists():
            path.rename(work / "old")
        try:
            new.rename(path)
        except OSError:
            if (work / "old").exists():
                (work / "old").rename(path)
            raise
        flush(path.parent)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def flush(path: Path) -> None:
    """Forces a file, or the entries of a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
