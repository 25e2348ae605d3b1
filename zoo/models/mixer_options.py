"""The same parameters under other options: changes how some mixers of a trained model run."""

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax.core import freeze

from zoo.models.stack import Stack, make_mixer, repeating_unit, runs
from zoo.registry import entry


def with_mixer_options(
    model: Any, params: Any, mixer: str, options: Mapping[str, Any], layers: Iterable[int] | None = None
) -> tuple[Any, Any]:
    """``model`` with ``options`` set on its mixers called ``mixer``, and ``params`` as that model wants them.

    The numbers are those of ``params``; where only some layers change, the layers that a stack scans over are other ones,
    and the arrays are put together anew. For options that declare no parameters of their own, e.g.::

        windowed, same = with_mixer_options(model, params, "mamba2", {"window": 8192})

    Args:
      model: a ``LanguageModel``, a ``Stack``, or any module with ``stack()`` whose parameters stand under "stack".
      params: its variables, {"params": ...}.
      mixer: a registered name.
      options: fields of that mixer.
      layers: indices of the layers that change, from the bottom; None: all layers with this mixer.

    Returns:
      (model, params).

    Raises:
      ValueError: an unknown option, no such mixer in the model, or a layer that is not one of it.
    """
    stack = model if isinstance(model, Stack) else model.stack()
    every = stack.layers()
    here = [i for i, spec in enumerate(every) if _name(spec) == mixer]
    if not here:
        raise ValueError(f"the model has no mixer {mixer!r} (it has: {', '.join(sorted({_name(s) for s in every}))})")
    chosen = here if layers is None else tuple(layers)
    if not set(chosen) <= set(here):
        raise ValueError(f"layers must be among {here}, the layers with {mixer}, got {sorted(chosen)}")
    changed = [
        freeze({**({"name": spec} if isinstance(spec, str) else spec), **options}) if i in chosen else spec
        for i, spec in enumerate(every)
    ]
    for i in chosen[:1]:
        make_mixer(changed[i], stack.dim, stack.dtype)  # refuses an unknown option by name
    model = model.clone(pattern=tuple(changed), depth=len(changed))
    target = model if isinstance(model, Stack) else model.stack()
    inner = params["params"] if isinstance(model, Stack) else params["params"]["stack"]
    inner = {**inner, "layers": _regroup(inner["layers"], stack.layers(), target.layers())}
    whole = inner if isinstance(model, Stack) else {**params["params"], "stack": inner}
    return model, {**params, "params": whole}


def _name(spec: Any) -> str:
    name = spec if isinstance(spec, str) else spec["name"]
    return entry(name).name


def _regroup(layers: Mapping[str, Any], source: tuple, target: tuple) -> Mapping[str, Any]:
    """Parameters {run_0: ...} of a stack of ``source`` mixers as those of a stack of ``target`` mixers, as many."""
    unit, count = repeating_unit(source)
    each: list[Any] = []
    for repetition in range(count):
        for i, (_, length) in enumerate(runs(unit)):
            own = jax.tree.map(lambda a, r=repetition: a[r], layers[f"run_{i}"])
            each += [own] if length == 1 else [jax.tree.map(lambda a, n=n: a[n], own) for n in range(length)]
    unit, count = repeating_unit(target)
    grouped: dict[str, Any] = {}
    start = 0
    for i, (_, length) in enumerate(runs(unit)):
        rows = [
            _stacked(each[r * len(unit) + start : r * len(unit) + start + length]) if length > 1
            else each[r * len(unit) + start]
            for r in range(count)
        ]  # fmt: skip
        grouped[f"run_{i}"] = _stacked(rows)
        start += length
    return grouped


def _stacked(trees):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)
