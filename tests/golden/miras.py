"""Golden data of Miras: Moneta, Yaad and Memora with a matrix or a two-layer MLP for memory, step by step.

The files hold weights as (out, in); the zoo's are (in, out).
"""

import re
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from zoo.layers.memory_mlp import memory_mlp
from zoo.scans import Miras, MirasGates, matrix_memory, miras_scan, miras_weights


def parts_of(case: Any) -> Miras:
    """The model that the file's name begins with, after the numbers in its configuration."""
    config = case.config
    depth = len(case.params)
    memory = matrix_memory
    if depth > 1:
        memory = memory_mlp(depth, activation="gelu", residual_norm=True, eps=config["ln_eps"])
    sharpness = float(re.fullmatch(r"tanh\((.*)x\)", config["sign"])[1])
    known = {
        "moneta": ({"name": "lp", "p": config["p"], "sharpness": sharpness}, {"name": "lq", "q": config["q"]}),
        "yaad": ({"name": "huber", "sharpness": sharpness}, "l2"),
        "memora": ("l2", "kl"),
    }
    model = next((name for name in known if case.name.startswith(name)), None)
    if model is None:
        raise ValueError(f"{case.name} is not built (built: {', '.join(known)})")
    bias, retention = known[model]
    return Miras(memory, bias, retention)


def check(case: Any) -> Iterator[tuple[str, Any]]:
    """Yields every output of ``case``."""
    parts = parts_of(case)

    def run(weights, inputs):
        one = {name: jnp.asarray(a)[None, :, None] for name, a in inputs.items()}
        gates = MirasGates(one["eta"], one["alpha"], threshold=one.get("delta"))
        turned = {name: jnp.asarray(w).T[None] for name, w in weights.items()}
        y, state = miras_scan(parts, one["q"], one["k"], one["v"], gates, turned)
        return jnp.sum(y[0, :, 0] * case.inputs["w"]), (y[0, :, 0], state)

    inputs = {name: a for name, a in case.inputs.items() if name != "w"}
    grads, (y, state) = jax.grad(run, (0, 1), has_aux=True)(case.params, inputs)
    yield "outputs/y", y
    for name, weight in miras_weights(parts, state).items():
        yield f"outputs/{name}_final", weight[0, 0].T
        if f"{name.replace('W', 'A')}_final" in case.outputs:
            yield f"outputs/{name.replace('W', 'A')}_final", state.memory[name][0, 0].T
    for tree in grads:
        for name, value in tree.items():
            yield f"grads/{name}", value
