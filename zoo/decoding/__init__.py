"""Generation loops over any model whose call is ``(params, tokens, state) -> (logits, state)``."""

from zoo.decoding.beam import Beams, beam_search
from zoo.decoding.ctc import ctc_best_path, ctc_prefix_beam_search
from zoo.decoding.generate import Generated, generate, left_pad
from zoo.decoding.padded import generate_padded
from zoo.decoding.rollout import decision_policy, host_rollout, rollout
from zoo.decoding.sampling import Sampling, sample
from zoo.decoding.stream import StreamScore, continue_stream, stream_log_likelihood

__all__ = [
    "Beams",
    "Generated",
    "Sampling",
    "StreamScore",
    "beam_search",
    "continue_stream",
    "ctc_best_path",
    "ctc_prefix_beam_search",
    "decision_policy",
    "generate",
    "generate_padded",
    "host_rollout",
    "left_pad",
    "rollout",
    "sample",
    "stream_log_likelihood",
]
