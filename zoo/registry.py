"""Name -> architecture. ``create`` makes a module, ``describe`` gives the JSON-able dict that makes it again.

An architecture registers itself in its own file::

    @register("lru", variants={"default": {}, "narrow": {"state_dim": 4}})
    class LRU(nn.Module): ...

``variants`` are named option sets. The laws (tests/laws) run over every variant of every registered mixer, and the
gallery (``python -m zoo``) lists them.
"""

import dataclasses
import importlib
from collections.abc import Callable, Mapping
from typing import Any

from zoo.checks import check_choice, nearest

KINDS = ("mixer", "model")


@dataclasses.dataclass(frozen=True)
class Entry:
    """One registered architecture.

    Attributes:
      name: registry name, e.g. ``"lstm"``.
      cls: the Flax module class; its dataclass fields are the whole configuration.
      kind: ``"mixer"`` ([B, T, D] -> [B, T, D]) or ``"model"`` (a whole model).
      variants: label -> options; each is a configuration that the laws are tested on.
      paper: where it comes from.
      summary: first line of the class docstring.
    """

    name: str
    cls: type
    kind: str
    variants: Mapping[str, Mapping[str, Any]]
    paper: str
    summary: str


_ENTRIES: dict[str, Entry] = {}


def register(
    name: str, *, kind: str = "mixer", variants: Mapping[str, Mapping[str, Any]] | None = None
) -> Callable[[type], type]:
    """Class decorator that enters a Flax module under ``name``.

    Raises:
      ValueError: the name is taken by another class, the kind is unknown, or the class lacks ``paper``.
    """
    check_choice("kind", kind, KINDS)

    def enter(cls: type) -> type:
        previous = _ENTRIES.get(name)
        if previous is not None and previous.cls.__qualname__ != cls.__qualname__:
            raise ValueError(f"the name {name!r} is already registered for {previous.cls.__qualname__}")
        if not isinstance(getattr(cls, "paper", None), str):
            raise ValueError(f"{cls.__qualname__} needs a class attribute paper: ClassVar[str]")
        summary = (cls.__doc__ or "").strip().splitlines()[0] if cls.__doc__ else ""
        _ENTRIES[name] = Entry(
            name, cls, kind, dict({"default": {}} if variants is None else variants), cls.paper, summary
        )
        return cls

    return enter


def _load() -> dict[str, Entry]:
    """Imports the rooms whose files register architectures."""
    importlib.import_module("zoo.mixers")
    importlib.import_module("zoo.models")
    return _ENTRIES


def list(kind: str | None = None) -> "tuple[str, ...]":
    """Returns the sorted names of all registered architectures, or of one ``kind`` ("mixer", "model")."""
    if kind is not None:
        check_choice("kind", kind, KINDS)
    return tuple(sorted(name for name, e in _load().items() if kind in (None, e.kind)))


def entry(name: str) -> Entry:
    """Returns the registration of ``name``; unknown names raise ValueError that gives the nearest ones."""
    entries = _load()
    if name not in entries:
        raise ValueError(f"unknown architecture {name!r}{nearest(name, entries)} (known: {', '.join(sorted(entries))})")
    return entries[name]


def create(name: str | Mapping[str, Any], **options: Any) -> Any:
    """Makes the module called ``name``.

    Args:
      name: a registered name, or a mapping with the key ``"name"`` and options, as ``describe`` returns.
      **options: fields of the module; they win over options in the mapping.

    Returns:
      A Flax module. ``create(describe(module)) == module``.

    Raises:
      ValueError: unknown name or option (the message gives the nearest one), or a value the module refuses.
    """
    cls, options = resolve(name, **options)
    return cls(**options)


def resolve(name: str | Mapping[str, Any], **options: Any) -> tuple[type, dict[str, Any]]:
    """Returns the class and the checked options that ``create`` would call it with."""
    if isinstance(name, Mapping):
        if "name" not in name:
            raise ValueError(f"a description needs the key 'name', got keys {sorted(name)}")
        options = {**{k: v for k, v in name.items() if k != "name"}, **options}
        name = name["name"]
    cls = entry(name).cls
    fields = {f.name: f for f in dataclasses.fields(cls) if f.name in _option_names(cls)}
    for option in options:
        if option not in fields:
            raise ValueError(f"{name} has no option {option!r}{nearest(option, fields)} (options: {', '.join(fields)})")
    unset = dataclasses.MISSING
    missing = [n for n, f in fields.items() if n not in options and f.default is unset and f.default_factory is unset]
    if missing:
        raise ValueError(f"{name} needs {', '.join(missing)}")
    return cls, {key: _from_json(value) for key, value in options.items()}


def describe(module: Any) -> dict[str, Any]:
    """Returns the JSON-able dict ``{"name": ..., option: value, ...}`` from which ``create`` makes an equal module.

    Raises:
      ValueError: the module's class is not registered.
    """
    for e in _load().values():
        if type(module) is e.cls:
            return {"name": e.name, **{f: _to_json(getattr(module, f)) for f in _option_names(e.cls)}}
    raise ValueError(f"{type(module).__name__} is not a registered architecture")


def _option_names(cls: type) -> "tuple[str, ...]":
    return tuple(f.name for f in dataclasses.fields(cls) if f.init and f.name not in ("parent", "name"))


def _to_json(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _to_json(v) for k, v in value.items()}
    if isinstance(value, tuple | set):
        return [_to_json(v) for v in value]
    return value


def _from_json(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _from_json(v) for k, v in value.items()}
    if hasattr(value, "__iter__") and not isinstance(value, str):
        return tuple(_from_json(v) for v in value)
    return value
