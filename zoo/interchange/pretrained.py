"""Checkpoints of other libraries: safetensors files with a config.json, in and out.

    model, params = zoo.load_pretrained("some/folder")          # or a name on the Hugging Face hub
    logits, state = model.apply(params, tokens)
    zoo.save_pretrained(model, params, "another/folder", layout="mamba2")

What comes back is a ``zoo.LanguageModel`` over the zoo's own mixers; nothing of the other library is needed. Layouts are
in ``zoo.interchange.layouts``. Nothing is half loaded: the configuration is read field by field, keys, shapes and dtypes
of all tensors are compared from the files' headers before any memory is taken, and one error names all that is wrong.
Pickles are never opened.
"""

import functools
import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import traverse_util

from zoo.checks import check_choice
from zoo.interchange.config import Config, read_json
from zoo.interchange.folders import written_whole
from zoo.interchange.layouts import LAYOUTS, Layout, Weight
from zoo.interchange.layouts.base import foreign_shape
from zoo.interchange.tensor_files import FLOATING, TensorArrays, TensorFiles, write_tensors
from zoo.models import LanguageModel
from zoo.models.stack import make_mixer

CONFIG, TOKENIZER = "config.json", "tokenizer.json"
_WIDTHS = ("dt_rank", "head_dim", "kv_heads", "key_heads", "key_dim", "value_dim", "inner_dim", "hidden_dim")
LISTED = 8  # keys of one kind that an error lists


def load_pretrained(
    path_or_name: str | os.PathLike,
    *,
    dtype: str = "float32",
    max_length: int | None = None,
    remat: bool = False,
    revision: str | None = None,
    ignore_fields: Iterable[str] = (),
) -> tuple[LanguageModel, dict[str, Any]]:
    """Loads a language model from a folder with config.json and safetensors files, or from the Hugging Face hub.

    Args:
      path_or_name: a folder; or, where there is no such folder, a name on the hub such as "state-spaces/mamba-130m-hf",
        which needs the package huggingface_hub (extra [hub]).
      dtype: compute dtype of the model; parameters are float32 (float64 where the file has it and JAX runs with 64 bits).
      max_length: attention windows, and with them caches, are cut to this; None: the checkpoint's largest context.
      remat: see ``zoo.LanguageModel``.
      revision: branch, tag or commit on the hub.
      ignore_fields: fields of config.json that are known to change nothing.

    Returns:
      (model, params): ``model.apply(params, tokens) -> (logits, state)``.

    Raises:
      FileNotFoundError: no such folder, or a file in it is missing.
      ImportError: safetensors, or for a name huggingface_hub, is not installed.
      ValueError: the configuration is of an unknown type, has unknown or wrong fields; files are damaged; tensors are
        missing, too many, of wrong shapes or dtypes, or hold NaN. The message names file and key.
    """
    folder = _folder(path_or_name, revision)
    source = folder / CONFIG
    if not source.is_file():
        raise FileNotFoundError(f"{folder} has no {CONFIG}")
    fields = read_json(source)
    with TensorFiles(folder) as files:
        model, params = _read(fields, str(source), files, str(folder), ignore_fields)
    if max_length is not None:
        model = _shorter(model, max_length)
    return model.clone(dtype=dtype, remat=remat), params


def import_weights(
    config: Mapping[str, Any], arrays: Mapping[str, np.ndarray], *, ignore_fields: Iterable[str] = ()
) -> tuple[LanguageModel, dict[str, Any]]:
    """As ``load_pretrained``, from a configuration and arrays in memory.

    Args:
      config: the fields of config.json.
      arrays: key -> floating-point array, a state dict's values as NumPy.
      ignore_fields: fields of ``config`` that are known to change nothing.
    """
    return _read(config, "config", TensorArrays(arrays, "arrays"), "arrays", ignore_fields)


