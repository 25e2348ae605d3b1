"""What a linear system remembers of its input: past inputs read from the state by least squares, without training.

As in the studies of memory of HiPPO (Gu et al. 2020) and of echo state networks (Jaeger 2001): the system
x_t = Abar x_{t-1} + Bbar u_t is driven by band-limited noise, and for every lag a linear readout of u_{t-lag} from x_t
is fitted on the first half of the run and judged on the second by R^2, the share of the variance that it explains (1:
remembered exactly, 0: no better than the mean; a negative value means that the fit does not carry over).

Noise without a band limit cannot be remembered by N states for longer than N steps, so the band limit sets the task.
All of it is NumPy float64. Cost: O(T N^2).
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from zoo.checks import check_positive


def band_limited_noise(steps: int, width: int = 9, seed: int = 0) -> Float[np.ndarray, " T"]:
    """White noise smoothed by a Hann window of ``width`` taps, scaled to variance 1: [steps]."""
    check_positive("steps", steps)
    check_positive("width", width)
    window = np.hanning(width + 2)[1:-1]  # without the zeros at the ends
    white = np.random.default_rng(seed).standard_normal(steps + width - 1)
    noise = np.convolve(white, window, mode="valid")
    return noise / np.std(noise)


def run_system(
    transition: Float[np.ndarray, "N N"], into: Float[np.ndarray, " N"], inputs: Float[np.ndarray, " T"]
) -> Float[np.ndarray, "T N"]:
    """States [T, N] of x_t = Abar x_{t-1} + Bbar u_t from zero."""
    transition, state = np.asarray(transition, float), np.zeros(len(into))
    states = np.empty((len(inputs), len(into)))
    for t, u in enumerate(inputs):
        state = transition @ state + into * u
        states[t] = state
    return states


def memory_probe(
    transition: Float[np.ndarray, "N N"],
    into: Float[np.ndarray, " N"],
    lags: Sequence[int],
    inputs: Float[np.ndarray, " T"] | None = None,
    *,
    ridge: float = 1e-10,
) -> Float[np.ndarray, " K"]:
    """R^2 of the best linear readout of u_{t-lag} from x_t for every lag, on the half of the run that was not fitted.

    Args:
      transition: Abar [N, N].
      into: Bbar [N].
      lags: steps back, at least 0.
      inputs: u [T], more than twice as long as the largest lag; None: 4,000 steps of ``band_limited_noise``.
      ridge: penalty on the readout, relative to the mean variance of the states.

    Raises:
      ValueError: no lags, a negative one, or inputs that are too short for them.
    """
    inputs = band_limited_noise(4000) if inputs is None else np.asarray(inputs, float)
    half = len(inputs) // 2
    if not lags or min(lags) < 0 or max(lags) >= half:
        raise ValueError(f"lags must be given and lie in [0, {half}) for {len(inputs)} inputs, got {tuple(lags)}")
    states = run_system(transition, into, inputs)
    longest = max(lags)
    states = np.concatenate([states, np.ones((len(states), 1))], axis=1)
    scale = np.sqrt(np.mean(states**2, axis=0))
    states = states / np.where(scale > 0, scale, 1)
    found = []
    for lag in lags:
        wanted = inputs[longest - lag : len(inputs) - lag]
        seen = states[longest:]
        fit, test = slice(0, half - longest // 2), slice(half - longest // 2, None)
        count = len(seen[fit])
        gram = seen[fit].T @ seen[fit] / count + ridge * np.eye(seen.shape[1])
        readout = np.linalg.lstsq(gram, seen[fit].T @ wanted[fit] / count, rcond=None)[0]
        error = np.mean((seen[test] @ readout - wanted[test]) ** 2)
        found.append(1 - error / np.var(wanted[test]))
    return np.array(found)
