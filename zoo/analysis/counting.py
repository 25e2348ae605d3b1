"""Counting what a model costs: parameters, bytes of state, floating-point operations, memory.

Operations are counted on the traced program, not taken from XLA's cost analysis: that one counts the body of a loop
once, however often it runs, and so misses all but 1/T of a recurrence. Memory is XLA's own plan of the compiled program.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend import core


def count_parameters(params: Any) -> int:
    """Number of scalars in a pytree of arrays (a complex number counts as two)."""
    leaves = jax.tree.leaves(params)
    return sum(
        math.prod(np.shape(leaf)) * (2 if np.issubdtype(leaf.dtype, np.complexfloating) else 1) for leaf in leaves
    )


def state_bytes(module: Any, batch_size: int = 1, dtype: str | None = None) -> int:
    """Bytes of the state that ``module`` carries between calls; 0 for modules without one."""
    state = jax.eval_shape(lambda: module.initial_state(batch_size, dtype))
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))


def flops(function: Callable, *args: Any) -> int:
    """Floating-point operations of ``function(*args)``.

    Matrix products and convolutions count 2 per multiply-add (times 4 when complex), an FFT of n points 5 n log2 n,
    every other arithmetic operation on floats 1 per output entry (a reduction: per input entry). A scan counts its
    length, a conditional its dearest branch, and a while loop, whose length is unknown, one round.

    Args:
      function: what to count; it is traced, never run.
      *args: its arguments, or ``jax.ShapeDtypeStruct`` in their place.
    """
    return _count(jax.make_jaxpr(function)(*args).jaxpr)


class Memory(NamedTuple):
    """Bytes on one device, as planned by XLA.

    Attributes:
      arguments: inputs of the program.
      outputs: its results.
      temporary: buffers that live during the run only.
      aliased: part of ``outputs`` that reuses donated arguments.
      total: arguments + outputs + temporary - aliased.
    """

    arguments: int
    outputs: int
    temporary: int
    aliased: int
    total: int


def memory(function: Callable, *args: Any) -> Memory:
    """Memory of the compiled ``function(*args)``.

    Args:
      function: what to compile, or an already jitted function (to donate arguments).
      *args: its arguments, or ``jax.ShapeDtypeStruct`` in their place.
    """
    jitted = function if hasattr(function, "lower") else jax.jit(function)
    plan = jitted.lower(*args).compile().memory_analysis()
    if plan is None:
        raise ValueError(f"the backend {jax.default_backend()!r} gives no memory analysis")
    parts = (plan.argument_size_in_bytes, plan.output_size_in_bytes, plan.temp_size_in_bytes, plan.alias_size_in_bytes)
    return Memory(*parts, total=sum(parts[:3]) - parts[3])


_FREE = {
    "broadcast_in_dim", "reshape", "transpose", "slice", "dynamic_slice", "dynamic_update_slice", "gather", "scatter",
    "concatenate", "pad", "rev", "squeeze", "expand_dims", "convert_element_type", "bitcast_convert_type", "iota", "copy",
    "stop_gradient", "select_n", "real", "imag", "complex", "device_put", "split", "copy_p", "optimization_barrier",
    "reduce_precision",
}  # fmt: skip


def _count(jaxpr: core.Jaxpr) -> int:
    return sum(_equation(equation) for equation in jaxpr.eqns)


def _equation(equation: Any) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        left = equation.invars[0].aval
        depth = math.prod(left.shape[axis] for axis in contracted)
        return 2 * depth * _size(equation.outvars) * (4 if np.issubdtype(left.dtype, np.complexfloating) else 1)
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval.shape
        features_out = kernel[params["dimension_numbers"].rhs_spec[0]]
        return 2 * math.prod(kernel) // features_out * _size(equation.outvars)
    if name == "fft":
        points = math.prod(params["fft_lengths"])
        rows = max(_size(equation.invars), _size(equation.outvars)) // points
        return int(5 * max(rows, 1) * points * math.log2(max(points, 2)))
    if name == "scan":
        return params["length"] * _count(params["jaxpr"].jaxpr)
    if name == "while":
        return _count(params["body_jaxpr"].jaxpr) + _count(params["cond_jaxpr"].jaxpr)
    if name == "cond":
        return max(_count(branch.jaxpr) for branch in params["branches"])
    if name == "custom_linear_solve":
        return _count(params["jaxprs"].solve.jaxpr)
    inner = [j for j in map(_jaxpr_of, params.values()) if j is not None]
    if inner:  # a call: jit, remat, custom derivatives
        return _count(inner[0])
    if name in _FREE or not any(_floating(v) for v in equation.outvars):
        return 0
    reduces = name.startswith("reduce") or name.startswith("cum") or name.startswith("scatter")
    return _size(equation.invars[:1] if reduces else equation.outvars)


def _jaxpr_of(value: Any) -> core.Jaxpr | None:
    if isinstance(value, core.ClosedJaxpr):
        return value.jaxpr
    return value if isinstance(value, core.Jaxpr) else None


def _floating(variable: Any) -> bool:
    return jax.dtypes.issubdtype(getattr(variable.aval, "dtype", np.int32), np.inexact)  # knows bfloat16 and keys


def _size(variables: Any) -> int:
    return sum(math.prod(getattr(v.aval, "shape", ())) for v in variables)
