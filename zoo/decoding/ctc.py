"""Decoding of CTC networks: the best path, and the best labelling by prefix beam search.

Graves et al. (2006), Connectionist Temporal Classification; Hannun et al. (2014) for the beam form.
"""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from zoo.checks import check_positive


def ctc_best_path(
    logits: Float[Array, "B T V"], lengths: Int[Array, " B"], *, blank: int = 0
) -> tuple[Int[Array, "B T"], Int[Array, " B"]]:
    """The labelling of the single most likely alignment: best class per frame, repeats merged, blanks removed.

    Args:
      logits: scores or log-probabilities of every frame.
      lengths: valid frames per row.
      blank: class of the blank.

    Returns:
      (labels [B, T], padded with ``blank`` on the right; number of labels [B]).
    """
    best = jnp.argmax(logits, axis=-1)
    time = best.shape[1]
    before = jnp.pad(best, ((0, 0), (1, 0)), constant_values=blank)[:, :-1]
    keep = (best != before) & (best != blank) & (jnp.arange(time) < lengths[:, None])
    place = jnp.where(keep, jnp.cumsum(keep, axis=1) - 1, time)  # dropped frames go past the end, and are lost
    rows = jnp.arange(best.shape[0])[:, None]
    return jnp.full_like(best, blank).at[rows, place].set(best, mode="drop"), jnp.sum(keep, axis=1)


def ctc_prefix_beam_search(
    log_probs: Float[Array | np.ndarray, "T V"], *, beam_size: int = 16, blank: int = 0
) -> list[tuple[tuple[int, ...], float]]:
    """Most likely labellings of one sequence, each summed over all its alignments (host code).

    For every prefix two probabilities are kept: of alignments that end in a blank, and of those that end in the last
    label, because only after a blank can the same label come again as a new one. With a beam as large as the number of
    prefixes the result is exact.

    Args:
      log_probs: normalised log-probabilities of the valid frames.
      beam_size: prefixes kept after every frame.
      blank: class of the blank.

    Returns:
      [(labels, log-probability)], best first, at most ``beam_size``.
    """
    check_positive("beam_size", beam_size)
    beams = {(): (0.0, -math.inf)}  # prefix -> (log p of ending in blank, of ending in its last label)
    for frame in np.asarray(log_probs, np.float64):
        grown: dict[tuple[int, ...], tuple[float, float]] = {}

        def add(prefix, in_blank, in_label, grown=grown):
            old = grown.get(prefix, (-math.inf, -math.inf))
            grown[prefix] = (np.logaddexp(old[0], in_blank), np.logaddexp(old[1], in_label))

        for prefix, (in_blank, in_label) in beams.items():
            either = np.logaddexp(in_blank, in_label)
            add(prefix, either + frame[blank], in_label + frame[prefix[-1]] if prefix else -math.inf)
            for label, log_p in enumerate(frame):
                if label != blank:
                    repeated = bool(prefix) and prefix[-1] == label
                    add((*prefix, label), -math.inf, (in_blank if repeated else either) + log_p)
        possible = [item for item in grown.items() if max(item[1]) > -math.inf]
        beams = dict(sorted(possible, key=lambda item: -np.logaddexp(*item[1]))[:beam_size])
    return [(prefix, float(np.logaddexp(*scores))) for prefix, scores in beams.items()]
