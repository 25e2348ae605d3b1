"""A stack of residual blocks made from a pattern of mixers; repeated blocks are scanned over.

A pattern such as ``("s5", "s5", "s5", "attention")`` with depth 24 is six repetitions of a unit of four layers. The unit
is traced once and scanned six times with ``nn.scan`` (parameters stacked on axis 0), and equal neighbours inside the
unit are scanned as well, so compile time does not grow with depth.
"""

from collections.abc import Mapping
from itertools import groupby
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import FrozenDict
from jaxtyping import Array, Bool, Float, Int

from zoo.checks import check_choice, check_divides, check_positive
from zoo.layers.attention import grouped_attention
from zoo.layers.mlp import make_mlp, mlp_name
from zoo.layers.norms import NORMS, make_norm
from zoo.registry import resolve

Spec = str | Mapping[str, Any]


def freeze_specs(module: nn.Module) -> None:
    """Makes the specifications in ``pattern`` and ``mlp`` hashable; models call it in ``__post_init__``.

    A module is then a valid static argument of ``jax.jit`` though dicts were handed in.
    """

    def frozen(value):
        if isinstance(value, Mapping):
            return FrozenDict({key: frozen(v) for key, v in value.items()})
        return tuple(frozen(v) for v in value) if isinstance(value, tuple | list) else value

    for field in ("pattern", "mlp"):
        if hasattr(module, field):
            object.__setattr__(module, field, frozen(getattr(module, field)))


class Block(nn.Module):
    """Mixer, then MLP, each with norm and residual.

    pre:  x + mixer(norm(x)), then x + mlp(norm(x)).
    post: norm(x + mixer(x)), then norm(x + mlp(x)).

    A mixer whose class says ``normalises_input = True`` has the norm inside and gets x itself in the pre form (MEGA needs
    both). One that says ``reads_tokens = True`` is given ``tokens`` besides x (n-gram heads match them).

    Attributes:
      mixer: registered name, or mapping with "name" and options.
      dim: width D.
      mlp: "swiglu", "gelu", "relu", "silu", ..., "moe" (see ``zoo.layers.mlp.MLPS``), or "none" (no second half); or a
        mapping with "name" and options of ``zoo.layers.MLP`` or ``zoo.layers.MixtureOfExperts``.
      mlp_dim: inner width of the MLP, None for its default.
      norm: "rms", "layer", "batch" or "none".
      norm_eps: None: 1e-6, and 1e-5 for "batch".
      norm_axis: mapped axis of devices over which "batch" averages; None: each device alone.
      norm_position: "pre" or "post".
      cross_heads: heads of an attention over ``memory`` between mixer and MLP; 0 for none.
      residual_scale: a learned number, 1 at the start, multiplies the x that goes past the mixer.
      dropout: rate on every residual branch (needs an rng "dropout" when not deterministic).
      dtype: compute dtype, handed to the mixer unless its options say otherwise.
    """

    mixer: Spec
    dim: int
    mlp: Spec = "swiglu"
    mlp_dim: int | None = None
    norm: str = "rms"
    norm_eps: float | None = None
    norm_axis: str | None = None
    norm_position: str = "pre"
    cross_heads: int = 0
    residual_scale: bool = False
    dropout: float = 0.0
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        state: Any = None,
        reset: Bool[Array, "B T"] | None = None,
        memory: Float[Array, "B S D"] | None = None,
        memory_mask: Bool[Array, "B S"] | None = None,
        tokens: Int[Array, "B T"] | None = None,
        deterministic: bool = True,
    ) -> tuple[Float[Array, "B T D"], Any]:
        check_choice("norm_position", self.norm_position, ("pre", "post"))
        pre = self.norm_position == "pre"

        def residual(x, branch, norm_name, scale=None, inside=False):
            kind = "none" if inside else self.norm
            norm = make_norm(
                kind, eps=self.norm_eps, name=norm_name, deterministic=deterministic, axis_name=self.norm_axis
            )
            out, extra = branch(norm(x) if pre else x)
            x = x if scale is None else (scale * x).astype(x.dtype)
            x = x + nn.Dropout(self.dropout, deterministic=deterministic)(out).astype(x.dtype)
            return (x if pre else norm(x)), extra

        mixer = make_mixer(self.mixer, self.dim, self.dtype, name="mixer")
        scale = self.param("residual_scale", nn.initializers.ones, ()) if self.residual_scale else None
        inside = pre and getattr(mixer, "normalises_input", False)
        beside = {"tokens": tokens} if getattr(mixer, "reads_tokens", False) else {}
        x, state = residual(x, lambda h: mixer(h, state, reset=reset, **beside), "mixer_norm", scale, inside)
        if self.cross_heads:
            cross = CrossAttention(self.dim, self.cross_heads, self.dtype, name="cross")
            x, _ = residual(x, lambda h: (cross(h, memory, memory_mask), None), "cross_norm")
        if mlp_name(self.mlp) != "none":
            mlp = make_mlp(self.mlp, self.dim, self.mlp_dim, self.dtype, name="mlp")
            x, _ = residual(x, lambda h: (mlp(h), None), "mlp_norm")
        return x, state


