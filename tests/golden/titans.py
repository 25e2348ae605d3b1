"""Golden data of the titans paper: the neural memory, token by token (``seq``) and in chunks (``chunk``)."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp

from zoo.layers.memory_mlp import memory_mlp
from zoo.scans import memory_descent


def check(case) -> Iterator[tuple[str, jax.Array]]:
    """Yields every key under outputs/ and grads/."""
    config = case.config
    memory = memory_mlp(
        config["depth"], activation=config["activation"], residual_norm=config["kind"] == "res", eps=config["ln_eps"]
    )
    # the file applies h @ W.T
    arguments = {
        name: jnp.asarray(case.inputs[name])[None, :, None] for name in ("q", "k", "v", "alpha", "eta", "theta")
    }
    arguments |= {name: jnp.asarray(weight).T[None] for name, weight in case.params.items()}
    for rule, size, method in (("seq", 1, "sequential"), ("chunk", config["chunk"], "chunked")):

        def loss(a, size=size, method=method):
            weights = {name: a[name] for name in case.params}
            y, state = memory_descent(
                memory, weights, *(a[name] for name in ("q", "k", "v", "theta", "alpha", "eta")), chunk_size=size,
                method=method,
            )  # fmt: skip
            return jnp.sum(y[0, :, 0] * case.inputs["w"]), (y, state)

        (_, (y, state)), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(arguments)
        yield f"outputs/{rule}_y", y[0, :, 0]
        for name in case.params:
            yield f"outputs/{rule}_{name}_final", state.weights[name][0, 0].T
            yield f"outputs/{rule}_S{name.removeprefix('W')}_final", state.momentum[name][0, 0].T
        for name, grad in grads.items():
            yield f"grads/{rule}_{name}", grad[0].T if name in case.params else grad[0, :, 0]
