"""Means of the Kalman filters of ELK: h_t = A_t h_{t-1} + b_t with process noise I, seen as y_t with variance 1 / damping.

The first transition is zero: the first step has prior mean b_1 and variance I. Diagonal transitions are [B, T, N], matrices
[B, T, ..., K, K] on vectors [B, T, ..., K]. The parallel forms are one associative scan: Sarkka and Garcia-Fernandez
(2021), Temporal parallelization of Bayesian smoothers.
"""

import functools

import jax.numpy as jnp
from jax import lax

_matmul = functools.partial(jnp.matmul, precision=lax.Precision.HIGHEST)


def _over_time(body, carry, *arrays):
    """``lax.scan`` along axis 1; returns the outputs."""
    out = lax.scan(body, carry, tuple(jnp.moveaxis(a, 1, 0) for a in arrays))[1]
    return jnp.moveaxis(out, 0, 1)


def kalman_filter(transitions, offsets, observed, damping):
    """Diagonal transitions, one step after another."""

    def body(carry, now):
        mean, variance = carry
        a, b, y = now
        prior = a * a * variance + 1
        gain = damping * prior / (damping * prior + 1)
        mean = a * mean + b
        mean = mean + gain * (y - mean)
        return (mean, prior * (1 - gain)), mean

    zero = jnp.zeros_like(offsets[:, 0])
    return _over_time(body, (zero, zero), transitions, offsets, observed)


def filter_in_parallel(transitions, offsets, observed, damping):
    """Diagonal transitions, as one associative scan."""
    gain = damping / (1 + damping)
    surprise = observed - offsets
    elements = (
        transitions * (1 - gain), offsets + gain * surprise, jnp.full_like(offsets, 1 - gain),
        transitions**2 * gain, transitions * gain * surprise,
    )  # fmt: skip

    def combine(first, second):
        (a1, b1, c1, j1, e1), (a2, b2, c2, j2, e2) = first, second
        scale = 1 / (1 + c1 * j2)
        return (
            a1 * a2 * scale, a2 * (c1 * e2 + b1) * scale + b2, c1 * a2**2 * scale + c2,
            j2 * a1**2 * scale + j1, a1 * (e2 - j2 * b1) * scale + e1,
        )  # fmt: skip

    return lax.associative_scan(combine, elements, axis=1)[1]


def _identity_like(matrices):
    return jnp.broadcast_to(jnp.eye(matrices.shape[-1], dtype=matrices.dtype), matrices.shape)


def _apply(matrices, vectors):
    return _matmul(matrices, vectors[..., None])[..., 0]


def matrix_filter(transitions, offsets, observed, damping):
    """Matrices, one step after another."""

    def body(carry, now):
        mean, covariance = carry
        a, b, y = now
        eye = _identity_like(covariance)
        prior = _matmul(_matmul(a, covariance), a.mT) + eye
        # gain = damping prior (damping prior + 1)^-1, and both factors commute
        gain = jnp.linalg.solve(damping * prior + eye, damping * prior)
        mean = _apply(a, mean) + b
        mean = mean + _apply(gain, y - mean)
        return (mean, _matmul(eye - gain, prior)), mean

    start = (jnp.zeros_like(offsets[:, 0]), jnp.zeros_like(transitions[:, 0]))
    return _over_time(body, start, transitions, offsets, observed)


def matrix_filter_in_parallel(transitions, offsets, observed, damping):
    """Matrices, as one associative scan."""
    gain = damping / (1 + damping)
    surprise = observed - offsets
    eye = _identity_like(transitions)
    elements = (
        transitions * (1 - gain), offsets + gain * surprise, eye * (1 - gain),
        gain * _matmul(transitions.mT, transitions), gain * _apply(transitions.mT, surprise),
    )  # fmt: skip

    def combine(first, second):
        (a1, b1, c1, j1, e1), (a2, b2, c2, j2, e2) = first, second
        eye = _identity_like(a1)
        # (1 + C1 J2)^-1 from the left, and its transpose (1 + J2 C1)^-1: both C and J are symmetric
        forward = _matmul(a2, jnp.linalg.inv(eye + _matmul(c1, j2)))
        backward = _matmul(a1.mT, jnp.linalg.inv(eye + _matmul(j2, c1)))
        return (
            _matmul(forward, a1), _apply(forward, b1 + _apply(c1, e2)) + b2, _matmul(_matmul(forward, c1), a2.mT) + c2,
            _matmul(_matmul(backward, j2), a1) + j1, _apply(backward, e2 - _apply(j2, b1)) + e1,
        )  # fmt: skip

    return lax.associative_scan(combine, elements, axis=1)[1]
