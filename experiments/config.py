"""Typed overrides: ``--set=training.steps=10`` on a frozen dataclass, checked against the field's annotation.

A path walks through nested dataclasses by field name, through tuples by index and through mappings by key. A value is
read by the type of the field: numbers, booleans (true/false), strings as they are, ``None``, tuples as JSON lists or
comma-separated, mappings and nested dataclasses as JSON objects.
"""

import collections.abc
import dataclasses
import json
import math
import numbers
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any

from experiments.errors import UsageError
from zoo.checks import nearest


def parse_settings(settings: Iterable[str]) -> dict[str, str]:
    """``["training.steps=10", ...]`` as a mapping; UsageError for an entry without ``=`` or without a name."""
    result = {}
    for setting in settings:
        path, equals, value = setting.partition("=")
        if not equals or not path.strip():
            raise UsageError(f"--set={setting} must have the form --set=NAME=VALUE, e.g. --set=training.steps=10")
        result[path.strip()] = value
    return result


def override(config: Any, overrides: Mapping[str, Any]) -> Any:
    """Returns ``config`` with the fields at the dotted paths replaced.

    Args:
      config: a frozen dataclass.
      overrides: dotted path -> value; strings are read by the field's type, other values must already fit it.

    Raises:
      UsageError: a path that does not exist (the message names the nearest), or a value that does not fit.
    """
    for path, value in overrides.items():
        try:
            config = _replace(config, path.split("."), value, "")
        except UsageError as error:
            raise UsageError(f"--set={path}={value}: {error}") from None
        except (ValueError, TypeError) as error:  # refused by the dataclass itself
            raise UsageError(f"--set={path}={value}: {first_line(error)}") from error
    return config


def plain(value: Any) -> Any:
    """``value`` as JSON-able lists, dicts, numbers and strings."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return str(value)


def flat(config: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted path -> value of every leaf of a ``plain`` configuration."""
    if isinstance(config, dict) and config:
        return {k: v for name, value in config.items() for k, v in flat(value, f"{prefix}{name}.").items()}
    return {prefix.rstrip("."): config}


