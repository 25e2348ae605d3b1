"""Recurrences whose state is a matrix, or the weights of a memory: chunkwise-parallel functions, one family.

Each has a step form, a sequential form that is its meaning, and a form in chunks of C steps that is matrix products inside a
chunk and a short recurrence between chunks. State in and out, at least float32 inside, derivatives with respect to every
input and the initial state, with a cotangent on the last state too. Padding steps and documents are the caller's, by the
gates: a step whose write strength is 0 and whose log decay is 0 changes nothing.

    decay        linear_attention: no decay, one per head, one per key channel
    windowed     ... over the last r steps only
    clipped      ... with a bound on the norm of the state
    prefix       prefix_linear_attention: ... with a prefix that every step sees whole
    delta_rule   gated_delta_rule: writes what its prediction lacks; delta_product: several times per token
    descent      memory_descent: gradient descent on the weights of a memory of any depth
    memory       what such a memory is
    miras        miras_scan: any memory, bias (attentional_bias.py), retention (retention.py) and algorithm
"""

from zoo.scans.chunked.attentional_bias import BIASES
from zoo.scans.chunked.clipped import chunk_clipped_linear_attention, clip_state, clipped_linear_attention
from zoo.scans.chunked.decay import linear_attention, linear_attention_step
from zoo.scans.chunked.delta_rule import (
    delta_product,
    delta_product_step,
    flatten_steps,
    gated_delta_rule,
    gated_delta_rule_step,
)
from zoo.scans.chunked.descent import DescentState, memory_descent, start_descent
from zoo.scans.chunked.memory import apply_memory, squared_error, token_gradients
from zoo.scans.chunked.miras import (
    ALGORITHMS,
    Miras,
    MirasGates,
    MirasState,
    matrix_memory,
    miras_norms,
    miras_read,
    miras_scan,
    miras_state,
    miras_step,
    miras_weights,
    vector_memory,
)
from zoo.scans.chunked.prefix import prefix_linear_attention
from zoo.scans.chunked.retention import RETENTIONS
from zoo.scans.chunked.windowed import WindowRing, window_difference, windowed_linear_attention

__all__ = [
    "ALGORITHMS",
    "BIASES",
    "RETENTIONS",
    "DescentState",
    "Miras",
    "MirasGates",
    "MirasState",
    "WindowRing",
    "apply_memory",
    "chunk_clipped_linear_attention",
    "clip_state",
    "clipped_linear_attention",
    "delta_product",
    "delta_product_step",
    "flatten_steps",
    "gated_delta_rule",
    "gated_delta_rule_step",
    "linear_attention",
    "linear_attention_step",
    "matrix_memory",
    "memory_descent",
    "miras_norms",
    "miras_read",
    "miras_scan",
    "miras_state",
    "miras_step",
    "miras_weights",
    "prefix_linear_attention",
    "squared_error",
    "start_descent",
    "token_gradients",
    "vector_memory",
    "window_difference",
    "windowed_linear_attention",
]
