"""Whole models, assembled from mixers by name."""

from zoo.models.based import BASED_MODELS, LayerPlan, based_language_model, sliding_window
from zoo.models.baum_welch import EdgeHMM, baum_welch, in_context_baum_welch, next_symbol, random_edge_hmm
from zoo.models.captioner import Captioner, ConvFeatures
from zoo.models.classifier import SequenceClassifier
from zoo.models.decision import DecisionModel
from zoo.models.encoder_decoder import EncoderDecoder, EncoderDecoderState
from zoo.models.event_model import EventModel, EventModelState, EventPrediction
from zoo.models.forecaster import Forecaster
from zoo.models.in_context_ngram import in_context_ngram, longest_suffix, nearest_suffix
from zoo.models.language_model import LanguageModel, LanguageModelState
from zoo.models.matching import MatchingClassifier
from zoo.models.mixer_options import with_mixer_options
from zoo.models.ngram import NGram, fit_ngram, ngram_entropy, ngram_log_probs
from zoo.models.ngram_layers import with_ngram_heads
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
    "EdgeHMM",
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
    "baum_welch",
    "fit_ngram",
    "in_context_baum_welch",
    "in_context_ngram",
    "longest_suffix",
    "nearest_suffix",
    "next_symbol",
    "ngram_entropy",
    "ngram_log_probs",
    "random_edge_hmm",
    "sliding_window",
    "with_mixer_options",
    "with_ngram_heads",
]
