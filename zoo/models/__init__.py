"""Whole models, assembled from mixers by name."""

from zoo.models.classifier import SequenceClassifier
from zoo.models.decision import DecisionModel
from zoo.models.encoder_decoder import EncoderDecoder, EncoderDecoderState
from zoo.models.event_model import EventModel, EventModelState, EventPrediction
from zoo.models.forecaster import Forecaster
from zoo.models.language_model import LanguageModel, LanguageModelState
from zoo.models.stack import Block, Stack

__all__ = [
    "Block",
    "DecisionModel",
    "EncoderDecoder",
    "EncoderDecoderState",
    "EventModel",
    "EventModelState",
    "EventPrediction",
    "Forecaster",
    "LanguageModel",
    "LanguageModelState",
    "SequenceClassifier",
    "Stack",
]
