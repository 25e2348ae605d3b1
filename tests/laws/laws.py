"""The laws that every mixer obeys (DESIGN section 6), as functions of a subject; a broken one raises AssertionError.

``Subject`` holds a module with its parameters and the few compiled functions that the laws share: compiling is what
tests cost. Tolerances follow from the dtype: values and gradients are compared relative to the largest entry, with a
margin for the rounding of T steps.
"""

import functools
import importlib
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import serialization

import zoo
from zoo.models import Block, Stack
from zoo.models.stack import keeps_state

BATCH, TIME, CUT, DIM = 3, 12, 5, 8
EPS32 = float(np.finfo(np.float32).eps)


def beside(module: Any, x: Any) -> dict[str, Any]:
    """What ``module`` reads besides x: tokens made from x, step by step, where it ``reads_tokens``."""
    if not getattr(module, "reads_tokens", False):
        return {}
    return {"tokens": (x[..., 0] > -0.4).astype(np.int32) + (x[..., 0] > 0.4)}


class Subject:
    """A mixer under test: ``module``, float32 ``params``, an input ``x`` [BATCH, TIME, DIM], shared jitted calls.

    ``cut`` is where the laws cut in two; half of TIME has one length less to compile.
    """

    def __init__(self, module: Any, oracle: Callable | None = None, cut: int = CUT):
        self.module, self.oracle, self.cut = module, oracle, cut
        keys = jax.random.split(jax.random.key(7), 3)
        self.x = jax.random.normal(keys[0], (BATCH, TIME, DIM))
        self.weights = jax.random.normal(keys[1], (BATCH, TIME, DIM))
        self.no_reset = jnp.zeros((BATCH, TIME), bool)
        self.params = jax.jit(module.init)(keys[2], self.x, **beside(module, self.x))
        # Laws must not hold by accident of an initialisation at zero or one.
        self.params = jax.tree.map(
            lambda p, k: p + 0.05 * jax.random.normal(k, p.shape).astype(p.dtype), self.params, _keys_like(self.params)
        )
        self.traces = 0

    def apply(self, params: Any, x: Any, *state: Any, **options: Any) -> tuple[Any, Any]:
        """``module.apply``."""
        return self.module.apply(params, x, *state, **beside(self.module, x), **options)

    @property
    def causal(self) -> bool:
        return self.module.causal

    @property
    def prefix(self) -> int:
        """Tokens at the beginning of a document that may see each other and that one call must hold: 0 if causal."""
        return 0 if self.causal else getattr(self.module, "prefix_length", 0)

    @property
    def keeps_state(self) -> bool:
        return keeps_state(self.module)

    @functools.cached_property
    def initial(self) -> Any:
        return self.module.initial_state(BATCH) if self.keeps_state else None

    @functools.cached_property
    def call(self) -> Callable:
        """Jitted (params, x, state, reset) -> (y, state)."""

        def apply(params, x, state, reset):
            self.traces += 1
            return self.apply(params, x, state, reset=reset)

        return jax.jit(apply)

    @functools.cached_property
    def whole(self) -> tuple[Any, Any]:
        return self.call(self.params, self.x, self.initial, self.no_reset)

    def pieces(self, sizes: list[int], call: Callable | None = None) -> tuple[jax.Array, Any]:
        """Runs x in consecutive pieces, handing the state over."""
        call = call or self.call
        state, ys, start = self.initial, [], 0
        for size in sizes:
            stop = start + size
            y, state = call(self.params, self.x[:, start:stop], state, self.no_reset[:, start:stop])
            ys.append(y)
            start = stop
        return jnp.concatenate(ys, axis=1), state


def _keys_like(tree: Any) -> Any:
    leaves, structure = jax.tree.flatten(tree)
    return jax.tree.unflatten(structure, list(jax.random.split(jax.random.key(11), len(leaves))))


