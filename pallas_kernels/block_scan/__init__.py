"""Linear recurrence with 2 x 2 blocks: ``h_t = J_t h_{t-1} + b_t``, one block per channel, for GPU and TPU.

    matrices  [B, T, N, 2, 2]   float32, bfloat16 or float16 (GPU)
    inputs    [B, T, N, 2]
    initial   [B, N, 2]         zero when None
    states    [B, T, N, 2]
    last      [B, N, 2]         float32

Storage: the kernels take the four entries and the two components as planes [B, T, N], so that channels lie on the lanes;
the planes are cut out here, which XLA fuses into what makes and reads the arrays. It is the kernel of ``linear_scan``
with products of matrices (``pallas_kernels.linear_scan.planes``): everything accumulated in float32, every plane once
through memory, forward and backward, long T with few channels in chunks. float64 runs ``reference``.
"""

import jax.numpy as jnp
from jax import Array

from pallas_kernels.block_scan.reference import reference
from pallas_kernels.block_scan.tiles import fits
from pallas_kernels.compat import resolve
from pallas_kernels.linear_scan import scan_planes


def block_scan(
    matrices: Array,
    inputs: Array,
    initial: Array | None = None,
    *,
    reverse: bool = False,
    after: bool = False,
    platform: str | None = None,
    interpret: bool | None = None,
) -> tuple[Array, Array]:
    """Runs ``h_t = J_t h_{t-1} + b_t`` over axis 1.

    Args:
      matrices: J [B, T, N, 2, 2].
      inputs: b [B, T, N, 2], T >= 1.
      initial: the state before the first step run; zeros when None.
      reverse: run from the end.
      after: ``h_t = b_t + carry``, ``carry = J_t h_t``; with transposed matrices and run the other way round this is the
        transposed recurrence. ``initial`` and ``last`` are carries.
      platform, interpret: as in ``pallas_kernels.linear_scan.linear_scan``.

    Returns:
      states: [B, T, N, 2] in the result type of ``matrices`` and ``inputs``.
      last: [B, N, 2], at least float32.

    Raises:
      TypeError: an argument is not real floating-point.
      ValueError: shapes do not fit, T = 0, or an unknown platform.
    """
    platform, interpret = resolve(platform, interpret)
    for name, array in (("matrices", matrices), ("inputs", inputs), ("initial", initial)):
        if array is not None and not jnp.issubdtype(getattr(array, "dtype", None), jnp.floating):
            raise TypeError(f"{name} must be a real array, got {getattr(array, 'dtype', type(array).__name__)}")
    if inputs.ndim != 4 or inputs.shape[3] != 2 or inputs.shape[1] == 0:
        raise ValueError(f"inputs must have shape [batch, time, channels, 2] with time >= 1, got {list(inputs.shape)}")
    if tuple(matrices.shape) != (*inputs.shape, 2):
        raise ValueError(f"matrices must have shape {[*inputs.shape, 2]}, got {list(matrices.shape)}")
    state = (inputs.shape[0], *inputs.shape[2:])
    if initial is not None and tuple(initial.shape) != state:
        raise ValueError(f"initial must have shape {list(state)}, got {list(initial.shape)}")
    matrices, inputs = jnp.asarray(matrices), jnp.asarray(inputs)
    dtype = jnp.result_type(matrices, inputs)
    wide = jnp.promote_types(dtype, jnp.float32)
    initial = jnp.zeros(state, wide) if initial is None else jnp.asarray(initial)
    initial = initial.astype(jnp.promote_types(wide, initial.dtype))
    if not fits(platform, matrices.size, matrices.dtype, inputs.dtype, initial.dtype) or not inputs.size:
        return reference(matrices, inputs, initial, reverse=reverse, after=after)
    states, last = scan_planes(
        (reverse, after, platform, interpret),
        tuple(matrices[..., i, j] for i in range(2) for j in range(2)),
        tuple(inputs[..., i].astype(dtype) for i in range(2)),
        tuple(initial[..., i] for i in range(2)),
    )
    return jnp.stack(states, -1), jnp.stack(last, -1)
