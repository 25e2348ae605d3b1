"""Whole models, assembled from mixers by name."""

from zoo.models.captioner import Captioner, ConvFeatures
from zoo.models.classifier import SequenceClassifier
from zoo.models.decision import DecisionModel
from zoo.models.encoder_decoder import EncoderDecoder, EncoderDecoderState
from zoo.models.event_model import EventModel, EventModelState, EventPrediction
from zoo.models.forecaster import Forecaster
from zoo.models.language_model import LanguageModel, LanguageModelState
from zoo.models.matching import MatchingClassifier
from zoo.models.ngram import NGram, fit_ngram, ngram_entropy, ngram_log_probs
from zoo.models.stack import Block, Stack
from zoo.models.universal_transformer import (
    UniversalTransformerLM,
    UniversalTransformerReader,
    UniversalTransformerSeq2Seq,
)

__all__ = [
    "Block",
    "Captioner",
    "ConvFeatures",
    "DecisionModel",
    "EncoderDecoder",
    "EncoderDecoderState",
    "EventModel",
    "EventModelState",
    "EventPrediction",
    "Forecaster",
    "LanguageModel",
    "LanguageModelState",
    "MatchingClassifier",
    "NGram",
    "SequenceClassifier",
    "Stack",
    "UniversalTransformerLM",
    "UniversalTransformerReader",
    "UniversalTransformerSeq2Seq",
    "fit_ngram",
    "ngram_entropy",
    "ngram_log_probs",
]