def close(got: Any, want: Any, message: str, steps: int = TIME, eps: float = EPS32) -> None:
    """Compares two trees leaf by leaf, relative to the largest entry: 32 roundings per step are allowed."""
    tree_got, tree_want = jax.tree.leaves(got), jax.tree.leaves(want)
    assert len(tree_got) == len(tree_want), f"{message}: different structure"
    for a, b in zip(tree_got, tree_want):
        a, b = np.asarray(a), np.asarray(b)
        assert a.shape == b.shape, f"{message}: shapes {a.shape} and {b.shape}"
        if not np.issubdtype(b.dtype, np.inexact) and b.dtype != jnp.bfloat16:
            assert np.array_equal(a, b), f"{message}: integers differ"
            continue
        kind = np.complex128 if np.iscomplexobj(b) else np.float64
        a, b = a.astype(kind), b.astype(kind)
        finite = np.isfinite(b)
        assert np.array_equal(a[~finite], b[~finite], equal_nan=True), f"{message}: infinities differ"
        scale = max(1.0, np.max(np.abs(b[finite]), initial=0.0))
        error = np.max(np.abs(a[finite] - b[finite]), initial=0.0)
        assert error <= 32 * steps * eps * scale, f"{message}: off by {error:.2e} (largest entry {scale:.2e})"


def law_cut(s: Subject) -> None:
    """Any split, and one token at a time, equals the whole; states and gradients too."""
    if not s.keeps_state:
        try:
            s.apply(s.params, s.x, s.x)
        except ValueError:
            assert s.whole[1] is None, "a mixer with causal = False keeps no state"
            return
        raise AssertionError("a mixer with causal = False must refuse a state")
    y, state = s.whole
    default = jax.jit(s.apply)(s.params, s.x)
    close(default, (y, state), "state=None is not the initial state")
    first = [s.prefix] if s.prefix else []
    for sizes in ([s.cut, TIME - s.cut], first + [1] * (TIME - s.prefix)):
        y_cut, state_cut = s.pieces(sizes)
        close(y_cut, y, f"y in pieces of {sizes}")
        close(state_cut, state, f"state after pieces of {sizes}")

    def loss(params, x, sizes):
        state, total, start = s.initial, 0.0, 0
        for size in sizes:
            stop = start + size
            y, state = s.apply(params, x[:, start:stop], state)
            total, start = total + jnp.sum(y * s.weights[:, start:stop]), stop
        return total

    grad = jax.jit(jax.grad(loss, (0, 1)), static_argnums=2)
    close(grad(s.params, s.x, (s.cut, TIME - s.cut)), grad(s.params, s.x, (TIME,)), "gradients across a cut")


def law_one_cut(s: Subject) -> None:
    """The short form of the cut law: one split in two, values and states."""
    if s.keeps_state:
        close(s.pieces([s.cut, TIME - s.cut]), s.whole, f"cut at {s.cut}")


def law_every_cut(s: Subject) -> None:
    """The long form of the cut law: all splits in two."""
    for cut in range(max(1, s.prefix), TIME if s.keeps_state else 1):
        close(s.pieces([cut, TIME - cut]), s.whole, f"cut at {cut}")


def law_causality(s: Subject) -> None:
    """Changing x[t] changes no y before t, exactly; by roundings where a mixer iterates until its residual is small.

    After a prefix this is so for t behind it, and the prefix must earn its name: its last token changes its first output.
    """
    if not s.keeps_state:
        return
    y = np.asarray(s.whole[0])
    exactly = getattr(s.module, "exactly_causal", True)
    if s.prefix:
        changed = s.call(s.params, s.x.at[:, s.prefix - 1].add(1.0), s.initial, s.no_reset)[0]
        assert not np.array_equal(np.asarray(changed)[:, 0], y[:, 0]), "a prefix that is causal"
    for t in range(max(1, s.prefix), TIME):
        changed = s.call(s.params, s.x.at[:, t].add(1.0), s.initial, s.no_reset)[0]
        if exactly:
            assert np.array_equal(np.asarray(changed)[:, :t], y[:, :t]), f"x[{t}] changes an earlier output"
        else:
            close(np.asarray(changed)[:, :t], y[:, :t], f"x[{t}] changes an earlier output")
        assert not np.array_equal(np.asarray(changed)[:, t:], y[:, t:]), f"x[{t}] changes nothing at all"


