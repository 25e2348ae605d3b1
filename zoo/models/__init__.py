"""Whole models, assembled from mixers by name."""

from zoo.models.based import BASED_MODELS, LayerPlan, based_language_model, sliding_window
from zoo.models.captioner import Captioner, ConvFeatures
from zoo.models.classifier import SequenceClassifier
from zoo.models.decision import DecisionModel
from zoo.models.encoder_decoder import EncoderDecoder, EncoderDecoderState
from zoo.models.event_model import EventModel, EventModelState, EventPrediction
from zoo.models.forecaster import Forecaster
from zoo.models.language_model import LanguageModel, LanguageModelState
from zoo.models.matching import MatchingClassifier
from zoo.models.mixer_options import with_mixer_options
from zoo.models.ngram import NGram, fit_ngram, ngram_entropy, ngram_log_probs
from zoo.models.stack import Block, Stack
from zoo.models.universal_transformer import (
    UniversalTransformerLM,
    UniversalTransformerReader,
    UniversalTransformerSeq2Seq,
)

__all__ = [
    "BASED_MODELS",
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
    "LayerPlan",
    "MatchingClassifier",
    "NGram",
    "SequenceClassifier",
    "Stack",
    "UniversalTransformerLM",
    "UniversalTransformerReader",
    "UniversalTransformerSeq2Seq",
    "based_language_model",
    "fit_ngram",
    "ngram_entropy",
    "ngram_log_probs",
    "sliding_window",
    "with_mixer_options",
]
