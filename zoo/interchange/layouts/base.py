"""What a layout of foreign weights is: which model a configuration means, and where every tensor goes.

A layout file lists ``Weight`` entries: the foreign key, the places in the zoo's parameters that it fills, and how one
is turned into the other, both ways. Torch's linear maps are [out, in], the zoo's [in, out].
"""

import dataclasses
from collections.abc import Callable, Sequence, Set
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from zoo.interchange.config import Config
from zoo.models import LanguageModel

Parts = Sequence[Any]


@dataclasses.dataclass(frozen=True)
class Place:
    """A slice of the zoo's parameters: the leaf at ``path`` (keys from the top), at ``index`` of its leading axes."""

    path: tuple[str, ...]
    index: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Transform:
    """How a foreign tensor and the zoo's arrays are turned into each other.

    Attributes:
      ours: foreign array -> list of the zoo's arrays, one per place.
      theirs: list of the zoo's arrays -> foreign array. Written with methods and jax.numpy, so that shapes can be traced.
    """

    ours: Callable[[np.ndarray, Sequence[tuple[int, ...]]], Parts]
    theirs: Callable[[Parts], Any]


SAME = Transform(lambda a, _: [a], lambda p: p[0])
LINEAR = Transform(lambda a, _: [a.T], lambda p: p[0].T)  # [out, in]
CONV = Transform(lambda a, _: [a[:, 0].T], lambda p: p[0].T[:, None])  # depthwise, [channels, 1, taps]
HEADS_OUT = Transform(  # [heads * head_dim, in] for [in, heads, head_dim]
    lambda a, shapes: [a.T.reshape(shapes[0])], lambda p: p[0].reshape(p[0].shape[0], -1).T
)
HEADS_IN = Transform(  # [out, heads * head_dim] for [heads, head_dim, out]
    lambda a, shapes: [a.T.reshape(shapes[0])], lambda p: p[0].reshape(-1, p[0].shape[-1]).T
)
FLAT = Transform(lambda a, shapes: [a.reshape(shapes[0])], lambda p: p[0].reshape(-1))
ONE_MORE = Transform(lambda a, _: [a + 1], lambda p: p[0] - 1)  # norms that scale by 1 + weight


@dataclasses.dataclass(frozen=True)
class Weight:
    """A foreign tensor: its key, the places it fills, and the transform between them."""

    key: str
    places: tuple[Place, ...]
    transform: Transform = SAME


@dataclasses.dataclass(frozen=True)
class Layout:
    """A family of foreign checkpoints.

    Attributes:
      name: as given to ``save_pretrained(layout=...)``.
      reads: whether a configuration (its fields) is of this family.
      model: configuration -> the model it means; reads every field that matters.
      config: model -> the fields of its configuration, "model_type" and "architectures" included.
      weights: (model, the keys of the file; empty when saving) -> every tensor.
      depth_field: the field with the number of layers, checked against the number of tensors before anything is built.
      prefix: of the keys; a file whose keys lack it is read too.
      tied: key of the output matrix, a copy of the embeddings' in some files though the two are tied.
      embedding: key of the embeddings.
      ignore: regular expressions of keys without effect (buffers that some versions stored).
    """

    name: str
    reads: Callable[[dict[str, Any]], bool]
    model: Callable[[Config], LanguageModel]
    config: Callable[[LanguageModel], dict[str, Any]]
    weights: Callable[[LanguageModel, Set[str]], list[Weight]]
    depth_field: str
    prefix: str
    tied: str = "lm_head.weight"
    embedding: str = ""
    ignore: tuple[str, ...] = ()


def of_type(model_type: str) -> Callable[[dict[str, Any]], bool]:
    """``Layout.reads`` of a configuration with this "model_type"."""
    return lambda fields: fields.get("model_type") == model_type


def layer_places(model: LanguageModel) -> list[Callable[..., tuple[Place, ...]]]:
    """One function per layer, bottom to top: names under the block, such as ``("mixer", "A_log")`` -> its place."""

    def function(run: str, index: tuple[int, ...]) -> Callable[..., tuple[Place, ...]]:
        return lambda *names: (Place(("stack", "layers", run, *names), index),)

    return [function(run, index) for run, index in model.stack().places()]


def outer_weights(
    model: LanguageModel,
    embedding: str,
    norm: str,
    *,
    bias: bool = False,
    scale: Transform = SAME,
    output: str = "lm_head.weight",
) -> list[Weight]:
    """Embeddings, final norm (its scale by the transform ``scale``, its bias) and, unless tied, the matrix ``output``."""
    found = [
        Weight(embedding, (Place(("embedding",)),)),
        Weight(f"{norm}.weight", (Place(("stack", "final_norm", "scale")),), scale),
    ]
    if bias:
        found.append(Weight(f"{norm}.bias", (Place(("stack", "final_norm", "bias")),)))
    if not model.tie_embeddings:
        found.append(Weight(output, (Place(("output", "kernel")),), LINEAR))
    return found


def options_of(spec: Any, name: str) -> dict[str, Any]:
    """The options of a mixer's specification; ValueError if it is another mixer than ``name``."""
    options = {"name": spec} if isinstance(spec, str) else dict(spec)
    if options.pop("name") != name:
        raise ValueError(f"this layout holds {name} layers, the model has {spec}")
    return options


def stacked(parts: Parts, axis: int) -> Any:
    """Concatenation that NumPy arrays and traced shapes both go through."""
    return jnp.concatenate(list(parts), axis=axis)


def foreign_shape(weight: Weight, shapes: dict[tuple[str, ...], tuple[int, ...]]) -> tuple[int, ...]:
    """Shape of the foreign tensor that the zoo's parameters of these ``shapes`` (by path) ask for."""
    parts = [jax.ShapeDtypeStruct(shapes[p.path][len(p.index) :], jnp.float32) for p in weight.places]
    return tuple(jax.eval_shape(lambda *p: weight.transform.theirs(p), *parts).shape)
