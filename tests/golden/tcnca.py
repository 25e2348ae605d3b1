"""Golden data of TCNCA: MEGA's moving average and gated attention, and the stack of dilated convolutions."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from zoo.layers import layer_norm
from zoo.layers.damped_ema import bidirectional_damped_ema, damped_ema
from zoo.layers.temporal_convolution import normalised_weights, temporal_convolution
from zoo.mixers.mega import mega, mega_bidirectional
from zoo.scans import dilated_convolution


def check(case: Any) -> Iterator[tuple[str, Any]]:
    """Yields every output of ``case``."""
    for prefix, system in (("ema", moving_average), ("mega", gated_attention), ("tcn", stack)):
        if case.name.startswith(prefix):
            return system(case)
    raise ValueError(f"{case.name} is none of ema*, mega*, tcn*")


def gradients(case: Any, run: Any) -> Iterator[tuple[str, Any]]:
    """What ``run(params, x) -> {output: value}`` gives, and the gradients of sum(loss_weight * y)."""
    params = {name: jnp.asarray(value) for name, value in case.params.items()}
    x, weight = (jnp.asarray(case.inputs[name]) for name in ("x", "loss_weight"))

    def loss(params, x):
        outputs = run(params, x)
        return jnp.sum(weight * outputs["y"]), outputs

    (_, outputs), (of_params, of_x) = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(params, x)
    yield from ((f"outputs/{name}", value) for name, value in outputs.items())
    yield from ((f"grads/{name}", of_x if name == "x" else of_params[name]) for name in case.grads)


def averaging(params, prefix=""):
    """Parameters of the moving average; the files have a last axis of 1 on three of them."""
    names = ("delta", "alpha", "beta", "gamma", "omega")
    return {n: params[prefix + n][..., 0] if n in names[:3] else params[prefix + n] for n in names}


def moving_average(case: Any) -> Iterator[tuple[str, Any]]:
    def run(params, x):
        x = jnp.swapaxes(x, 0, 1)
        if case.config["bidirectional"]:
            return {"y": jnp.swapaxes(bidirectional_damped_ema(averaging(params), x), 0, 1)}
        y, state = damped_ema(averaging(params), x, method="fft")
        return {"y": jnp.swapaxes(y, 0, 1), "h_final": state.hidden}

    yield from gradients(case, run)


def gated_attention(case: Any) -> Iterator[tuple[str, Any]]:
    config = case.config

    def run(params, x):
        x = jnp.swapaxes(x, 0, 1)
        normed = layer_norm(x, params["norm.norm.weight"], params["norm.norm.bias"], eps=1e-5)
        ours = averaging(params, "move.") | {"scale": params["gamma"], "shift": params["beta"]}
        for name, theirs in (("value", "v_proj"), ("mix", "mx_proj"), ("output", "h_proj")):
            ours |= {name: params[f"{theirs}.weight"].T, f"{name}_bias": params[f"{theirs}.bias"]}
        if config["rel_pos_bias"] == "simple":
            ours["relative_bias"] = params["rel_pos_bias.rel_pos_bias"]
        else:
            ours["relative_query"] = params["rel_pos_bias.alpha"][0]
            ours["relative_key"] = params["rel_pos_bias.beta"][0]
        chunk = None if config["chunk_size"] < 0 else config["chunk_size"]
        activation = config["attention_activation"]
        # the average's gamma is the operator's own, the file's "gamma" that of queries and keys
        if config["causal"]:
            y, _ = mega(ours, x, normed, chunk=chunk or x.shape[1], activation=activation)
        else:
            y = mega_bidirectional(ours, x, normed, chunk=chunk, activation=activation)
        return {"y": jnp.swapaxes(x + y, 0, 1)}

    yield from gradients(case, run)


def stack(case: Any) -> Iterator[tuple[str, Any]]:
    config, x = case.config, jnp.asarray(case.inputs["x"])
    depth, factor = config["depth"], config["dilation_factor"]

    def stacked(part):
        return jnp.stack([jnp.asarray(case.params[f"conv{i}_{part}"]) for i in range(depth)])[:, None]

    direction, gain = jnp.swapaxes(stacked("v"), -1, -2), stacked("g")
    params = {"direction": direction, "gain": gain, "bias": stacked("bias")}
    weights, y = normalised_weights(direction, gain), x
    for i in range(depth):
        yield f"outputs/conv{i}_weight", weights[i, 0].T
        convolved = dilated_convolution(y, weights[i, 0], dilation=factor**i)
        whole = jax.tree.map(lambda a, n=i + 1: a[:n], params)
        y, _ = temporal_convolution(whole, x, factor=factor, activation="silu", residual=True)
        yield f"outputs/conv{i}_pre", convolved + params["bias"][i, 0]
        yield f"outputs/conv{i}_out", y
    linear = {"direction": direction, "gain": gain}
    yield "outputs/linear_stack", temporal_convolution(linear, x, factor=factor)[0]
    impulse = jnp.zeros((1, config["receptive_field"], config["D"])).at[:, 0].set(1.0)
    yield "outputs/linear_stack_impulse", temporal_convolution(linear, impulse, factor=factor)[0][0]
