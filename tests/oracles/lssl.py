"""The linear state space layer, step by step from the continuous system."""

import math

import numpy as np

erf = np.vectorize(math.erf)


def continuous(module, p):
    """(A [H, N, N], B [H, N])."""
    n, h = module.state_dim, module.dim
    if module.learn == "dense":
        a, b = p["A"], p["B"]
    elif module.learn == "fixed":  # only the measure of the tested variant
        assert module.measure == "legt" and module.halve_legt
        a = np.array([[-0.5 * math.sqrt((2 * i + 1) * (2 * j + 1)) * (1 if i >= j else (-1) ** (j - i))
                       for j in range(n)] for i in range(n)])  # fmt: skip
        b = 0.5 * np.sqrt(2 * np.arange(n) + 1)
    else:
        systems = []
        for feature in range(h):
            v = {name: p[name][feature] if p[name].ndim == 2 else p[name]
                 for name in ("dl", "d", "du", "pl", "pr", "c", "b")}  # fmt: skip
            t = np.diag(v["d"]) + np.diag(v["dl"], -1) + np.diag(v["du"], 1)
            inner = np.linalg.inv(t) + np.diag(v["c"])
            systems.append((-np.diag(v["pl"]) @ inner @ np.diag(v["pr"]), v["pl"] * v["b"]))
        return np.stack([a for a, _ in systems]), np.stack([b for _, b in systems])
    return np.broadcast_to(a, (h, n, n)), np.broadcast_to(b, (h, n))


def discrete(module, a, b, dt):
    """(Abar, Bbar) of one feature."""
    n = len(b)
    if module.discretization == "zoh":
        # the Taylor series of expm([[A, B], [0, 0]] dt), halved until it converges fast
        whole = np.zeros((n + 1, n + 1))
        whole[:n, :n], whole[:n, n] = a * dt / 64, b * dt / 64
        term = total = np.eye(n + 1)
        for k in range(1, 20):
            term = term @ whole / k
            total = total + term
        total = np.linalg.matrix_power(total, 64)
        return total[:n, :n], total[:n, n]
    inverse = np.linalg.inv(np.eye(n) - module.alpha * dt * a)
    return inverse @ (np.eye(n) + (1 - module.alpha) * dt * a), inverse @ b * dt


def oracle(module, params, x, reset=None):
    p = params
    if module.learn_dt:
        dt = np.exp(p["log_dt"])
    else:
        share = (np.arange(module.dim) + 0.5) / module.dim
        dt = module.dt_min ** (1 - share) * module.dt_max**share
    dt = module.step_rescale * dt
    a, b = continuous(module, p)
    systems = [discrete(module, a[h], b[h], dt[h]) for h in range(module.dim)]
    hidden = np.zeros((len(x), module.dim, module.state_dim))
    y = np.zeros((*x.shape, module.channels))
    for t in range(x.shape[1]):
        if reset is not None:
            hidden[reset[:, t]] = 0
        for h, (a_bar, b_bar) in enumerate(systems):
            hidden[:, h] = hidden[:, h] @ a_bar.T + x[:, t, h, None] * b_bar
            y[:, t, h] = hidden[:, h] @ p["C"][h].T + x[:, t, h, None] * p["D"][h]
    if module.output_bias:
        y = y + p["E"]
    z = y * (1 + erf(y / math.sqrt(2))) / 2
    return z.reshape(*x.shape[:2], -1) @ p["W"] + p["bias"]
