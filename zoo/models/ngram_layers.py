"""Static n-gram heads put into a stack as layers of their own."""

from collections.abc import Mapping
from typing import Any

from zoo.checks import check_positive
from zoo.models.stack import Spec, Stack


def with_ngram_heads(
    ngram_layers: Mapping[int, int],
    *,
    pattern: tuple[Spec, ...],
    depth: int | None = None,
    mlp: Spec | tuple[Spec, ...] = "swiglu",
    vocab_size: int | None = None,
    window: int | None = None,
    pad: int | None = None,
) -> dict[str, Any]:
    """The fields ``pattern``, ``depth`` and ``mlp`` of a stack with n-gram heads between the layers of another.

    ::

        LanguageModel(vocab_size=20, dim=64, **with_ngram_heads({1: 1, 2: 2}, pattern=("lru",), depth=2, vocab_size=20))

    is lru, NGH(1), NGH(2), lru. An n-gram head stands without an MLP: h + NGH(norm(h)), as in Akyurek et al. (2024).

    Args:
      ngram_layers: index in the new stack, from the bottom -> order n of the head there.
      pattern, depth, mlp: of the stack without heads.
      vocab_size, window, pad: of ``zoo.mixers.NGramHead``; one of the first two is needed.

    Raises:
      ValueError: an index beyond the new stack, or an order below 1.
    """
    layers = list(Stack(dim=1, pattern=pattern, depth=depth, mlp=mlp, parent=None).blocks())
    total = len(layers) + len(ngram_layers)
    options = {"vocab_size": vocab_size, "window": window, "pad": pad}
    for index, order in sorted(ngram_layers.items()):
        if not 0 <= index < total:
            raise ValueError(f"ngram_layers has index {index}, but the stack with heads has layers 0 to {total - 1}")
        check_positive("the order of an n-gram head", order)
        head = {"name": "ngram_head", "order": order, **{k: v for k, v in options.items() if v is not None}}
        layers.insert(index, (head, "none"))
    mixers, mlps = zip(*layers, strict=True)
    return {"pattern": mixers, "depth": total, "mlp": mlps}
