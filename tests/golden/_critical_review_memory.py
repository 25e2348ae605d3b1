"""Golden cases of critical_review about gradients through time and about the Neural Turing Machine's memory."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp

from zoo.analysis import jacobian_log_norms
from zoo.layers import cross_entropy
from zoo.mixers import ElmanState, address, elman, read_memory, write_memory
from zoo.training import clip_gradients, full_bptt, safe_global_norm, sliding_bptt, truncated_bptt


def tbptt_clip(case) -> Iterator[tuple[str, jax.Array]]:
    """A tanh network: full, chunked and sliding backpropagation, both clippings, and its Jacobian's norms."""
    config, x, targets = case.config, case.inputs["x"], case.inputs["targets"]
    batch, time = targets.shape

    def hidden(p, x, state):
        weights = {"input_kernel": p["W_hx"].T, "recurrent_kernel": p["W_hh"].T, "bias": p["b_h"]}
        return elman(weights, x, state)

    def loss_fn(p, chunk, state):
        h, state = hidden(p, chunk["x"], state)
        return chunk["y"].shape[1] / time * cross_entropy(h @ p["W_yh"].T + p["b_y"], chunk["y"]), state

    params = {name: jnp.asarray(value) for name, value in case.params.items()}
    width = params["b_h"].size
    start = ElmanState(jnp.zeros((batch, width)))
    arguments = (loss_fn, params, {"x": jnp.asarray(x), "y": jnp.asarray(targets)}, start)
    results = {
        "full": full_bptt(*arguments),
        "chunk": truncated_bptt(*arguments, config["k"]),
        "sliding": sliding_bptt(*arguments, config["k"]),
    }
    for kind, (loss, grads, _) in results.items():
        clipped = {"": None}
        if kind != "sliding":
            yield f"outputs/{kind}/loss", loss
            yield f"outputs/{kind}/grad_norm", safe_global_norm(grads)
            clipped |= {"_clipped": {"norm": config["clip_norm"]}, "_clipelem": {"value": config["clip_elem"]}}
        for suffix, how in clipped.items():
            clip = clip_gradients(**(how or {}))
            for name, grad in clip.update(grads, clip.init(grads))[0].items():
                yield f"grads/{kind}{suffix}/{name}", grad

    def step(p, x, state):
        return hidden(p, x[None, None], state)[1]

    norms = jacobian_log_norms(step, params, jnp.asarray(x[0]), ElmanState(jnp.zeros((1, width))))
    yield "outputs/jacobian_2norm", jnp.exp(norms)


def ntm_addressing(case) -> Iterator[tuple[str, jax.Array]]:
    """One head: address, read, write."""
    inputs = case.inputs

    def run(p):
        w = address(p["memory"], inputs["w_prev"], p["key"], p["beta"], p["gate"], p["shift"], p["gamma"])
        read = read_memory(p["memory"], w.final)
        erase, add = (inputs[name][:, None] for name in ("erase", "add"))
        memory = write_memory(p["memory"], w.final[:, None], erase, add)
        slots = jnp.arange(memory.shape[1])[:, None]
        loss = jnp.sum(read**2) + jnp.sum(slots * memory)
        return loss, {"w_content": w.content, "w_gated": w.gated, "w_shifted": w.shifted, "w": w.final, "read": read,
                      "memory_new": memory, "loss": loss}  # fmt: skip

    params = {name: jnp.asarray(value) for name, value in case.params.items()}
    (_, outputs), grads = jax.value_and_grad(run, has_aux=True)(params)
    yield from ((f"outputs/{name}", value) for name, value in outputs.items())
    yield from ((f"grads/{name}", value) for name, value in grads.items())
