"""Recurrences as functions of arrays: no parameters, no Flax, time on axis 1.

    linear_scan                h_t = decay_t * h_{t-1} + inputs_t, real or complex
    affine_scan                h_t = A_t h_{t-1} + b_t, dense or block matrices
    recurrent_scan             state_t = step(state_{t-1}, inputs_t), nonlinear: LSTM, GRU and their kin
      matmul                   ... its matrix product, accumulated in at least float32
      gate_kernels, gate_products  ... products with the weights of several gates
    linear_attention           S_t = diag(exp(g_t)) S_{t-1} + k_t v_t^T, y_t = q_t S_t: also RetNet, Mamba-2, GLA
      linear_attention_step    ... one step
      windowed_linear_attention, WindowRing  ... over the last r steps only
      window_difference        ... the states of that, from all states without a window
      clipped_linear_attention, chunk_clipped_linear_attention  ... with a bound on the state's norm
      clip_state               ... the bound itself
    prefix_linear_attention    ... with a prefix that every step sees whole
    gated_delta_rule           S_t = exp(g_t) S_{t-1} + beta_t k_t (v_t - k_t exp(g_t) S_{t-1})^T: (gated) DeltaNet
      gated_delta_rule_step    ... one step
    delta_product              several steps of that per token, one decay: DeltaProduct
      delta_product_step       ... one token
      flatten_steps            ... as steps of gated_delta_rule
    memory_descent             M_t = (1 - alpha_t) M_{t-1} + S_t, S_t = eta_t S_{t-1} - theta_t grad: Titans, TTT
      DescentState, start_descent  ... its state, and the first one
      apply_memory, token_gradients, squared_error  ... a memory read, the gradients of its tokens, its usual loss
    miras_scan                 a memory that learns while it reads: any memory, attentional bias, retention, algorithm
      Miras, MirasGates, MirasState  ... these four parts by name (BIASES, RETENTIONS, ALGORITHMS); gates; state
      miras_state, miras_step, miras_read  ... begin, one pair, one query
      miras_weights, miras_norms  ... the weights now, and the norm of what is carried for them
      matrix_memory, vector_memory  ... the two memories that need no layers
    selective_scan             h_t = exp(delta_t A) h_{t-1} + delta_t B_t x_t, y_t = C_t h_t: Mamba
    forward_backward           sums over the paths of a hidden Markov model, in logarithms
      log_matmul               ... the matrix product of these sums
    softmax_scan               softmax attention of a fixed query over every prefix
      softmax_pool             ... over all steps only, block by block
      softmax_prefix_statistics  ... maximum, denominator and numerator of every prefix
      softmax_merge, SoftmaxState  ... partial results and their union
    stabilized_gates           running maximum for gates that are exponentials: RWKV-4, mLSTM
      previous_steps           ... the states before every step
    solve_recurrence           state_t = step(state_{t-1}, x_t) for all t at once: Newton, DEER, ELK and their kin
      SolveDiagnostics, NonConvergenceError  ... how it went
      check_structure          ... the declared Jacobian structure against the true one
      lyapunov_exponent        ... how hard the recurrence is to solve
      fused_newton             ... known cells in one kernel
    flashrnn                   head-wise elman, gru, lstm, slstm and cells of one's own, with fused kernels
      register_cell, cell_counts  ... adds a cell; gates and states of a cell
    fft_convolution            y_t = sum_{s<=t} kernel_{t-s} inputs_s
    krylov                     b, A b, A^2 b, ... by doubling
      krylov_and_power         ... and the power that comes next
      impulse_response         C b, C A b, C A^2 b, ...: the kernel of a linear system
      impulse_factors, merge_factors  ... in two parts, which are much smaller
    dilated_convolution        y_t = sum_k kernel_k inputs_{t - lag_k}, lags multiples of a dilation
      receptive_field, choose_dilations  ... how far a stack of them reads, and which stack reads far enough
    adaptive_halting, Halting  repeat a step until every position halts (ACT)
    compiling_for              trace the scans as for another platform (ahead-of-time compiling)
    tree_reduce                balanced, masked reduction of a pytree

All of them accumulate in at least float32 and can be differentiated any number of times, forwards and backwards.
"""

