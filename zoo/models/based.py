"""Language models of Based and JRT-RNN: short convolutions, with linear attention and sliding windows at some layers.

Arora et al. (2024), Based, arXiv 2402.18668, and Just Read Twice, arXiv 2407.05483. Every block is pre-norm (RMS) with a
SwiGLU of inner width 2 D. The published models, GPT-2's vocabulary padded to a multiple of 8:

    name          layers   D      linear attention at             sliding window of 256 at
    jrt-360m      26       1024   1, 6, 11, 16, 21                2, 7, 12, 17, 22
    based-360m    27       1024   the same, with decay            the same
    jrt-1.3b      36       1792   1, 6, 11, 16, 21, 27, 33        2, 7, 12, 17, 22, 28, 34
    based-1.3b    36       1792   the same                        the same

all others BaseConv; 16 heads, feature dimension 16. The sliding window is mixer ``attention`` with rotary positions, whose
cache is a ring of ``window`` keys and values. Embeddings, residual stream, norms and logits are float32: ``dtype`` is that
of mixers and MLPs alone.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from zoo.checks import check_choice, check_positive
from zoo.models.language_model import LanguageModel
from zoo.models.stack import Spec

MASK_TOKEN = 50_263  # the last row of GPT-2's 50,257 tokens padded to a multiple of 8
VOCABULARY = 50_264


@dataclasses.dataclass(frozen=True)
class LayerPlan:
    """Which layers of ``depth`` are linear attention and which sliding windows, counted from 0; all others convolve."""

    depth: int
    linear: tuple[int, ...]
    window: tuple[int, ...]

    def __post_init__(self):
        check_positive("depth", self.depth)
        both = (*self.linear, *self.window)
        if len(set(both)) != len(both) or not all(0 <= i < self.depth for i in both):
            raise ValueError(
                f"linear and window must be different layers below {self.depth}, got {self.linear}, {self.window}"
            )

    def pattern(self, linear: Spec, window: Spec, convolution: Spec = "base_conv") -> tuple[Spec, ...]:
        """The mixer of every layer, bottom to top."""
        kinds = dict.fromkeys(self.linear, linear) | dict.fromkeys(self.window, window)
        return tuple(kinds.get(i, convolution) for i in range(self.depth))


_SMALL = (1, 6, 11, 16, 21), (2, 7, 12, 17, 22)
_LARGE = (*_SMALL[0], 27, 33), (*_SMALL[1], 28, 34)
# name -> (layers, D, mixer of the linear layers)
BASED_MODELS: dict[str, tuple[LayerPlan, int, Mapping[str, Any]]] = {
    "jrt-360m": (LayerPlan(26, *_SMALL), 1024, {"name": "prefix_linear_attention", "prefix_length": 1024}),
    "based-360m": (LayerPlan(27, *_SMALL), 1024, {"name": "based", "decay": True}),
    "jrt-1.3b": (LayerPlan(36, *_LARGE), 1792, {"name": "prefix_linear_attention", "prefix_length": 1024}),
    "based-1.3b": (LayerPlan(36, *_LARGE), 1792, {"name": "based"}),
}


def sliding_window(window: int, heads: int, **options: Any) -> dict[str, Any]:
    """Softmax attention over the last ``window`` tokens with rotary positions, as a mixer's specification."""
    return {"name": "attention", "window": window, "heads": heads, "positions": "rotary", **options}


def based_language_model(
    name: str,
    *,
    vocab_size: int = VOCABULARY,
    dim: int | None = None,
    plan: LayerPlan | None = None,
    heads: int = 16,
    feature_dim: int = 16,
    window: int = 256,
    linear: Mapping[str, Any] | None = None,
    tie_embeddings: bool = True,
    mlp: Spec | Sequence[Spec] = "swiglu",
    dtype: str = "float32",
    **options: Any,
) -> LanguageModel:
    """A language model of ``BASED_MODELS``.

    Args:
      name: which.
      vocab_size, dim, heads: sizes; ``dim`` None: the published one.
      plan: other layers; None: the published ones.
      feature_dim: of the linear attention.
      window: of the sliding windows; Based also has 64 and 128.
      linear: further options of the linear layers' mixer, e.g. {"storage": "symmetric"}.
      tie_embeddings: as published.
      mlp: of every block, of inner width 2 D.
      dtype: compute dtype of mixers and MLPs; all else is float32.
      **options: further fields of ``LanguageModel``.
    """
    check_choice("name", name, BASED_MODELS)
    published, width, mixer = BASED_MODELS[name]
    dim = width if dim is None else dim
    mixer = {**mixer, "heads": heads, "feature_dim": feature_dim, "dtype": dtype, **(linear or {})}
    pattern = (published if plan is None else plan).pattern(
        mixer, sliding_window(window, heads, dtype=dtype), {"name": "base_conv", "dtype": dtype}
    )
    if isinstance(mlp, str) and mlp != "none":
        mlp = {"name": mlp, "dtype": dtype}
    return LanguageModel(
        vocab_size=vocab_size, dim=dim, pattern=pattern, mlp=mlp, mlp_dim=2 * dim, tie_embeddings=tie_embeddings, **options
    )  # fmt: skip
