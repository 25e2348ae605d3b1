"""A memory MLP that learns at test time, one token after another in NumPy, with back-propagation by hand."""

import numpy as np

from tests.oracles.nonlinearities import sigmoid


def silu(x):
    return x * sigmoid(x), sigmoid(x) * (1 + x * (1 - sigmoid(x)))


def gelu(x):
    from scipy.special import erf

    cdf = 0.5 * (1 + erf(x / np.sqrt(2)))
    return x * cdf, cdf + x * np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi)


def forward(weights, x, residual, sigma=silu, scale=1.0, shift=0.0, eps=1e-5):
    """(M(x), what the backward pass needs) for one row x [K]; weights W0, b0, W1, ..., gain."""
    depth = sum(name[0] == "W" for name in weights)
    z, inputs, slopes = x, [], []
    for layer in range(depth):
        slope = np.ones_like(z)
        if layer:
            z, slope = sigma(z)
        inputs.append(z)
        slopes.append(slope)
        z = z @ weights[f"W{layer}"] + weights.get(f"b{layer}", 0.0)
    if not residual:
        return z, (inputs, slopes, None, None)
    centred = z - z.mean()
    spread = np.sqrt(np.mean(centred**2) + eps)
    n = centred / spread
    return x + n * (1 + weights.get("gain", 0.0)) * scale + shift, (inputs, slopes, n, spread)


def gradient(weights, k, v, residual, sigma=silu, scale=1.0, shift=0.0, eps=1e-5, half=False):
    """Gradient of ||M(k) - v||^2 with respect to every weight; of half of it with ``half``."""
    y, (inputs, slopes, n, spread) = forward(weights, k, residual, sigma, scale, shift, eps)
    error, found = (1 if half else 2) * (y - v), {}
    if residual:
        error = error * scale
        if "gain" in weights:
            found["gain"] = error * n
            error = error * (1 + weights["gain"])
        error = (error - error.mean() - n * np.mean(error * n)) / spread
    for layer in reversed(range(len(inputs))):
        found[f"W{layer}"] = np.outer(inputs[layer], error)
        if f"b{layer}" in weights:
            found[f"b{layer}"] = error
        error = (error @ weights[f"W{layer}"].T) * slopes[layer]
    return found


class Memory:
    """M, S and the anchor of one head; ``write`` and ``read`` token by token."""

    def __init__(self, weights, chunk, residual, max_norm=None, **options):
        self.m = {name: w.copy() for name, w in weights.items()}
        self.s = {name: np.zeros_like(w) for name, w in weights.items()}
        self.anchor, self.count = self.m, 0
        self.chunk, self.residual, self.max_norm, self.options = chunk, residual, max_norm, options

    def write(self, k, v, theta, alpha=0.0, eta=0.0):
        """One token; theta, alpha and eta are numbers, or by weight one per output channel."""
        if self.count % self.chunk == 0:
            self.anchor = self.m
        self.count += 1
        u = gradient(self.anchor, k, v, self.residual, **self.options)
        if self.max_norm is not None:
            length = sum(np.sum(g**2) for g in u.values())
            u = {name: g / np.sqrt(1 + length / self.max_norm**2) for name, g in u.items()}

        def of(gate, name):
            return gate[name] if isinstance(gate, dict) else gate

        self.s = {name: of(eta, name) * self.s[name] - of(theta, name) * u[name] for name in u}
        self.m = {name: (1 - of(alpha, name)) * self.m[name] + self.s[name] for name in u}

    def read(self, q):
        options = {name: value for name, value in self.options.items() if name != "half"}
        return forward(self.m, q, self.residual, **options)[0]
