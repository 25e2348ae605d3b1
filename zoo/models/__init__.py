"""Whole models, assembled from mixers by name."""

from zoo.models.classifier import SequenceClassifier
from zoo.models.encoder_decoder import EncoderDecoder, EncoderDecoderState
from zoo.models.language_model import LanguageModel, LanguageModelState
from zoo.models.stack import Block, Stack

__all__ = [
    "Block",
    "EncoderDecoder",
    "EncoderDecoderState",
    "LanguageModel",
    "LanguageModelState",
    "SequenceClassifier",
    "Stack",
]
