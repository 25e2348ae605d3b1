"""Universal Transformer, bidirectional: the encoder, in which every position sees its whole document at every depth step.

Dehghani, Gouws, Vinyals, Uszkoreit, Kaiser (2018), Universal Transformers, arXiv 1807.03819. The equations, the recurrence
types and the pure function are those of zoo/mixers/universal_transformer.py, with attention over all positions of the
document and centred convolutions. Also available here, because it need not be streamed: halting decided for a whole
document (act_type "global"), positions shifted by the step (position_start "step") or at random in training ("random"),
and under ACT a loop that ends as soon as the last position has halted (act_method "while", without reverse mode).

Time O(steps T^2 D), no state. Padding is best given to ``run`` as ``valid``: it is neither seen nor counted.
"""

from typing import ClassVar

from zoo.mixers.universal_transformer import UniversalTransformerBase
from zoo.registry import register


@register(
    "universal_transformer_encoder",
    variants={
        "paper": {"heads": 2, "steps": 3, "mlp_dim": 12, "norm": "post", "step_signal": "sinusoid"},
        "act_global": {
            "heads": 2, "steps": 4, "mlp_dim": 12, "recurrence": "act", "act_type": "global", "halting_bias": -2.0,
            "position_start": "step",
        },
        "act_sepconv": {
            "heads": 2, "steps": 4, "mlp_dim": 12, "recurrence": "act", "halting_bias": -2.0, "transition": "sepconv",
            "step_signal": "none", "freeze_halted": True,
        },
        "gru": {"heads": 2, "steps": 3, "recurrence": "gru", "step_signal": "none", "norm": "post"},
    },
)  # fmt: skip
class UniversalTransformerEncoder(UniversalTransformerBase):
    """Universal Transformer, bidirectional: one block iterated over depth on the whole document.

    The attributes are those of ``UniversalTransformer``, without ``window`` and ``cross``.
    """

    causal: ClassVar[bool] = False
    quadratic: ClassVar[bool] = True

    def initial_state(self, batch_size: int, dtype: str | None = None) -> None:
        """None: there is no state."""
        return None