class CrossAttention(nn.Module):
    """Multi-head attention of ``x`` [B, T, D] over ``memory`` [B, S, D]; ``mask`` [B, S] marks real memory."""

    dim: int
    heads: int
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], memory: Float[Array, "B S D"], mask: Bool[Array, "B S"] | None = None
    ) -> Float[Array, "B T D"]:
        check_divides("cross_heads", self.heads, "dim", self.dim)

        def project(name, values):
            y = nn.Dense(self.dim, use_bias=False, dtype=self.dtype, name=name)(values)
            return y.reshape(*y.shape[:2], self.heads, -1)

        q, k, v = project("query", x), project("key", memory), project("value", memory)
        y = grouped_attention(q, k, v, None if mask is None else mask[:, None])
        return nn.Dense(self.dim, use_bias=False, dtype=self.dtype, name="output")(y.reshape(x.shape))


def make_mixer(spec: Spec, dim: int, dtype: str, name: str | None = None) -> Any:
    """Creates the mixer of ``spec`` for width ``dim``; options in the spec win over ``dtype``.

    With ``name`` it becomes a submodule of the module being set up, without it stands alone.
    """
    options = {"name": spec} if isinstance(spec, str) else dict(spec)
    cls, options = resolve({"dtype": dtype, **options, "dim": dim})
    return cls(**options, name=name) if name else cls(**options, parent=None)


def keeps_state(mixer: Any) -> bool:
    """Whether a mixer can be gone on from: it is causal, at least after a prefix (``zoo.mixers``)."""
    return mixer.causal or getattr(mixer, "prefix_length", 0) > 0


class _Unit(nn.Module):
    """The blocks that are scanned over: runs of equal neighbours, each again scanned when longer than one.

    ``layers`` are pairs (mixer, mlp).
    """

    layers: tuple[tuple[Spec, Spec], ...]
    options: Mapping[str, Any]
    remat: bool

    @nn.compact
    def __call__(self, x, state, reset, memory, memory_mask, tokens, deterministic):
        block = nn.remat(Block, static_argnums=(7,)) if self.remat else Block
        states = []
        for i, ((mixer, mlp), length) in enumerate(runs(self.layers)):
            run_state = None if state is None else state[i]
            make = block if length == 1 else _scan(block, length)
            x, new = make(mixer=mixer, mlp=mlp, name=f"run_{i}", **self.options)(
                x, run_state, reset, memory, memory_mask, tokens, deterministic
            )
            states.append(new)
        return x, tuple(states)