def law_reset(s: Subject) -> None:
    """A packed row equals its documents run alone, and a reset cuts off the state handed in."""
    reset = s.no_reset.at[:, s.cut].set(True)
    y, state = s.call(s.params, s.x, s.initial, reset)
    first, _ = s.call(s.params, s.x[:, : s.cut], s.initial, s.no_reset[:, : s.cut])
    second, last = s.call(s.params, s.x[:, s.cut :], s.initial, s.no_reset[:, s.cut :])
    close(y, jnp.concatenate([first, second], axis=1), "packed documents")
    assert not np.allclose(y, s.whole[0], atol=1e-6), "a reset changes nothing"
    if not s.keeps_state:
        return
    # What the state means is in what it does next: states of rolling buffers may differ where nothing can be seen.
    more = s.x[:, : s.cut]
    after = s.call(s.params, more, state, s.no_reset[:, : s.cut])[0]
    close(after, s.call(s.params, more, last, s.no_reset[:, : s.cut])[0], "continuation after packed documents")
    alone = s.call(s.params, s.x, s.initial, s.no_reset)[0]
    cut_off = s.call(s.params, s.x, s.whole[1], s.no_reset.at[:, 0].set(True))[0]
    close(cut_off, alone, "a reset at the first token lets the old state through")
    uneven = s.no_reset.at[0, 3].set(True).at[1, 0].set(True)
    rows = s.call(s.params, s.x, s.initial, uneven)[0]
    close(rows[1:], alone[1:], "a reset in one row reaches another")
    if s.prefix:  # documents that begin in one-token calls have prefixes of one token
        return
    per_token, state = [], s.initial
    for t in range(TIME):
        y_t, state = s.call(s.params, s.x[:, t : t + 1], state, uneven[:, t : t + 1])
        per_token.append(y_t)
    close(jnp.concatenate(per_token, axis=1), rows, "resets one token at a time")


def law_batch(s: Subject) -> None:
    """Rows do not see each other, exactly."""
    y = np.asarray(s.whole[0])
    changed = np.asarray(s.call(s.params, s.x.at[0].add(1.0), s.initial, s.no_reset)[0])
    assert np.array_equal(changed[1:], y[1:]), "row 0 reaches other rows"
    assert not np.array_equal(changed[0], y[0]), "row 0 does not even reach itself"


def law_oracle_and_gradient(s: Subject) -> None:
    """In float64, with and without resets: y equals the NumPy oracle, gradients equal its finite differences."""
    resets = np.zeros((BATCH, TIME), bool)
    resets[0, 4] = resets[1, 0] = resets[1, 9] = True
    module = s.module.clone(dtype="float64")
    wide = jax.tree.map(np.float64, s.params)
    x, weights = np.float64(s.x), np.float64(s.weights)

    with jax.enable_x64(True):

        @jax.jit
        def value_and_grads(params, x, reset):
            y, pullback = jax.vjp(lambda p, x: module.apply(p, x, **beside(module, x), reset=reset)[0], params, x)
            return y, pullback(jnp.asarray(weights, y.dtype))

        for reset in (np.zeros_like(resets), resets):
            y, grads = jax.tree.map(np.asarray, value_and_grads(wide, x, reset))
            assert y.dtype == np.float64, f"dtype='float64' computes in {y.dtype}"
            want = s.oracle(module, wide["params"], x, reset, **beside(module, x))
            assert np.allclose(y, want, rtol=1e-9, atol=1e-10), f"oracle: off by {np.max(np.abs(y - want)):.2e}"
            for seed in range(2):
                _directional(
                    functools.partial(s.oracle, **beside(module, x)), module, wide, x, reset, weights, grads, seed
                )