from zoo.scans._auto import compiling_for
from zoo.scans.affine import affine_scan
from zoo.scans.chunked import (
    ALGORITHMS,
    BIASES,
    RETENTIONS,
    DescentState,
    Miras,
    MirasGates,
    MirasState,
    WindowRing,
    apply_memory,
    chunk_clipped_linear_attention,
    clip_state,
    clipped_linear_attention,
    delta_product,
    delta_product_step,
    flatten_steps,
    gated_delta_rule,
    gated_delta_rule_step,
    linear_attention,
    linear_attention_step,
    matrix_memory,
    memory_descent,
    miras_norms,
    miras_read,
    miras_scan,
    miras_state,
    miras_step,
    miras_weights,
    prefix_linear_attention,
    squared_error,
    start_descent,
    token_gradients,
    vector_memory,
    window_difference,
    windowed_linear_attention,
)
from zoo.scans.convolution import fft_convolution
from zoo.scans.dilated_convolution import choose_dilations, dilated_convolution, receptive_field
from zoo.scans.flashrnn import cell_counts, flashrnn, register_cell
from zoo.scans.halting import Halting, adaptive_halting
from zoo.scans.krylov import impulse_factors, impulse_response, krylov, krylov_and_power, merge_factors
from zoo.scans.linear import linear_scan
from zoo.scans.log_semiring import forward_backward, log_matmul
from zoo.scans.newton import (
    NonConvergenceError,
    SolveDiagnostics,
    check_structure,
    fused_newton,
    lyapunov_exponent,
    solve_recurrence,
)
from zoo.scans.recurrent import gate_kernels, gate_products, matmul, recurrent_scan
from zoo.scans.selective import selective_scan
from zoo.scans.softmax import SoftmaxState, softmax_merge, softmax_pool, softmax_prefix_statistics, softmax_scan
from zoo.scans.stabilizer import previous_steps, stabilized_gates
from zoo.scans.tree import tree_reduce

__all__ = [
    "ALGORITHMS",
    "BIASES",
    "RETENTIONS",
    "DescentState",
    "Halting",
    "Miras",
    "MirasGates",
    "MirasState",
    "NonConvergenceError",
    "SoftmaxState",
    "SolveDiagnostics",
    "WindowRing",
    "adaptive_halting",
    "affine_scan",
    "apply_memory",
    "cell_counts",
    "check_structure",
    "choose_dilations",
    "chunk_clipped_linear_attention",
    "clip_state",
    "clipped_linear_attention",
    "compiling_for",
    "delta_product",
    "delta_product_step",
    "dilated_convolution",
    "fft_convolution",
    "flashrnn",
    "flatten_steps",
    "forward_backward",
    "fused_newton",
    "gate_kernels",
    "gate_products",
    "gated_delta_rule",
    "gated_delta_rule_step",
    "impulse_factors",
    "impulse_response",
    "krylov",
    "krylov_and_power",
    "linear_attention",
    "linear_attention_step",
    "linear_scan",
    "log_matmul",
    "lyapunov_exponent",
    "matmul",
    "matrix_memory",
    "memory_descent",
    "merge_factors",
    "miras_norms",
    "miras_read",
    "miras_scan",
    "miras_state",
    "miras_step",
    "miras_weights",
    "prefix_linear_attention",
    "previous_steps",
    "receptive_field",
    "recurrent_scan",
    "register_cell",
    "selective_scan",
    "softmax_merge",
    "softmax_pool",
    "softmax_prefix_statistics",
    "softmax_scan",
    "solve_recurrence",
    "squared_error",
    "stabilized_gates",
    "start_descent",
    "token_gradients",
    "tree_reduce",
    "vector_memory",
    "window_difference",
    "windowed_linear_attention",
]