def export_weights(
    model: LanguageModel, params: Mapping[str, Any], *, layout: str
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """(config.json's fields, key -> array) of a model in another library's layout; see ``save_pretrained``."""
    check_choice("layout", layout, LAYOUTS)
    chosen = LAYOUTS[layout]
    eps = 1e-6 if model.norm_eps is None else model.norm_eps
    plain = model.clone(dtype="float32", remat=False, dropout=0.0, norm_eps=eps)
    fields = chosen.config(plain)
    again = chosen.model(Config(fields, f"layout {layout!r}"))
    _check_expressed(layout, plain, again)
    if plain.stack().places() != again.stack().places():
        raise ValueError(
            f"layout {layout!r} stacks these layers differently; write pattern and mlp as their shortest cycles"
        )
    shapes = _parameter_shapes(plain, f"layout {layout!r}")
    given = traverse_util.flatten_dict(dict(params.get("params", {})))
    if {k: tuple(v.shape) for k, v in given.items()} != shapes:
        wrong = sorted("/".join(k) for k in set(given) ^ set(shapes)) or ["shapes differ"]
        raise ValueError(f"params are not those of this model: {', '.join(wrong[:LISTED])}")
    arrays = {}
    for weight in chosen.weights(again, frozenset()):
        parts = [np.asarray(given[place.path][place.index]) for place in weight.places]
        arrays[weight.key] = np.asarray(weight.transform.theirs(parts))
    return fields, arrays


def _read(
    fields: Mapping[str, Any], source: str, files: TensorFiles | TensorArrays, place: str, ignore_fields: Iterable[str]
) -> tuple[LanguageModel, dict[str, Any]]:
    """Model and variables; ``source`` and ``place`` are what messages call the configuration and the tensors."""
    layout = _layout_of(fields, source)
    config = Config(fields, source)
    depth = config.size(layout.depth_field)
    if depth > len(files.shapes):
        raise config.error(layout.depth_field, f"at most the number of tensors, {len(files.shapes)}", depth)
    model = layout.model(config)
    config.finish(ignore_fields)
    shapes = _parameter_shapes(model, source)
    weights = _match(layout, model, shapes, files, place)
    return model, {"params": traverse_util.unflatten_dict(_fill(weights, shapes, files))}


def save_pretrained(
    model: LanguageModel,
    params: Mapping[str, Any],
    path: str | os.PathLike,
    *,
    layout: str,
    dtype: str = "float32",
    shard_bytes: int = 5 * 10**9,
    overwrite: bool = False,
) -> Path:
    """Saves a language model so that other libraries load it: config.json and safetensors files.

    Args:
      model: a language model that the layout can express.
      params: its variables, ``{"params": ...}``.
      path: folder to make; it appears whole or not at all.
      layout: one of ``zoo.interchange.LAYOUTS``, such as "mamba2" or "llama".
      dtype: storage dtype: "float32", "bfloat16", "float16" or "float64".
      shard_bytes: largest size of one file, where a single tensor is not larger.
      overwrite: replace a folder saved before.

    Returns:
      The folder.

    Raises:
      FileExistsError: ``path`` exists and ``overwrite`` is False, or it holds something else.
      ValueError: unknown layout or dtype, a model that the layout cannot express, or parameters that are not the model's.
    """
    path = Path(path)
    check_choice("dtype", dtype, tuple(FLOATING.values()))
    fields, arrays = export_weights(model, params, layout=layout)
    arrays = {key: array.astype(jnp.dtype(dtype)) for key, array in arrays.items()}
    with written_whole(path, overwrite=overwrite, marker=CONFIG, kind="saved checkpoint") as folder:
        (folder / CONFIG).write_text(json.dumps({**fields, "dtype": dtype}, indent=2) + "\n")
        write_tensors(folder, arrays, shard_bytes=shard_bytes)
    return path


def load_tokenizer(path_or_name: str | os.PathLike, *, revision: str | None = None) -> Any:
    """The ``tokenizers.Tokenizer`` in the tokenizer.json of a checkpoint's folder or name.

    Raises:
      FileNotFoundError: there is no tokenizer.json.
      ImportError: the package tokenizers is not installed.
      ValueError: the file is damaged.
    """
    try:
        import tokenizers
    except ImportError as error:
        raise ImportError("tokenizers need the package: pip install 'scanzoo[hub]'") from error
    source = _folder(path_or_name, revision) / TOKENIZER
    if not source.is_file():
        raise FileNotFoundError(f"{source.parent} has no {TOKENIZER}")
    try:
        return tokenizers.Tokenizer.from_file(str(source))
    except Exception as error:  # the package raises bare Exception
        raise ValueError(f"{source} is damaged: {error}") from error


def _folder(path_or_name: str | os.PathLike, revision: str | None) -> Path:
    path = Path(path_or_name)
    if path.is_dir():
        return path
    name = os.fspath(path_or_name)
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) or name.startswith((".", "/")):
        raise FileNotFoundError(f"there is no folder {name}")
    try:
        import huggingface_hub
    except ImportError as error:
        raise ImportError(
            f"there is no folder {name}; names on the hub need the package: pip install 'scanzoo[hub]'"
        ) from error
    patterns = ["*.safetensors", "*.safetensors.index.json", CONFIG, TOKENIZER]
    return Path(huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=patterns))


def _layout_of(fields: Mapping[str, Any], source: str) -> Layout:
    for layout in LAYOUTS.values():
        if layout.reads(dict(fields)):
            return layout
    raise ValueError(
        f"{source} has model_type {str(fields.get('model_type'))[:80]!r}, which is not known "
        f"(known: {', '.join(LAYOUTS)})"
    )


def _parameter_shapes(model: LanguageModel, source: str) -> dict[tuple[str, ...], tuple[int, ...]]:
    """path -> shape of every parameter, without making any."""
    try:
        variables = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 1), jnp.int32))
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(f"{source} describes a model that cannot be: {error}") from error
    return {path: tuple(leaf.shape) for path, leaf in traverse_util.flatten_dict(dict(variables["params"])).items()}


