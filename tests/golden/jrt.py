"""Golden data of Just Read Twice: prefix linear attention, Based, BaseConv, and the form of set disjointness."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from zoo.layers import project_heads, taylor_features
from zoo.mixers import base_conv, based, prefix_linear_attention
from zoo.mixers.base_conv import BaseConv
from zoo.mixers.prefix_linear_attention import PrefixLinearAttention
from zoo.tasks.set_disjointness import BETWEEN, SetDisjointness, shared_element, two_sets

NAMES = {
    "query": "proj_q", "key": "proj_k", "value": "proj_v", "encoder_key": "proj_k_enc", "encoder_value": "proj_v_enc",
    "output": "out_proj",
}  # fmt: skip


def check(case: Any) -> Iterator[tuple[str, Any]]:
    """Yields every output of ``case``."""
    systems = {"pla": prefix, "baseconv": convolution, "set_disjointness": sets}
    kind = next((name for name in systems if case.name.startswith(name)), None)
    if kind is None:
        raise ValueError(f"{case.name} begins with none of {', '.join(systems)}")
    return systems[kind](case)


def agree(what: str, got: Any, want: Any) -> None:
    if not np.allclose(got, want, rtol=1e-9, atol=1e-11):
        raise ValueError(f"{what}: off by {np.max(np.abs(got - want)):.2e}")


def prefix(case: Any) -> Iterator[tuple[str, Any]]:
    """The module; every form of the function; prefill and then token by token; with either storage of the features."""
    config, x = case.config, jnp.asarray(case.inputs["x"])
    heads, length = config["num_heads"], config["enc_length"]

    def ours(theirs):
        """(H K, D) -> [D, H, K], and the output's (D, H V) -> [H, V, D]."""
        made = {name: jnp.asarray(theirs[f"{key}.weight"]) for name, key in NAMES.items()}
        return {
            name: w.T.reshape(heads, -1, w.shape[0]) if name == "output" else w.T.reshape(w.shape[1], heads, -1)
            for name, w in made.items()
        }

    def run(theirs, x):
        y, _ = prefix_linear_attention(ours(theirs), x, prefix_length=length, eps=config["eps"], method="chunked")
        return jnp.sum(y * case.inputs["w"]), y

    (_, y), (grads, x_bar) = jax.value_and_grad(run, (0, 1), has_aux=True)(dict(case.params), x)
    params = ours(case.params)
    for form in ("quadratic", "sequential"):
        other, _ = prefix_linear_attention(params, x, prefix_length=length, eps=config["eps"], method=form)
        agree(f"the {form} form", other, y)
    sizes = config["embed_dim"], heads, config["feature_dim"], length
    module = PrefixLinearAttention(*sizes, storage="symmetric", eps=config["eps"], dtype="float64")
    variables, size = {"params": params}, min(max(length, 1), x.shape[1])
    part, state = module.apply(variables, x[:, :size], method="prefill")
    parts = [part]
    for t in range(size, x.shape[1]):
        part, state = module.apply(variables, x[:, t : t + 1], state, method="decode")
        parts.append(part)
    agree("prefill and decoding, symmetric storage", jnp.concatenate(parts, axis=1), y)
    yield "outputs/y", y
    yield "outputs/y_causal_based", based(params, x, eps=config["eps"])[0]
    yield "outputs/phi_q", jnp.swapaxes(taylor_features(project_heads(params, x, None, 0.0)[0]), 1, 2)
    yield "grads/x", x_bar
    yield from ((f"grads/{name}", grads[name]) for name in case.params)


def convolution(case: Any) -> Iterator[tuple[str, Any]]:
    """The function; the module token by token."""
    config = case.config

    def ours(theirs):
        made = {name: jnp.asarray(array) for name, array in theirs.items()}
        return {
            "input": made["in_proj.weight"].T, "input_bias": made["in_proj.bias"],
            "kernel": made["conv.conv.weight"][:, 0].T, "output": made["out_proj.weight"].T,
            "output_bias": made["out_proj.bias"],
        }  # fmt: skip

    def run(theirs, x):
        y, _ = base_conv(ours(theirs), x)
        return jnp.sum(y * case.inputs["w"]), y

    x = jnp.asarray(case.inputs["x"])
    (_, y), (grads, x_bar) = jax.value_and_grad(run, (0, 1), has_aux=True)(dict(case.params), x)
    module = BaseConv(
        config["d_model"], expansion=config["expand_proj"] // 2, conv_size=config["kernel_size"], dtype="float64"
    )
    state, parts = None, []
    for t in range(x.shape[1]):
        part, state = module.apply({"params": ours(case.params)}, x[:, t : t + 1], state)
        parts.append(part)
    agree("token by token", jnp.concatenate(parts, axis=1), y)
    yield "outputs/y", y
    yield "grads/x", x_bar
    yield from ((f"grads/{name}", grads[name]) for name in case.params)


def sets(case: Any) -> Iterator[tuple[str, Any]]:
    """Form only: the file's rows taken apart and put together again; rows of ours pass for rows of the file."""
    rows = case.outputs["inputs"]
    labels = np.full_like(case.outputs["labels"], -100)
    labels[:, -1] = [shared_element(row) for row in rows]
    border = [int(np.flatnonzero(row == BETWEEN)[0]) for row in rows]
    again = [two_sets(jnp.asarray(row[1:n]), jnp.asarray(row[n + 1 : -1])) for row, n in zip(rows, border)]
    first = border[0] - 1
    task = SetDisjointness(case.config["vocab_size"], ((first, rows.shape[1] - 3 - first),))
    batch = task.batch(jax.random.key(0), len(rows))
    if batch.inputs.shape != rows.shape or [shared_element(r) for r in batch.inputs] != batch.targets[:, -1].tolist():
        raise ValueError("rows of the task have another form than those of the file")
    yield "outputs/inputs", np.stack(again)
    yield "outputs/labels", labels