def first_line(error: BaseException) -> str:
    """The message of an exception on one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _replace(node: Any, path: list[str], value: Any, above: str) -> Any:
    """``node`` with the part at ``path`` replaced; ``above`` is the dotted path of ``node``, for messages."""
    name, rest = path[0], path[1:]
    here = f"{above}.{name}" if above else name
    if dataclasses.is_dataclass(node):
        names = [f.name for f in dataclasses.fields(node) if f.init]
        if name not in names:
            where = f"{above} has no field" if above else "no field"
            raise UsageError(f"{where} {name!r}{_nearest_path(name, names, above)} (fields: {', '.join(names)})")
        annotation = typing.get_type_hints(type(node)).get(name, Any)
        old = getattr(node, name)
        new = _replace(old, rest, value, here) if rest else read(annotation, value, old)
        return dataclasses.replace(node, **{name: new})
    if isinstance(node, tuple):
        if not name.lstrip("-").isdigit() or not -len(node) <= int(name) < len(node):
            raise UsageError(
                f"{above} is a list of {len(node)}; {name!r} is not one of its positions 0 to {len(node) - 1}"
            )
        index = int(name)
        old = node[index]
        new = _replace(old, rest, value, here) if rest else read(_kind_of(old), value, old)
        return tuple(new if i == index % len(node) else v for i, v in enumerate(node))
    if isinstance(node, Mapping):
        old = node.get(name)
        if rest and name not in node:
            raise UsageError(
                f"{above} has no entry {name!r}{nearest(name, node)} (entries: {', '.join(map(str, node))})"
            )
        new = _replace(old, rest, value, here) if rest else read(_kind_of(old), value, old)
        return {**node, name: new}
    raise UsageError(f"{above} is {node!r} and has no parts, so {here} does not exist")


def _kind_of(value: Any) -> Any:
    """The type by which a value without annotation (in a tuple or mapping) is replaced."""
    return type(value) if isinstance(value, bool | int | float | str) else Any


def _nearest_path(name: str, names: list[str], above: str) -> str:
    return nearest(name, names).replace("'", f"'{above}.", 1) if above else nearest(name, names)


def read(annotation: Any, value: Any, old: Any = None) -> Any:
    """``value`` as ``annotation`` wants it: text is parsed, other objects are checked.

    ``old`` is the present value, completed by a JSON object when the field is a dataclass.
    """
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    text = value if isinstance(value, str) else None
    if annotation is Any:
        return _json(text) if text is not None else _tuples(value)
    if origin in (typing.Union, types.UnionType):
        return _read_union(arguments, value, old)
    if annotation is type(None):
        if value is None or (text is not None and text.lower() in ("none", "null")):
            return None
    elif origin is typing.Literal:
        for choice in arguments:
            if value == choice or text == str(choice):
                return choice
        choices = [str(c) for c in arguments]
        raise UsageError(f"{value!r} is not one of {', '.join(choices)}{nearest(value, choices)}")
    elif annotation is bool:
        if isinstance(value, bool):
            return value
        if text is not None and text.lower() in ("true", "false"):
            return text.lower() == "true"
        hint = nearest(text.lower(), ("true", "false")) if text else ""
        raise UsageError(f"expected true or false, got {value!r}{hint}")
    elif annotation is int:
        return _read_number(int, value, "an integer")
    elif annotation is float:
        return _read_number(float, value, "a number")
    elif annotation is str:
        if text is not None:
            return text
    elif annotation is tuple or origin is tuple:
        return _read_tuple(arguments, value)
    elif dataclasses.is_dataclass(annotation):
        return _read_dataclass(annotation, value, old)
    elif annotation in (dict, Mapping) or origin in (dict, collections.abc.Mapping):
        value = _json(text) if text is not None else value
        if isinstance(value, Mapping):
            kind = arguments[1] if len(arguments) == 2 else Any
            return {k: read(kind, v) for k, v in value.items()}
    elif isinstance(annotation, type) and isinstance(value, annotation):
        return value
    raise UsageError(f"expected {_describe(annotation)}, got {value!r}")


def _read_number(kind: type, value: Any, name: str) -> Any:
    try:
        wanted = numbers.Integral if kind is int else numbers.Real
        if isinstance(value, bool) or not isinstance(value, str | wanted):
            raise ValueError
        number = kind(value)
    except (ValueError, TypeError):
        raise UsageError(f"expected {name}, got {value!r}") from None
    if kind is float and math.isnan(number):
        raise UsageError("expected a number, got NaN")
    return number


def _read_union(members: tuple, value: Any, old: Any) -> Any:
    """The first member that the value fits; str last, because it fits every text."""
    order = sorted(members, key=lambda m: (m is str, m is not type(None)))
    messages = []
    for member in order:
        try:
            return read(member, value, old)
        except UsageError as error:
            messages.append(str(error))
    if len(messages) == 2 and type(None) in members:
        kind = next(m for m in members if m is not type(None))
        if not isinstance(kind, type) or kind not in (int, float, str, bool):
            raise UsageError(messages[1])
    raise UsageError(f"expected {' or '.join(_describe(m) for m in members)}, got {value!r}")


def _read_tuple(arguments: tuple, value: Any) -> tuple:
    if isinstance(value, str):
        stripped = value.strip()
        if stripped in ("", "()"):
            value = []
        elif stripped[0] == "[" and stripped[-1] == "]":
            value = _json(stripped)
        else:
            value = [part.strip() for part in stripped.split(",")]
    if not isinstance(value, list | tuple):
        raise UsageError(f"expected a list such as [1, 2] or 1,2, got {value!r}")
    if not arguments:
        return tuple(read(Any, v) for v in value)
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        return tuple(read(arguments[0], v) for v in value)
    if len(value) != len(arguments):
        raise UsageError(f"expected {len(arguments)} values, got {len(value)}")
    return tuple(read(kind, v) for kind, v in zip(arguments, value))


def _read_dataclass(cls: type, value: Any, old: Any) -> Any:
    if isinstance(value, cls):
        return value
    value = _json(value) if isinstance(value, str) else value
    if not isinstance(value, Mapping):
        raise UsageError(f"expected a JSON object of {cls.__name__} fields, or a path below it, got {value!r}")
    result = old if isinstance(old, cls) else cls()
    for name, part in value.items():
        result = _replace(result, [name], part, "")
    return result


def _json(text: str) -> Any:
    """``text`` as JSON, with tuples for lists; text that is not JSON stays text."""
    try:
        return _tuples(json.loads(text))
    except json.JSONDecodeError:
        return None if text == "None" else text


def _tuples(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _tuples(v) for k, v in value.items()}
    return tuple(_tuples(v) for v in value) if isinstance(value, list | tuple) else value


def _describe(annotation: Any) -> str:
    names = {int: "an integer", float: "a number", str: "text", bool: "true or false", type(None): "None"}
    if annotation in names:
        return names[annotation]
    if typing.get_origin(annotation) is tuple or annotation is tuple:
        return "a list"
    if typing.get_origin(annotation) is collections.abc.Mapping or annotation in (dict, Mapping):
        return "a JSON object"
    return getattr(annotation, "__name__", str(annotation))
