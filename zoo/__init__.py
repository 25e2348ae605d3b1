"""A functional zoo of recurrent and recursive sequence models in JAX and Flax.

Every architecture is a pure function ``(params, x, state) -> (y, state)``, and cutting the sequence anywhere does not
change the answer::

    model = zoo.create("lstm", dim=64)
    params = model.init(key, x)
    y, state = model.apply(params, x)                # x: [batch, time, 64], the whole sequence at once
    y1, state = model.apply(params, x1, state)       # ... or in pieces, down to one token at a time

Rooms: ``zoo.scans`` (recurrences as functions of arrays), ``zoo.mixers`` (one file per architecture), ``zoo.layers``,
``zoo.models``, ``zoo.decoding``, ``zoo.training``, ``zoo.tasks``, ``zoo.analysis``, ``zoo.interchange``.
``python -m zoo`` prints the gallery.
"""

import importlib
from typing import Any

from zoo.registry import create, describe, list, register

__version__ = "0.1.0"

_ROOMS = (
    "analysis", "checks", "decoding", "dtypes", "interchange", "layers", "mixers", "models", "scans", "tasks",
    "training",
)  # fmt: skip
_SHORTCUTS = {
    "LanguageModel": "models",
    "SequenceClassifier": "models",
    "EncoderDecoder": "models",
    "generate": "decoding",
    "beam_search": "decoding",
    "stream_log_likelihood": "decoding",
    "continue_stream": "decoding",
    "save": "interchange",
    "load": "interchange",
    "load_pretrained": "interchange",
    "save_pretrained": "interchange",
}

__all__ = ["create", "describe", "list", "register", *_ROOMS, *_SHORTCUTS]  # noqa: PLE0604  (tuples of strings)


def __getattr__(name: str) -> Any:
    """Imports rooms and shortcuts on first use, so that ``import zoo`` stays cheap."""
    if name in _SHORTCUTS:
        return getattr(importlib.import_module(f"zoo.{_SHORTCUTS[name]}"), name)
    if name in _ROOMS:
        return importlib.import_module(f"zoo.{name}")
    raise AttributeError(f"module 'zoo' has no attribute {name!r}")


def __dir__() -> "list[str]":
    return sorted(__all__)
