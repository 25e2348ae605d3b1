"""Counts agree with counting by hand."""

import jax
import jax.numpy as jnp

import zoo
from zoo.analysis import count_parameters, flops, memory, state_bytes

SQUARE = jax.ShapeDtypeStruct((8, 8), jnp.float32)


def test_parameters_and_state():
    assert count_parameters({"a": jnp.zeros((2, 3)), "b": {"c": jnp.zeros(()), "z": jnp.zeros(2, jnp.complex64)}}) == 11
    assert state_bytes(zoo.create("lru", dim=4, state_dim=6), 3) == 3 * 6 * 8
    attention = zoo.create("attention", dim=8, heads=2, window=16)
    assert state_bytes(attention, 2) == 2 * (2 * 16 * 8 * 4 + 8)
    assert state_bytes(attention, 2, "bfloat16") == 2 * (2 * 16 * 8 * 2 + 8)
    assert state_bytes(zoo.create("bidirectional_attention", dim=8)) == 0


def test_operations_of_products_loops_branches_and_calls():
    product = 2 * 8**3
    assert flops(lambda a, b: a @ b, SQUARE, SQUARE) == product
    assert flops(jax.jit(lambda a, b: jnp.einsum("ij,kj->ik", a, b) + 1), SQUARE, SQUARE) == product + 64
    assert flops(lambda a: jax.lax.scan(lambda h, _: (h @ a, None), a, None, length=10)[0], SQUARE) == 10 * product
    assert flops(lambda a: jax.lax.cond(True, lambda: a @ a @ a, lambda: a), SQUARE) == 2 * product
    # the gradient recomputes the product, then multiplies twice
    gradient = flops(jax.grad(lambda a: jnp.sum(jax.checkpoint(lambda b: jnp.tanh(b @ b))(a))), SQUARE)
    assert 4 * product <= gradient <= 4 * product + 20 * 64
    assert flops(lambda a: a.astype(jnp.complex64) @ a.astype(jnp.complex64), SQUARE) == 4 * product


def test_operations_of_a_recurrence_grow_with_its_length():
    model = zoo.create("lru", dim=4, state_dim=3)
    params = model.init(jax.random.key(0), jnp.zeros((1, 2, 4)))
    counts = [
        flops(lambda x: model.apply(params, x)[0], jax.ShapeDtypeStruct((1, t, 4), jnp.float32)) for t in (64, 256)
    ]
    assert 3.8 < counts[1] / counts[0] < 4.2


def test_memory_is_what_the_compiled_program_needs():
    plan = memory(lambda a, b: (a @ b) @ a, SQUARE, SQUARE)
    assert (plan.arguments, plan.outputs) == (512, 256)
    assert plan.temporary >= 256 and plan.total == plan.arguments + plan.outputs + plan.temporary
    donated = memory(jax.jit(lambda a: a + 1, donate_argnums=0), SQUARE)
    assert donated.aliased == 256 and donated.total == 256 + donated.temporary
