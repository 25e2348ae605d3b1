"""Linear maps whose parameters lie in a mixer's own dictionary."""

from collections.abc import Mapping

from jaxtyping import Array, Float


def linear(x: Float[Array, "*B D"], params: Mapping[str, Array], name: str) -> Float[Array, "*B E"]:
    """x W + b in x's dtype, with W = ``params[name]`` [D, E] and b = ``params[name + "_bias"]`` [E] where there is one."""
    y = x @ params[name].astype(x.dtype)
    return y + params[f"{name}_bias"].astype(x.dtype) if f"{name}_bias" in params else y


def mixed_linear(
    x: Float[Array, "*B D"], other: Float[Array, "*B D"], params: Mapping[str, Array], name: str
) -> Float[Array, "*B E"]:
    """(mu x + (1 - mu) other) W in x's dtype, with W = ``params[name]`` [D, E] and mu = ``params["mix_" + name]`` [D]."""
    share = params[f"mix_{name}"].astype(x.dtype)
    return (share * x + (1 - share) * other) @ params[name].astype(x.dtype)