def _match(
    layout: Layout, model: LanguageModel, shapes: dict, files: TensorFiles | TensorArrays, place: str
) -> dict[str, Weight]:
    """Key in the files -> weight; ValueError that names every key that is missing, too many or of a wrong shape or dtype."""
    bare = not any(key.startswith(layout.prefix) for key in files.shapes)  # some files lack the outer name

    def present(key):
        return key.removeprefix(layout.prefix) if bare else key

    full = {layout.prefix + key if bare and key != layout.tied else key for key in files.shapes}
    wanted = {present(weight.key): weight for weight in layout.weights(model, frozenset(full))}
    extra = set(files.shapes) - set(wanted)
    extra = {key for key in extra if not any(re.fullmatch(pattern, key) for pattern in layout.ignore)}
    if model.tie_embeddings and layout.tied in extra:
        if not np.array_equal(files.read(layout.tied), files.read(present(layout.embedding))):
            raise ValueError(
                f"{files.where(layout.tied)}: {layout.tied} differs from the embeddings, though {CONFIG} ties the two"
            )
        extra.remove(layout.tied)
    problems = {"missing": sorted(set(wanted) - set(files.shapes)), "not expected": sorted(extra), "wrong": []}
    for key, weight in wanted.items():
        if key in files.shapes:
            want = foreign_shape(weight, shapes)
            if files.shapes[key] != want:
                problems["wrong"].append(f"{key} has shape {list(files.shapes[key])}, expected {list(want)}")
            elif files.dtypes[key] not in FLOATING:
                problems["wrong"].append(f"{key} is {files.dtypes[key]}, expected one of {', '.join(FLOATING)}")
    lines = [
        f"{kind}: {', '.join(keys[:LISTED])}{f' and {len(keys) - LISTED} more' if len(keys) > LISTED else ''}"
        for kind, keys in problems.items()
        if keys
    ]
    if lines:
        raise ValueError(f"the tensors in {place} are not those that its {CONFIG} describes; " + "; ".join(lines))
    return wanted


def _fill(
    weights: Mapping[str, Weight], shapes: dict, files: TensorFiles | TensorArrays
) -> dict[tuple[str, ...], jax.Array]:
    """The zoo's parameters by path."""
    arrays: dict[tuple[str, ...], np.ndarray] = {}
    for key, weight in weights.items():
        value = files.read(key)
        targets = [shapes[place.path][len(place.index) :] for place in weight.places]
        for place, part in zip(weight.places, weight.transform.ours(value, targets)):
            if place.path not in arrays:
                arrays[place.path] = np.empty(shapes[place.path], part.dtype)
            arrays[place.path][place.index] = part
    return {path: jnp.asarray(arrays.pop(path)) for path in list(arrays)}


def _shorter(model: LanguageModel, max_length: int) -> LanguageModel:
    """``model`` with attention windows of at most ``max_length``."""
    if isinstance(max_length, bool) or not isinstance(max_length, int) or max_length < 1:
        raise ValueError(f"max_length must be a positive integer or None, got {max_length!r}")

    def cut(spec):
        if isinstance(spec, str) or "window" not in spec:
            return spec
        return {**spec, "window": min(spec["window"], max_length)}

    return model.clone(pattern=tuple(cut(spec) for spec in model.pattern))


@functools.singledispatch
def _comparable(value: Any) -> Any:
    """Values of fields without the difference between a tuple and a list, or a dict and a frozen one."""
    return value


@_comparable.register(tuple)
@_comparable.register(list)
def _(value: Any) -> Any:
    return [_comparable(v) for v in value]


@_comparable.register(Mapping)
def _(value: Any) -> Any:
    return {k: _comparable(v) for k, v in value.items()}


def _check_expressed(layout: str, model: LanguageModel, again: LanguageModel) -> None:
    """ValueError that names what the layout's configuration cannot say about ``model``."""
    # A depth of a pattern can be written in several ways; the layers are what counts.
    given, read = ([_resolved(model, *block) for block in m.stack().blocks()] for m in (model, again))
    if len(given) == len(read):
        given = [(_with_widths(mixer, other), mlp) for (mixer, mlp), (other, _) in zip(given, read)]
    fields = {f for f in type(model).__dataclass_fields__ if f not in ("parent", "name", "pattern", "mlp", "depth")}
    differ = [f for f in sorted(fields) if _comparable(getattr(model, f)) != _comparable(getattr(again, f))]
    if given != read:
        differ.append("pattern or mlp")
    if differ:
        raise ValueError(
            f"layout {layout!r} cannot express this model: "
            + ", ".join(f"{f}={getattr(model, f, None)!r}" if f != "pattern or mlp" else f for f in differ)
        )


def _with_widths(mixer: nn.Module, other: nn.Module) -> nn.Module:
    """``mixer`` with the widths that it computes from others (its None) written out, as ``other`` has them."""
    if type(mixer) is not type(other):
        return mixer
    unset = [f for f in _WIDTHS if getattr(mixer, f, 0) is None]
    return mixer.clone(**{f: getattr(other, f) for f in unset})


def _resolved(model: LanguageModel, mixer: Any, mlp: Any) -> tuple[Any, Any]:
    """The mixer as a module and the feed-forward layer as a mapping: equal things written differently become equal."""
    mlp = {"name": mlp} if isinstance(mlp, str) else dict(mlp)
    return make_mixer(mixer, model.dim, "float32"), mlp