def _scan(module: type, length: int) -> type:
    """``module`` repeated ``length`` times; parameters and states are stacked on axis 0."""
    return nn.scan(
        module,
        variable_axes={"params": 0, "batch_stats": 0, "intermediates": 0, "diagnostics": 0, "losses": 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=(0, *(nn.broadcast,) * 5),
        out_axes=0,
        length=length,
    )


def runs(layers: tuple[Any, ...]) -> list[tuple[Any, int]]:
    """Run-length encoding of equal neighbours: (a, a, b) -> [(a, 2), (b, 1)]."""
    return [(layer, len(list(group))) for layer, group in groupby(layers)]


def repeating_unit(layers: tuple[Any, ...]) -> tuple[tuple[Any, ...], int]:
    """Shortest unit u and count n with ``layers == u * n``: (a, b, a, b) -> ((a, b), 2)."""
    for size in range(1, len(layers) + 1):
        if len(layers) % size == 0 and layers == layers[:size] * (len(layers) // size):
            return layers[:size], len(layers) // size
    return layers, 1


class Stack(nn.Module):
    """``depth`` residual blocks whose mixers follow ``pattern`` cyclically.

    Attributes:
      dim: width D.
      pattern: mixers by name or by mapping {"name": ..., options}; layer i uses pattern[i % len(pattern)].
      depth: number of layers; None takes one of each in the pattern.
      mlp: as in ``Block``, or a tuple of such: layer i has mlp[i % len(mlp)].
      mlp_dim, norm, norm_eps, norm_axis, norm_position, cross_heads, residual_scale, dropout, dtype: as in ``Block``.
      final_norm: normalise the output (pre-norm stacks want it).
      remat: recompute each block in the backward pass instead of storing its activations.
    """

    dim: int
    pattern: tuple[Spec, ...] = ("lru",)
    depth: int | None = None
    mlp: Spec | tuple[Spec, ...] = "swiglu"
    mlp_dim: int | None = None
    norm: str = "rms"
    norm_eps: float | None = None
    norm_axis: str | None = None
    norm_position: str = "pre"
    final_norm: bool = True
    cross_heads: int = 0
    residual_scale: bool = False
    dropout: float = 0.0
    remat: bool = False
    dtype: str = "float32"

    def __post_init__(self):
        freeze_specs(self)
        super().__post_init__()

    def layers(self) -> tuple[Spec, ...]:
        """The mixer specification of every layer, bottom to top."""
        if not self.pattern:
            raise ValueError("pattern is empty; name at least one mixer")
        depth = len(self.pattern) if self.depth is None else self.depth
        check_positive("depth", depth)
        return tuple(self.pattern[i % len(self.pattern)] for i in range(depth))

    def blocks(self) -> tuple[tuple[Spec, Spec], ...]:
        """(mixer, MLP) of every layer, bottom to top."""
        mlps = self.mlp if isinstance(self.mlp, tuple) else (self.mlp,)
        if not mlps:
            raise ValueError("mlp is an empty tuple; name at least one, such as 'none'")
        return tuple((mixer, mlps[i % len(mlps)]) for i, mixer in enumerate(self.layers()))

    def places(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """Where the parameters of every layer are, bottom to top: (name under "layers", index into the leading axes)."""
        unit, count = repeating_unit(self.blocks())
        return tuple(
            (f"run_{run}", (repetition,) if length == 1 else (repetition, i))
            for repetition in range(count)
            for run, (_, length) in enumerate(runs(unit))
            for i in range(length)
        )

    @property
    def causal(self) -> bool:
        """Whether every mixer is causal, and no MLP looks over time."""
        return not self._looks_over_time() and all(mixer.causal for mixer in self._kinds())

    @property
    def prefix_length(self) -> int:
        """How many first tokens of a document may see each other, though all that comes after them is causal and there is
        a state; 0 where there are no mixers of this kind (``zoo.mixers``)."""
        return max(getattr(mixer, "prefix_length", 0) for mixer in self._kinds())

    @property
    def keeps_state(self) -> bool:
        """Whether every mixer keeps a state (is causal, at least after a prefix), and no MLP looks over time."""
        return not self._looks_over_time() and all(keeps_state(mixer) for mixer in self._kinds())

    def _looks_over_time(self) -> bool:
        return any(isinstance(mlp, Mapping) and mlp.get("over_time") for _, mlp in self.blocks())

    def _kinds(self) -> list[Any]:
        return [make_mixer(spec, self.dim, self.dtype) for spec in set(self.layers())]

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        state: Any = None,
        *,
        reset: Bool[Array, "B T"] | None = None,
        memory: Float[Array, "B S D"] | None = None,
        memory_mask: Bool[Array, "B S"] | None = None,
        tokens: Int[Array, "B T"] | None = None,
        deterministic: bool = True,
    ) -> tuple[Float[Array, "B T D"], Any]:
        check_choice("norm", self.norm, NORMS)
        unit, count = repeating_unit(self.blocks())
        if (memory is None) == bool(self.cross_heads):
            raise ValueError("memory goes with cross_heads >= 1, and only with it")
        names = ("dim", "mlp_dim", "norm", "norm_eps", "norm_axis", "norm_position", "cross_heads", "residual_scale",
                 "dropout", "dtype")  # fmt: skip
        options = {f: getattr(self, f) for f in names}
        layers = _scan(_Unit, count)(layers=unit, options=options, remat=self.remat, name="layers")
        x, state = layers(x, state, reset, memory, memory_mask, tokens, deterministic)
        if self.final_norm:
            x = make_norm(
                self.norm, eps=self.norm_eps, name="final_norm", deterministic=deterministic, axis_name=self.norm_axis
            )(x)
        return x, state

    def initial_state(self, batch_size: int, dtype: str | None = None) -> Any:
        """State of every layer, stacked as the scans want it: a tuple over runs, leaves [repetitions, (run,) B, ...]."""
        unit, count = repeating_unit(self.blocks())
        states = []
        for (spec, _), length in runs(unit):
            leading = (count,) if length == 1 else (count, length)
            one = make_mixer(spec, self.dim, self.dtype).initial_state(batch_size, dtype)
            states.append(jax.tree.map(lambda s, n=leading: jnp.broadcast_to(s, (*n, *s.shape)), one))
        return tuple(states)
