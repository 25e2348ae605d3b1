"""Position-wise feed-forward layers."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
from jaxtyping import Array, Float

from zoo.checks import check_choice, nearest
from zoo.layers.einfft import EinFFT
from zoo.layers.moe import MixtureOfExperts

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
}
GATED = {"swiglu": "silu", "geglu": "gelu", "geglu_tanh": "gelu_tanh"}
MLPS = (*ACTIVATIONS, *GATED, "moe", "einfft", "none")
OTHERS = {"moe": MixtureOfExperts, "einfft": EinFFT}


class MLP(nn.Module):
    """Two linear maps with a nonlinearity between: W2 act(W1 x), or the gated form W2 (act(Wg x) * W1 x).

    Attributes:
      dim: width D of input and output.
      hidden_dim: inner width; None takes 4 D, and 8/3 D rounded up to a multiple of 8 for the gated forms.
      kind: "gelu" (exact), "gelu_tanh" (its approximation), "relu", "silu"; gated by one of these (Shazeer 2020):
        "swiglu", "geglu", "geglu_tanh".
      use_bias: None: with biases, and without in the gated forms.
      dtype: compute dtype.
    """

    dim: int
    hidden_dim: int | None = None
    kind: str = "swiglu"
    use_bias: bool | None = None
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        check_choice("mlp", self.kind, (*ACTIVATIONS, *GATED))
        gated = self.kind in GATED
        bias = not gated if self.use_bias is None else self.use_bias
        hidden = self.hidden_dim or (-(-8 * self.dim // 24) * 8 if gated else 4 * self.dim)
        act = ACTIVATIONS[GATED.get(self.kind, self.kind)]
        h = nn.Dense(hidden, use_bias=bias, dtype=self.dtype, name="up")(x)
        h = act(nn.Dense(hidden, use_bias=bias, dtype=self.dtype, name="gate")(x)) * h if gated else act(h)
        return nn.Dense(self.dim, use_bias=bias, dtype=self.dtype, name="down")(h)


def make_mlp(
    spec: str | Mapping[str, Any], dim: int, hidden_dim: int | None = None, dtype: str = "float32", *, name: str
) -> nn.Module:
    """Makes the feed-forward layer of ``spec`` as the submodule ``name``.

    Args:
      spec: one of ``MLPS`` but "none", or a mapping with "name" and options of ``MLP``, or of ``MixtureOfExperts`` for
        "moe", ``EinFFT`` for "einfft"; options win over the other arguments.
      dim: width D.
      hidden_dim: inner width, None for the layer's default.
      dtype: compute dtype.
      name: of the submodule.

    Raises:
      ValueError: unknown name or option.
    """
    options = {"name": spec} if isinstance(spec, str) else dict(spec)
    kind = options.pop("name", None)
    check_choice("mlp", kind, MLPS[:-1])
    cls = OTHERS.get(kind, MLP)
    options = {
        "dim": dim,
        "hidden_dim": hidden_dim,
        "dtype": dtype,
        **({} if kind in OTHERS else {"kind": kind}),
        **options,
    }
    known = {f.name for f in dataclasses.fields(cls) if f.name not in ("parent", "name")}
    for option in options:
        if option not in known:
            every = ", ".join(sorted(known))
            raise ValueError(f"mlp {kind!r} has no option {option!r}{nearest(option, known)} (options: {every})")
    return cls(**options, name=name)


def mlp_name(spec: str | Mapping[str, Any]) -> str:
    """The name in an MLP's specification; ValueError where it is none of ``MLPS``."""
    name = spec if isinstance(spec, str) else spec.get("name")
    check_choice("mlp", name, MLPS)
    return name
