"""float64 NumPy oracles of zoo.scans, step by step from the equations and independent of zoo.

Gradients follow JAX's convention: the cotangent of a linear map is its transpose, without complex conjugation.
"""

import numpy as np


def _reduce_to(array, shape):
    """Sums over the axes along which ``shape`` was broadcast to ``array``: the transpose of broadcasting."""
    full = (1,) * (array.ndim - len(shape)) + tuple(shape)
    axes = tuple(i for i, (n, m) in enumerate(zip(full, array.shape, strict=True)) if n == 1 and m != 1)
    return array.sum(axis=axes, keepdims=True).reshape(shape)


def _order(steps, reverse):
    return range(steps)[::-1] if reverse else range(steps)


def linear(decay, inputs, initial, reverse=False):
    """h_t = decay_t * h_{t-1} + inputs_t; returns (states, last)."""
    decay = np.broadcast_to(decay, inputs.shape)
    state, states = initial, []
    for t in _order(inputs.shape[1], reverse):
        state = decay[:, t] * state + inputs[:, t]
        states.append(state)
    return np.stack(states[::-1] if reverse else states, axis=1), state


def linear_gradient(decay, inputs, initial, states_bar, last_bar, reverse=False):
    """Cotangents of (decay, inputs, initial) for cotangents of (states, last)."""
    full = np.broadcast_to(decay, inputs.shape)
    states, _ = linear(decay, inputs, initial, reverse)
    order = list(_order(inputs.shape[1], reverse))
    decay_bar, inputs_bar = np.zeros_like(states), np.zeros_like(states)
    carry = last_bar
    for i in reversed(range(len(order))):
        t = order[i]
        carry = carry + states_bar[:, t]
        inputs_bar[:, t] = carry
        decay_bar[:, t] = carry * (states[:, order[i - 1]] if i else initial)
        carry = full[:, t] * carry
    return _reduce_to(decay_bar, np.shape(decay)), inputs_bar, carry


def affine(matrices, inputs, initial, reverse=False):
    """h_t = A_t h_{t-1} + b_t; returns (states, last)."""
    matrices = np.broadcast_to(matrices, (*inputs.shape, inputs.shape[-1]))
    state, states = initial, []
    for t in _order(inputs.shape[1], reverse):
        state = np.einsum("...ij,...j->...i", matrices[:, t], state) + inputs[:, t]
        states.append(state)
    return np.stack(states[::-1] if reverse else states, axis=1), state


def affine_gradient(matrices, inputs, initial, states_bar, last_bar, reverse=False):
    """Cotangents of (matrices, inputs, initial) for cotangents of (states, last)."""
    full = np.broadcast_to(matrices, (*inputs.shape, inputs.shape[-1]))
    states, _ = affine(matrices, inputs, initial, reverse)
    order = list(_order(inputs.shape[1], reverse))
    matrices_bar, inputs_bar = np.zeros(full.shape, states.dtype), np.zeros_like(states)
    carry = last_bar
    for i in reversed(range(len(order))):
        t = order[i]
        carry = carry + states_bar[:, t]
        inputs_bar[:, t] = carry
        before = states[:, order[i - 1]] if i else initial
        matrices_bar[:, t] = carry[..., :, None] * before[..., None, :]
        carry = np.einsum("...ji,...j->...i", full[:, t], carry)
    return _reduce_to(matrices_bar, np.shape(matrices)), inputs_bar, carry


def softmax_allowed(batch, steps, mask=None, reset=None):
    """allowed[b, t, j]: step j counts in the prefix that ends at t."""
    allowed = np.zeros((batch, steps, steps), bool)
    for b in range(batch):
        for t in range(steps):
            start = max([0] + [j for j in range(t + 1) if reset is not None and reset[b, j]])
            for j in range(start, t + 1):
                allowed[b, t, j] = mask is None or mask[b, j]
    return allowed


