"""Pointer chasing: follow a chain of arrows that are given as an unordered set of tokens, one token per node.

One attention step can follow one arrow, or double the reach of what earlier steps have gathered. How deep a chain a
network follows therefore tells how its depth is used, and every token carries a label of its own difficulty.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key

from zoo.checks import check_positive
from zoo.tasks.base import Batch, Task


@dataclasses.dataclass(frozen=True)
class ChainRoot(Task):
    """Disjoint chains of nodes; the label of a node is the last node of its chain.

    A row holds ``num_chains`` chains with the same number e of edges, e uniform in ``min_edges`` .. ``max_edges``; the
    node numbers are drawn without replacement from ``num_nodes``. The last node of a chain points to itself. Tokens
    stand in random order; unused slots come last.

    Batch: ``inputs`` int32 [S, 2] = (node, next node), S = num_chains * (max_edges + 1); ``targets`` [S] root nodes;
    ``mask`` [S] and ``lengths`` say which slots are used; ``extra`` [S] is the node's depth, its edges to the root.
    Guessing one of the roots is right 1 / num_chains of the time.

    Attributes:
      num_chains: chains in a row.
      num_nodes: node numbers, which are also the classes.
      min_edges: fewest edges of a chain.
      max_edges: most edges of a chain.
    """

    num_chains: int = 3
    num_nodes: int = 27
    min_edges: int = 1
    max_edges: int = 5

    def __post_init__(self):
        check_positive("num_chains", self.num_chains)
        check_positive("max_edges", self.max_edges)
        if not 0 <= self.min_edges <= self.max_edges:
            raise ValueError(f"min_edges must lie in 0..max_edges={self.max_edges}, got {self.min_edges}")
        if self.slots > self.num_nodes:
            raise ValueError(
                f"{self.num_chains} chains of {self.max_edges} edges need {self.slots} nodes, "
                f"but num_nodes={self.num_nodes}"
            )

    @property
    def slots(self) -> int:
        """Tokens in a row, used or not."""
        return self.num_chains * (self.max_edges + 1)

    def example(self, key: Key[Array, ""], data: None = None) -> Batch:
        key_edges, key_nodes, key_order = jax.random.split(key, 3)
        edges = jax.random.randint(key_edges, (), self.min_edges, self.max_edges + 1)
        nodes = jax.random.permutation(key_nodes, self.num_nodes)[: self.slots].reshape(self.num_chains, -1)
        place = jnp.arange(self.max_edges + 1)
        following = nodes[:, jnp.minimum(place + 1, edges)]
        roots = jnp.broadcast_to(nodes[:, edges, None], nodes.shape)
        depth = jnp.broadcast_to(edges - place, nodes.shape)

        used = (depth >= 0).reshape(-1)
        order = jnp.argsort(jax.random.uniform(key_order, used.shape) + ~used)  # used slots first, in random order
        used = used[order]

        def arrange(values):
            return jnp.where(used, values.reshape(-1)[order], 0)

        return Batch(
            inputs=jnp.stack([arrange(nodes), arrange(following)], axis=-1),
            targets=arrange(roots),
            mask=used,
            lengths=self.num_chains * (edges + 1),
            extra=arrange(depth),
        )


@dataclasses.dataclass(frozen=True)
class Hop(Task):
    """One cycle through all nodes; every token asks for the node a given number of arrows further on.

    f is one random cycle through all nodes, so that fewer hops than asked for always give a wrong answer.

    Batch: ``inputs`` int32 [num_nodes, 3] = (x, f(x), hops - 1) in random order; ``targets`` f^hops(x); ``extra`` the
    hops, uniform in 1 .. ``max_hops`` for every token. Chance is 1 / num_nodes.

    Attributes:
      num_nodes: nodes, tokens and classes.
      max_hops: most hops, fewer than ``num_nodes``.
    """

    num_nodes: int = 8
    max_hops: int = 4

    def __post_init__(self):
        check_positive("max_hops", self.max_hops)
        if self.max_hops >= self.num_nodes:
            raise ValueError(f"max_hops must be below num_nodes={self.num_nodes}, got {self.max_hops}")

    def example(self, key: Key[Array, ""], data: None = None) -> Batch:
        key_cycle, key_hops, key_order = jax.random.split(key, 3)
        cycle = jax.random.permutation(key_cycle, self.num_nodes)
        hops = jax.random.randint(key_hops, (self.num_nodes,), 1, self.max_hops + 1)
        place = jax.random.permutation(key_order, self.num_nodes)  # of token i in the cycle

        def ahead(steps: Int[Array, " N"] | int) -> Int[Array, " N"]:
            return cycle[(place + steps) % self.num_nodes]

        return Batch(
            inputs=jnp.stack([ahead(0), ahead(1), hops - 1], axis=-1),
            targets=ahead(hops),
            mask=jnp.ones(self.num_nodes, bool),
            lengths=jnp.asarray(self.num_nodes),
            extra=hops,
        )
