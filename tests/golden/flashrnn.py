"""Golden data of FlashRNN: states and gradients of one layer, ``<function>_B.._T.._N.._D..``, by both kinds of gradient."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from zoo.scans.flashrnn import flashrnn


def check(case: Any) -> Iterator[tuple[str, Any]]:
    """Yields every output and gradient; ValueError where the backends disagree."""
    function = case.name.split("_")[0]
    initial, weight = (jnp.asarray(case.inputs[name]) for name in ("initial_states", "loss_weight"))
    arguments = [jnp.asarray(a) for a in (case.inputs["Wx"], case.params["R"], case.params["b"])]

    def run(backend, save="gates"):
        def loss(*arguments):
            outputs = flashrnn(*arguments, initial, function=function, backend=backend, save=save)
            return jnp.sum(outputs[0][0] * weight), outputs

        return jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(*arguments)

    results = [run("vanilla"), run("vanilla_fwbw"), run("alternating", save="states"), run("vanilla_fwbw", save=3)]
    for other in results[1:]:
        for got, want in zip(jax.tree.leaves(other), jax.tree.leaves(results[0]), strict=True):
            if not np.allclose(got, want, rtol=1e-9, atol=1e-9):
                raise ValueError(f"backends differ by {np.max(np.abs(got - want)):.2e}")
    (loss, (states, last)), grads = results[1]
    yield "outputs/states", states
    yield "outputs/last_states", last
    yield "outputs/loss", loss
    for name, grad in zip(("Wx", "R", "b"), grads, strict=True):
        yield f"grads/{name}", grad