def _directional(oracle, module, params, x, reset, weights, grads, seed) -> None:
    """Central differences of the oracle along a random direction against the gradient's component along it."""
    generator = np.random.default_rng(seed)
    direction = jax.tree.map(lambda p: generator.standard_normal(p.shape), (params, x))

    def value(shift):
        p, moved = jax.tree.map(lambda a, d: a + shift * d, (params, x), direction)
        return float(np.sum(oracle(module, p["params"], moved, reset) * weights))

    analytic = sum(float(np.sum(g * d)) for g, d in zip(jax.tree.leaves(grads), jax.tree.leaves(direction)))
    scale = max(1.0, *(float(np.linalg.norm(g)) for g in jax.tree.leaves(grads)))
    for step in (1e-5, 1e-6):  # the second look is for functions with kinks, when one lies within the first step
        numeric = (value(step) - value(-step)) / (2 * step)
        if abs(numeric - analytic) <= 2e-6 * scale:
            return
    raise AssertionError(f"gradient along a direction: {analytic} and {numeric}")


def law_precision(s: Subject) -> None:
    """bfloat16 compute stays within 16 roundings (2^-8 each) of float32, relative to the size of the output."""
    module = s.module.clone(dtype="bfloat16")
    y, state = jax.jit(lambda p, x: module.apply(p, x, **beside(module, x)))(s.params, s.x)
    assert y.dtype == jnp.bfloat16, f"dtype='bfloat16' returns {y.dtype}"
    want = np.asarray(s.whole[0], np.float64)
    error = np.linalg.norm(np.asarray(y, np.float64) - want) / np.linalg.norm(want)
    assert error <= 16 * 2**-8, f"bfloat16 is off by {error:.3f}"
    close_dtype = jax.tree.map(lambda a: a.dtype, s.whole[1])
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        assert leaf.dtype in (jnp.bfloat16, *jax.tree.leaves(close_dtype)), f"state{path} is {leaf.dtype}"


def law_compose(s: Subject) -> None:
    """jit, vmap, remat, scan over layers, pmap on 2 devices give the same numbers; equal shapes do not retrace."""
    y = s.whole[0]
    s.call(s.params, s.x + 1, s.initial, s.no_reset)
    before = s.traces
    s.call(s.params, s.x + 2, s.initial, s.no_reset)
    assert s.traces == before, "retraced on equal shapes"

    def run(params, x):
        return s.apply(params, x)[0]

    two = jnp.stack([s.x, 2 * s.x])
    rows = jax.jit(jax.vmap(run, (None, 0)))(s.params, two)
    close(rows[0], y, "vmap")
    close(jax.pmap(run, in_axes=(None, 0))(s.params, two), rows, "pmap on 2 devices")

    def loss(function):
        return jax.jit(jax.grad(lambda p, x: jnp.sum(function(p, x) * s.weights), (0, 1)))(s.params, s.x)

    close(loss(jax.checkpoint(run)), loss(run), "gradients under remat")

    spec = zoo.describe(s.module)
    stack = Stack(dim=DIM, pattern=(spec,), depth=3, mlp="none", final_norm=False)
    tokens = beside(s.module, s.x)
    params = jax.jit(stack.init)(jax.random.key(0), s.x, **tokens)
    block = Block(mixer=spec, dim=DIM, mlp="none")
    h = s.x
    step = jax.jit(lambda p, h: block.apply({"params": p}, h, **tokens)[0])
    for layer in range(3):
        h = step(jax.tree.map(lambda p, i=layer: p[i], params["params"]["layers"]["run_0"]), h)
    close(jax.jit(lambda p, x: stack.apply(p, x, **tokens)[0])(params, s.x), h, "scan over layers", steps=3 * TIME)