def softmax_prefixes(scores, values, mask=None, reset=None):
    """(outputs, maximum, denominator, numerator) of every prefix, each summed on its own; zeros for empty ones."""
    batch, steps, heads = scores.shape
    allowed = softmax_allowed(batch, steps, mask, reset)
    outputs, numerator = np.zeros(values.shape), np.zeros(values.shape)
    maximum, denominator = np.full(scores.shape, -np.inf), np.zeros(scores.shape)
    for b, t, h in np.ndindex(batch, steps, heads):
        chosen = [j for j in range(steps) if allowed[b, t, j] and scores[b, j, h] > -np.inf]
        if not chosen:
            continue
        maximum[b, t, h] = max(scores[b, j, h] for j in chosen)
        weights = np.exp(scores[b, chosen, h] - maximum[b, t, h])
        denominator[b, t, h] = weights.sum()
        numerator[b, t, h] = weights @ values[b, chosen, h]
        outputs[b, t, h] = numerator[b, t, h] / denominator[b, t, h]
    return outputs, maximum, denominator, numerator


def softmax_gradient(scores, values, outputs_bar, mask=None, reset=None):
    """Cotangents of (scores, values): dv_j = sum_t p_tj do_t, ds_j = sum_t p_tj <do_t, v_j - o_t>."""
    batch, steps, heads = scores.shape
    allowed = softmax_allowed(batch, steps, mask, reset)
    outputs, maximum, denominator, _ = softmax_prefixes(scores, values, mask, reset)
    scores_bar, values_bar = np.zeros(scores.shape), np.zeros(values.shape)
    for b, t, j, h in np.ndindex(batch, steps, steps, heads):
        if allowed[b, t, j] and scores[b, j, h] > -np.inf:
            p = np.exp(scores[b, j, h] - maximum[b, t, h]) / denominator[b, t, h]
            values_bar[b, j, h] += p * outputs_bar[b, t, h]
            scores_bar[b, j, h] += p * outputs_bar[b, t, h] @ (values[b, j, h] - outputs[b, t, h])
    return scores_bar, values_bar


def causal_convolution(inputs, kernel):
    """y_t = sum_{s <= t} kernel_{t-s} inputs_s with kernel [L, D] or [L]."""
    kernel = kernel if kernel.ndim == 2 else kernel[:, None]
    outputs = np.zeros(inputs.shape)
    for t in range(inputs.shape[1]):
        for s in range(max(0, t - len(kernel) + 1), t + 1):
            outputs[:, t] += kernel[t - s] * inputs[:, s]
    return outputs


def halting(block, halt, prepare, state, max_steps, epsilon, variant, freeze_halted, halted):
    """The ACT loop with a Python branch per position; returns (output, state, steps, remainder, loops, halting)."""
    positions = list(np.ndindex(*state.shape[:-1]))
    halted = halted.copy()
    output = np.zeros(state.shape)
    steps, remainder, total = (np.zeros(state.shape[:-1]) for _ in range(3))
    loops = 0
    while loops < max_steps and not halted.all():
        prepared = prepare(state, loops)
        p = np.broadcast_to(halt(prepared, loops), state.shape[:-1])
        after = block(prepared, loops)
        if freeze_halted:
            after = np.where(halted[..., None], state, after)
        for i in positions:
            if halted[i]:
                weight = 0.0
            elif total[i] + p[i] > 1 - epsilon:
                remainder[i] = weight = 1 - total[i]
                halted[i] = True
            else:
                weight = p[i]
            if not halted[i] or weight:
                steps[i] += 1
            total[i] += weight
            output[i] = weight * after[i] + (output[i] if variant == "accumulated" else (1 - weight) * output[i])
        state = after
        loops += 1
    return output, state, steps, remainder, loops, total


def tree_reduce(combine, elements, valid):
    """Balanced reduction of a list; None where every element is masked."""
    level = [e if v else None for e, v in zip(elements, valid, strict=True)]
    while len(level) > 1:
        above = []
        for i in range(0, len(level) - 1, 2):
            a, b = level[i], level[i + 1]
            above.append(b if a is None else a if b is None else combine(a, b))
        level = above + ([level[-1]] if len(level) % 2 else [])
    return level[0]
