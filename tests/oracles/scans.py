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


def _heads(array, heads):
    """[B, T, G, K] of G groups as [B, T, H, K]: head h has that of group h // (H / G)."""
    return np.repeat(array, heads // array.shape[2], axis=2)


def matrix_state(q, k, v, log_decay, initial):
    """S_t = diag(exp(log_decay_t)) S_{t-1} + k_t v_t^T and y_t = q_t S_t; returns (y, last)."""
    heads = v.shape[2]
    q, k = _heads(q, heads), _heads(k, heads)
    state, y = initial, []
    for t in range(q.shape[1]):
        if log_decay is not None:
            state = np.exp(log_decay[:, t]).reshape(*state.shape[:2], -1, 1) * state
        state = state + k[:, t, :, :, None] * v[:, t, :, None, :]
        y.append(np.einsum("bhk,bhkv->bhv", q[:, t], state))
    return np.stack(y, axis=1), state


def matrix_state_gradient(q, k, v, log_decay, initial, y_bar, last_bar):
    """Cotangents of (q, k, v, log_decay, initial) for cotangents of (y, last)."""
    groups, heads = q.shape[2], v.shape[2]
    q_all, k_all = _heads(q, heads), _heads(k, heads)
    states = [initial]
    for t in range(q.shape[1]):
        states.append(
            matrix_state(*(None if a is None else a[:, t : t + 1] for a in (q, k, v, log_decay)), states[-1])[1]
        )
    q_bar, k_bar, v_bar = np.zeros(q_all.shape), np.zeros(k_all.shape), np.zeros(v.shape)
    decay_bar = None if log_decay is None else np.zeros(log_decay.shape)
    carry = last_bar
    for t in reversed(range(q.shape[1])):
        q_bar[:, t] = np.einsum("bhv,bhkv->bhk", y_bar[:, t], states[t + 1])
        carry = carry + q_all[:, t, :, :, None] * y_bar[:, t, :, None, :]
        k_bar[:, t] = np.einsum("bhv,bhkv->bhk", v[:, t], carry)
        v_bar[:, t] = np.einsum("bhk,bhkv->bhv", k_all[:, t], carry)
        if log_decay is not None:
            carry = np.exp(log_decay[:, t]).reshape(*carry.shape[:2], -1, 1) * carry
            decay_bar[:, t] = np.sum(carry * states[t], axis=-1 if log_decay.ndim == 4 else (-2, -1))
    q_bar, k_bar = (a.reshape(*a.shape[:2], groups, -1, a.shape[-1]).sum(axis=3) for a in (q_bar, k_bar))
    return tuple(a for a in (q_bar, k_bar, v_bar, decay_bar, carry) if a is not None)


def selective(x, delta, a, b, c, skip, initial, reset=None):
    """h_t = exp(delta_t a) h_{t-1} + delta_t b_t x_t, y_t = c_t h_t + skip x_t; returns (y, last)."""
    state, y = initial, []
    for t in range(x.shape[1]):
        decay = np.exp(delta[:, t, :, None] * a)
        if reset is not None:
            decay = np.where(reset[:, t, None, None], 0, decay)
        state = decay * state + (delta[:, t] * x[:, t])[:, :, None] * b[:, t, None, :]
        y.append(np.einsum("bdn,bn->bd", state, c[:, t]) + skip * x[:, t])
    return np.stack(y, axis=1), state


def selective_gradient(x, delta, a, b, c, skip, initial, y_bar, last_bar, reset=None):
    """Cotangents of (x, delta, a, b, c, skip, initial) for cotangents of (y, last)."""
    states = [initial]
    for t in range(x.shape[1]):
        now = (array[:, t : t + 1] for array in (x, delta))
        later = (array[:, t : t + 1] for array in (b, c))
        flags = None if reset is None else reset[:, t : t + 1]
        states.append(selective(*now, a, *later, skip, states[-1], flags)[1])
    x_bar, delta_bar, b_bar, c_bar = (np.zeros(array.shape) for array in (x, delta, b, c))
    a_bar, carry = np.zeros(a.shape), last_bar
    for t in reversed(range(x.shape[1])):
        c_bar[:, t] = np.einsum("bdn,bd->bn", states[t + 1], y_bar[:, t])
        carry = carry + y_bar[:, t, :, None] * c[:, t, None, :]
        drive = np.einsum("bdn,bn->bd", carry, b[:, t])
        b_bar[:, t] = np.einsum("bdn,bd->bn", carry, delta[:, t] * x[:, t])
        decay = np.exp(delta[:, t, :, None] * a)
        if reset is not None:
            decay = np.where(reset[:, t, None, None], 0, decay)
        exponent = carry * states[t] * decay
        a_bar += np.einsum("bdn,bd->dn", exponent, delta[:, t])
        delta_bar[:, t] = np.sum(exponent * a, axis=-1) + drive * x[:, t]
        x_bar[:, t] = drive * delta[:, t] + skip * y_bar[:, t]
        carry = decay * carry
    return x_bar, delta_bar, a_bar, b_bar, c_bar, np.sum(x * y_bar, axis=(0, 1)), carry


def delta_rule(q, k, v, beta, log_decay, initial):
    """S_t = e^g S_{t-1} + beta k (v - k e^g S_{t-1})^T and y_t = q_t S_t, head by head; returns (y, last)."""
    heads = v.shape[2]
    q, k = _heads(q, heads), _heads(k, heads)
    state, y = np.array(initial, float), np.zeros(v.shape)
    for b, h in np.ndindex(len(q), heads):
        s = state[b, h]
        for t in range(q.shape[1]):
            s = s if log_decay is None else np.exp(log_decay[b, t, h]) * s
            s = s + beta[b, t, h] * np.outer(k[b, t, h], v[b, t, h] - k[b, t, h] @ s)
            y[b, t, h] = q[b, t, h] @ s
        state[b, h] = s
    return y, state


def delta_rule_gradient(q, k, v, beta, log_decay, initial, y_bar, last_bar):
    """Cotangents of (q, k, v, beta, log_decay, initial) for cotangents of (y, last)."""
    groups, heads = q.shape[2], v.shape[2]
    q, k = _heads(q, heads), _heads(k, heads)
    decay = np.zeros(beta.shape) if log_decay is None else log_decay
    q_bar, k_bar, v_bar, beta_bar, decay_bar = (np.zeros(a.shape) for a in (q, k, v, beta, decay))
    initial_bar = np.array(last_bar, float)
    for b, h in np.ndindex(len(q), heads):
        states = [initial[b, h]]
        for t in range(q.shape[1]):
            found = np.exp(decay[b, t, h]) * states[-1]
            states.append(found + beta[b, t, h] * np.outer(k[b, t, h], v[b, t, h] - k[b, t, h] @ found))
        carry = initial_bar[b, h]
        for t in reversed(range(q.shape[1])):
            key, strength, factor = k[b, t, h], beta[b, t, h], np.exp(decay[b, t, h])
            found = factor * states[t]
            error = v[b, t, h] - key @ found
            q_bar[b, t, h] = states[t + 1] @ y_bar[b, t, h]
            carry = carry + np.outer(q[b, t, h], y_bar[b, t, h])
            back = key @ carry
            v_bar[b, t, h] = strength * back
            beta_bar[b, t, h] = back @ error
            k_bar[b, t, h] = strength * (carry @ error - found @ back)
            carry = carry - strength * np.outer(key, back)
            decay_bar[b, t, h] = np.sum(carry * found)
            carry = factor * carry
        initial_bar[b, h] = carry
    q_bar, k_bar = (a.reshape(*a.shape[:2], groups, -1, a.shape[-1]).sum(axis=3) for a in (q_bar, k_bar))
    decays = () if log_decay is None else (decay_bar,)
    return q_bar, k_bar, v_bar, beta_bar, *decays, initial_bar


def stabilized(log_decay, log_inputs, initial):
    """The running maximum m_t = max(m_{t-1} + g_t, i_t), and both exponents relative to it."""
    maximum, gates, inputs = np.zeros(log_inputs.shape), np.zeros(log_inputs.shape), np.zeros(log_inputs.shape)
    before = initial
    for t in range(log_inputs.shape[1]):
        maximum[:, t] = np.maximum(before + log_decay[:, t], log_inputs[:, t])
        gates[:, t] = log_decay[:, t] + before - maximum[:, t]
        inputs[:, t] = log_inputs[:, t] - maximum[:, t]
        before = maximum[:, t]
    return gates, inputs, maximum
