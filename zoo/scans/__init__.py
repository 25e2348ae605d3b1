"""Recurrences as functions of arrays: no parameters, no Flax, time on axis 1.

    linear_scan                h_t = decay_t * h_{t-1} + inputs_t, real or complex
    affine_scan                h_t = A_t h_{t-1} + b_t, dense or block matrices
    recurrent_scan             state_t = step(state_{t-1}, inputs_t), nonlinear: LSTM, GRU and their kin
      matmul                   ... its matrix product, accumulated in at least float32
      gate_kernels, gate_products  ... products with the weights of several gates
    softmax_scan               softmax attention of a fixed query over every prefix
      softmax_pool             ... over all steps only, block by block
      softmax_prefix_statistics  ... maximum, denominator and numerator of every prefix
      softmax_merge, SoftmaxState  ... partial results and their union
    fft_convolution            y_t = sum_{s<=t} kernel_{t-s} inputs_s
    adaptive_halting, Halting  repeat a step until every position halts (ACT)
    tree_reduce                balanced, masked reduction of a pytree

All of them accumulate in at least float32 and can be differentiated any number of times, forwards and backwards.
"""

from zoo.scans.affine import affine_scan
from zoo.scans.convolution import fft_convolution
from zoo.scans.halting import Halting, adaptive_halting
from zoo.scans.linear import linear_scan
from zoo.scans.recurrent import gate_kernels, gate_products, matmul, recurrent_scan
from zoo.scans.softmax import SoftmaxState, softmax_merge, softmax_pool, softmax_prefix_statistics, softmax_scan
from zoo.scans.tree import tree_reduce

__all__ = [
    "Halting",
    "SoftmaxState",
    "adaptive_halting",
    "affine_scan",
    "fft_convolution",
    "gate_kernels",
    "gate_products",
    "linear_scan",
    "matmul",
    "recurrent_scan",
    "softmax_merge",
    "softmax_pool",
    "softmax_prefix_statistics",
    "softmax_scan",
    "tree_reduce",
]
