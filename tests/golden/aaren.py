"""Golden data of the aaren paper: ``core_*`` (prefix attention with one query) and ``stack_*`` (pre-norm blocks)."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp

from zoo.layers import MLP, layer_norm
from zoo.mixers.aaren import AarenState, aaren, prefix_attention
from zoo.scans import SoftmaxState, softmax_prefix_statistics


def check(case) -> Iterator[tuple[str, jax.Array]]:
    """Yields every key under outputs/ and grads/."""
    return core(case) if case.name.startswith("core") else stack(case)


def core(case):
    def scores(q, k):
        return jnp.einsum("hd,bthd->bth", q, k) * k.shape[-1] ** -0.5

    def loss(q, k, v):
        return jnp.sum(prefix_attention(scores(q, k), v)[0] * case.inputs["loss_weight"])

    arguments = tuple(jnp.asarray(case.inputs[name]) for name in "qkv")
    statistics = jax.jit(lambda q, k, v: softmax_prefix_statistics(scores(q, k), v))(*arguments)
    yield "outputs/o", prefix_attention(scores(*arguments[:2]), arguments[2])[0]
    yield "outputs/m", statistics.maximum
    yield "outputs/u", statistics.denominator
    yield "outputs/w", statistics.numerator
    value, grads = jax.jit(jax.value_and_grad(loss, (0, 1, 2)))(*arguments)
    yield "outputs/loss", value
    for name, grad in zip("qkv", grads, strict=True):
        yield f"grads/{name}", grad


def stack(case):
    config = case.config
    dim, heads, eps = config["d_model"], config["heads"], config["ln_eps"]
    mlp = MLP(dim, config["d_ff"], kind="gelu", dtype="float64")
    empty = AarenState(*SoftmaxState.empty(config["batch"], heads, dim // heads, jnp.float64))

    def forward(params, x):
        for layer in range(config["layers"]):
            p = {key.split("/")[1]: value for key, value in params.items() if key.startswith(f"layer{layer}/")}
            mixer = {
                "query_token": p["query_token"],
                **{name: p[f"w{name[0]}"].T for name in ("query", "key", "value", "output")},
            }
            x = x + aaren(mixer, layer_norm(x, p["ln1_scale"], p["ln1_bias"], eps), empty)[0]
            weights = {
                "up": {"kernel": p["ff1"].T, "bias": p["ff1_b"]},
                "down": {"kernel": p["ff2"].T, "bias": p["ff2_b"]},
            }
            x = x + mlp.apply({"params": weights}, layer_norm(x, p["ln2_scale"], p["ln2_bias"], eps))
        return x

    def loss(params, x):
        y = forward(params, x)
        return jnp.sum(y * case.inputs["loss_weight"]), y

    params = {key: jnp.asarray(value) for key, value in case.params.items()}
    run = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
    (value, y), (param_grads, x_grad) = run(params, jnp.asarray(case.inputs["x"]))
    yield "outputs/y", y
    yield "outputs/loss", value
    yield "grads/x", x_grad
    for key, grad in param_grads.items():
        yield f"grads/{key}", grad
