"""Text whose beginning is shown with holes: inputs and targets of a prefix language model with a masked-token loss.

Arora et al. (2024), Just Read Twice, arXiv 2407.05483.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key

from zoo.tasks.base import Batch


def mask_prefix(
    key: Key[Array, ""],
    tokens: Int[Array, "*B L"],
    *,
    prefix_length: int,
    mask_token: int,
    rate: float = 0.15,
) -> Batch:
    """Inputs and targets from N + 1 tokens of text.

    Every one of the first M = ``prefix_length`` inputs is ``mask_token`` with probability ``rate``, independently (always
    the mask, never another token or itself).

    Args:
      key: of the draws.
      tokens: text, L = N + 1.
      prefix_length: M, from 0 to N.
      mask_token: what is shown instead.
      rate: share of masked tokens; 0: nothing is.

    Returns:
      ``inputs`` [*B, N]: tokens 0 .. N - 1, masked; ``targets``: for i < M token i itself, from M on token i + 1; ``mask``:
      True from M on; ``extra``: True at the masked positions. A token's number does not matter: token 0 counts as any other
      (the released code drops it from the loss).

    Raises:
      ValueError: ``prefix_length`` or ``rate`` out of range.
    """
    length = tokens.shape[-1] - 1
    if not 0 <= prefix_length <= length:
        raise ValueError(f"prefix_length must be from 0 to {length} for {length + 1} tokens, got {prefix_length}")
    if not 0 <= rate <= 1:
        raise ValueError(f"rate must lie in [0, 1], got {rate}")
    shown, following = tokens[..., :-1], tokens[..., 1:]
    inside = jnp.broadcast_to(jnp.arange(length) < prefix_length, shown.shape)
    hidden = inside & jax.random.bernoulli(key, rate, shown.shape)
    return Batch(jnp.where(hidden, mask_token, shown), jnp.where(inside, shown, following), ~inside, extra=hidden)
