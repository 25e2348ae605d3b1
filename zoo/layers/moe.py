"""Mixture of experts: a feed-forward layer of which every token uses a few parts, chosen by a router.

Shazeer et al. (2017), Outrageously Large Neural Networks; Fedus et al. (2022), Switch Transformers (the balancing loss);
Gale et al. (2023), MegaBlocks (no token is dropped); as in Jamba (Lieber et al. 2024) and Qwen3-Next.

With x [D] a token, E experts of inner width I, each a SwiGLU layer, and k experts per token:

    p = softmax(W_r x)                                          [E], in at least float32
    y = sum over the k largest p_e of w_e W2_e (silu(Wg_e x) * W1_e x)
    w_e = p_e, or with ``renormalize`` p_e over the sum of the k chosen
    shared expert (if ``shared_dim``): y += sigmoid(w_s . x) swiglu_s(x)

Tokens are sorted by expert and multiplied group by group (``jax.lax.ragged_dot``), so nothing is dropped or padded, and a
token's result does not depend on which others are in the batch. The balancing loss E sum_e f_e P_e, with f_e the share
of choices that fell on expert e and P_e the mean of p_e, is k for an even router; it is sown as "load_balancing" in the
collection "losses".

Time O(tokens k D I), memory O(tokens k (D + I)).
"""

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from zoo.checks import check_positive
from zoo.dtypes import accumulator


def mixture_of_experts(
    params: Mapping[str, Array], x: Float[Array, "*B D"], *, top_k: int, renormalize: bool = False
) -> tuple[Float[Array, "*B D"], Float[Array, ""]]:
    """The layer of the module docstring.

    Args:
      params: ``router`` [D, E]; ``gate``, ``up`` [E, D, I]; ``down`` [E, I, D]; for a shared expert also ``shared_gate``,
        ``shared_up`` [D, J], ``shared_down`` [J, D] and ``shared_weight`` [D, 1].
      x: tokens, whose dtype is the compute dtype.
      top_k: experts k per token.
      renormalize: the weights of the chosen experts sum to 1.

    Returns:
      (y, balancing loss); y has x's dtype.
    """
    tokens = x.reshape(-1, x.shape[-1])
    wide = accumulator(x.dtype)
    experts = params["router"].shape[1]
    probabilities = jax.nn.softmax(tokens.astype(wide) @ params["router"].astype(wide))
    weights, chosen = jax.lax.top_k(probabilities, top_k)
    if renormalize:
        weights = weights / jnp.sum(weights, axis=-1, keepdims=True)
    order = jnp.argsort(chosen.reshape(-1))  # stable: tokens of one expert keep their order
    sizes = jnp.bincount(chosen.reshape(-1), length=experts).astype(jnp.int32)
    grouped = tokens[order // top_k]

    def multiply(a, name):
        return jax.lax.ragged_dot(a, params[name].astype(x.dtype), sizes)

    hidden = jax.nn.silu(multiply(grouped, "gate")) * multiply(grouped, "up")
    parts = multiply(hidden, "down")[jnp.argsort(order)].reshape(-1, top_k, x.shape[-1])
    y = jnp.einsum("nk,nkd->nd", weights, parts.astype(wide))
    if "shared_gate" in params:
        y = y + _shared_expert(params, tokens).astype(wide)
    share = sizes.astype(wide) / tokens.shape[0]
    loss = experts * jnp.sum(share * jnp.mean(probabilities, axis=0))
    return y.astype(x.dtype).reshape(x.shape), loss


def _shared_expert(params: Mapping[str, Array], x: Float[Array, "N D"]) -> Float[Array, "N D"]:
    gate, up, down = (params[f"shared_{name}"].astype(x.dtype) for name in ("gate", "up", "down"))
    weight = jax.nn.sigmoid(x @ params["shared_weight"].astype(x.dtype))
    return weight * ((jax.nn.silu(x @ gate) * (x @ up)) @ down)


class MixtureOfExperts(nn.Module):
    """SwiGLU experts behind a softmax router; sows "load_balancing" in the collection "losses".

    Attributes:
      dim: width D of input and output.
      hidden_dim: inner width I of an expert; None: 8/3 D rounded up to a multiple of 8.
      experts: number of experts E.
      top_k: experts per token, at most E.
      renormalize: the weights of a token's experts sum to 1.
      shared_dim: inner width of an expert that every token uses; None: there is none.
      dtype: compute dtype; the router runs in at least float32.
    """

    dim: int
    hidden_dim: int | None = None
    experts: int = 8
    top_k: int = 2
    renormalize: bool = False
    shared_dim: int | None = None
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        check_positive("experts", self.experts)
        if not 1 <= self.top_k <= self.experts:
            raise ValueError(f"top_k must be from 1 to experts={self.experts}, got {self.top_k}")
        hidden = -(-8 * self.dim // 24) * 8 if self.hidden_dim is None else self.hidden_dim
        check_positive("hidden_dim", hidden)
        dense = nn.initializers.lecun_normal()
        each = nn.initializers.lecun_normal(in_axis=-2, out_axis=-1, batch_axis=(0,))
        declared = {
            "router": (dense, (self.dim, self.experts)),
            "gate": (each, (self.experts, self.dim, hidden)),
            "up": (each, (self.experts, self.dim, hidden)),
            "down": (each, (self.experts, hidden, self.dim)),
        }
        if self.shared_dim is not None:
            check_positive("shared_dim", self.shared_dim)
            declared |= {
                "shared_gate": (dense, (self.dim, self.shared_dim)),
                "shared_up": (dense, (self.dim, self.shared_dim)),
                "shared_down": (dense, (self.shared_dim, self.dim)),
                "shared_weight": (dense, (self.dim, 1)),
            }
        params = {name: self.param(name, *how) for name, how in declared.items()}
        y, loss = mixture_of_experts(params, x.astype(self.dtype), top_k=self.top_k, renormalize=self.renormalize)
        if not self.is_initializing():  # the variables that init returns are parameters alone
            self.sow("losses", "load_balancing", loss)
        return y