def law_long(s: Subject) -> None:
    """T = 4097 and T = 1 work without NaN, and memory grows linearly in T unless the mixer is ``quadratic``."""
    run = jax.jit(lambda p, x: s.apply(p, x)[0])
    one, long = (jax.random.normal(jax.random.key(time), (1, time, DIM)) for time in (1, 4097))
    compiled = run.lower(s.params, long).compile()
    if not getattr(s.module, "quadratic", False):
        large = compiled.memory_analysis().temp_size_in_bytes
        shorter = jax.ShapeDtypeStruct((1, 1025, DIM), jnp.float32)
        small = run.lower(s.params, shorter).compile().memory_analysis().temp_size_in_bytes
        # Linear is a factor of 4, quadratic one of 16; how tightly XLA packs buffers differs by up to 1.4 between sizes.
        assert large <= 8 * small + 2**16, f"memory {small} B at T = 1025 and {large} B at T = 4097"
    assert np.all(np.isfinite(run(s.params, one))), "T = 1 gives NaN or infinity"
    assert np.all(np.isfinite(compiled(s.params, long))), "T = 4097 gives NaN or infinity"


def law_describe(s: Subject) -> None:
    """create(describe(m)) == m through JSON; parameters and state survive a save and a load."""
    description = json.loads(json.dumps(zoo.describe(s.module)))
    assert zoo.create(description) == s.module, f"create(describe(m)) differs: {description}"
    state = serialization.to_state_dict(s.whole[1])
    with tempfile.TemporaryDirectory() as folder:
        zoo.save(Path(folder) / "model", s.module, {"params": s.params, "state": state})
        module, loaded = zoo.load(Path(folder) / "model")
    assert module == s.module
    close(loaded["params"], s.params, "parameters after save and load", eps=0)
    if s.keeps_state:
        restored = serialization.from_state_dict(s.initial, loaded["state"])
        close(restored, s.whole[1], "state after save and load", eps=0)


def law_errors(s: Subject) -> None:
    """Wrong rank, width, dtype, length, reset or state give one clear error, never a wrong answer."""
    x, wrong = s.x, []
    wrong.append(("rank", (x[0],), {}, "shape|rank"))
    wrong.append(("width", (x[..., :-1],), {}, "width|dim"))
    wrong.append(("integers", (x.astype(jnp.int32),), {}, "float"))
    wrong.append(("no time steps", (x[:, :0],), {}, "T = 0|time"))
    wrong.append(("reset of a wrong shape", (x,), {"reset": s.no_reset[:, 1:]}, "reset"))
    wrong.append(("reset of a wrong dtype", (x,), {"reset": jnp.zeros((BATCH, TIME))}, "reset"))
    if s.keeps_state:
        wrong.append(("state of another batch size", (x, s.module.initial_state(BATCH + 1)), {}, "state"))
        wrong.append(("state of a wrong type", (x, (x, x, x, x, x, x, x)), {}, "state"))
    for label, args, kwargs, words in wrong:
        try:
            jax.eval_shape(lambda a=args, k=kwargs: s.apply(s.params, *a, **k))
        except (ValueError, TypeError) as error:
            text = str(error)
            assert any(word in text for word in words.split("|")), f"{label}: unclear error {text!r}"
        else:
            raise AssertionError(f"{label}: accepted")


LAWS = {
    law.__name__.removeprefix("law_"): law
    for law in (
        law_cut, law_causality, law_reset, law_batch, law_oracle_and_gradient, law_precision, law_compose, law_long,
        law_describe, law_errors,
    )
}  # fmt: skip


def oracle_of(name: str) -> Callable:
    """The NumPy oracle of a registered mixer: ``oracle(module, params, x, reset)`` in tests/oracles/<name>.py."""
    return importlib.import_module(f"tests.oracles.{name}").oracle


def subjects() -> dict[str, tuple[str, dict]]:
    """Every variant of every registered mixer: "name-variant" -> (name, options)."""
    from zoo.registry import entry

    return {
        f"{name}-{variant}": (name, {"dim": DIM, **options})
        for name in zoo.list("mixer")
        for variant, options in entry(name).variants.items()
    }
