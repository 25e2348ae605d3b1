"""The pointwise step as a kernel: what alternates with a matrix product of XLA where R does not fit on the chip.

Every element of a step is independent of the others, so a program takes a tile of [B, E] with E = N D: one row and up to 512
lanes on a GPU, up to 64 rows on a TPU. A step's gates are read once and its states written once, whatever the cell does.
"""

import jax
from jax import lax
from jax import numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from pallas_kernels.compat import gpu_params, tpu_params
from pallas_kernels.rnn import reference
from pallas_kernels.rnn.gpu import at


def pointwise(cell, clip, *, platform, interpret):
    """``reference.stacked`` as a kernel."""

    def tile(load, refs):
        recurrent, wx, bias, states = (load(ref) for ref in refs)
        states, gates = reference.step(cell, recurrent, wx, bias, states, clip=clip)
        return (*states, *gates)

    def run(recurrent, wx, bias, states):
        counts = cell.states, cell.gates_i
        return _call(tile, (recurrent, wx, bias, states), counts, platform, interpret, f"rnn_{cell.name}_pointwise")

    return run


def pointwise_back(cell, clip, *, platform, interpret):
    """``reference.stacked_back`` as a kernel."""

    def tile(load, refs):
        d_states, gates, before, after = (load(ref) for ref in refs)
        d_gates, d_before = reference.step_back(cell, d_states, gates, before, after, clip=clip)
        return (*d_gates, *d_before)

    def run(d_states, gates, before, after):
        counts = cell.gates_t, cell.states
        return _call(
            tile, (d_states, gates, before, after), counts, platform, interpret, f"rnn_{cell.name}_pointwise_back"
        )

    return run


def _call(tile, arrays, counts, platform, interpret, name):
    """Runs ``tile`` on blocks of float32 ``arrays`` [K, B or 1, E]; its results are [count, B, E] for ``counts``."""
    batch, width = arrays[-1].shape[1:]
    if platform == "gpu":
        rows, lanes = 1, min(512, max(16, 1 << (width - 1).bit_length()))
        params = gpu_params(num_warps=4, num_stages=1)
    else:
        rows, lanes = min(batch, 64), min(width, 512)
        params = tpu_params(dimension_semantics=("parallel", "parallel"))
    ragged = platform == "gpu" and width % lanes

    def kernel(*refs):
        inside = lax.broadcasted_iota(jnp.int32, (lanes,), 0) < width - pl.program_id(1) * lanes if ragged else None

        def load(ref):
            def read(k):
                return plgpu.load(at(ref, (k,)), mask=inside, other=0.0) if ragged else ref[k]

            return tuple(read(k).astype(jnp.float32) for k in range(ref.shape[0]))

        results = iter(tile(load, refs[: len(arrays)]))
        for ref in refs[len(arrays) :]:
            for k in range(ref.shape[0]):
                if ragged:
                    plgpu.store(at(ref, (k,)), next(results), mask=inside)
                else:
                    ref[k] = next(results)

    def block(count, height):
        if platform == "gpu":
            return pl.BlockSpec((count, None, lanes), lambda i, j: (0, i if height > 1 else 0, j))
        return pl.BlockSpec((count, min(rows, height), lanes), lambda i, j: (0, i if height > 1 else 0, j))

    return pl.pallas_call(
        kernel,
        out_shape=[jax.ShapeDtypeStruct((count, batch, width), jnp.float32) for count in counts],
        grid=(pl.cdiv(batch, rows), pl.cdiv(width, lanes)),
        in_specs=[block(*array.shape[:2]) for array in arrays],
        out_specs=[block(count, batch) for count in counts],
        compiler_params=params,
        interpret=interpret,
        name=name,
    )(*arrays)
