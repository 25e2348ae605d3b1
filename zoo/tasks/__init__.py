"""Problems: generators, loaders, vocabularies, metrics. A task knows no model."""

from zoo.tasks.agreement import Agreement
from zoo.tasks.algorithmic import Algorithmic
from zoo.tasks.associative_recall import AssociativeRecall, HopRecall, PairRecall
from zoo.tasks.babi import Babi
from zoo.tasks.base import Batch, HostTask, Task
from zoo.tasks.battery import Battery
from zoo.tasks.captions import FeatureCaptions, ShapeCaptions
from zoo.tasks.cifar import SequentialCifar
from zoo.tasks.counting import Counting
from zoo.tasks.digits import Digits, IdxDigits
from zoo.tasks.document_recall import (
    RecallQuestion,
    contains,
    cut_context,
    load_recall,
    recall_prompt,
    recall_scores,
    token_f1,
)
from zoo.tasks.document_streams import DocumentStreams, long_documents
from zoo.tasks.events import Events, EventSequences, MarkovLogNormal
from zoo.tasks.forecasting import SeriesWindows, SumOfSines
from zoo.tasks.genomics import GenomicsBenchmark
from zoo.tasks.group_words import Group, GroupWords, group
from zoo.tasks.indexed import IndexedTask
from zoo.tasks.induction_heads import InductionHeads
from zoo.tasks.labelling import FutureContext, LabelledFrames, NoisyStrokes
from zoo.tasks.lambada import Lambada
from zoo.tasks.learning_to_execute import LearningToExecute
from zoo.tasks.listops import ListOps, ListOpsFiles
from zoo.tasks.long_range_arena import DocumentRetrieval, MovieReviews, Pathfinder
from zoo.tasks.masked_prefix import mask_prefix
from zoo.tasks.metrics import bleu, edit_distance, error_rate, perplexity, word_accuracy
from zoo.tasks.motifs import MotifClassification
from zoo.tasks.mqar import MultiQueryAssociativeRecall
from zoo.tasks.needles import KeyValueNeedle, needle_accuracy, needle_prompt
from zoo.tasks.offline_rl import OfflineTrajectories, PointMass, Trajectory, normalised_return
from zoo.tasks.outlier_regression import OutlierRegression, normalized_squared_error
from zoo.tasks.parallel_text import ParallelText
from zoo.tasks.passkey import PasskeyStream, passkey_accuracy, passkey_prompt
from zoo.tasks.pointer_chasing import ChainRoot, Hop
from zoo.tasks.recall import Adding, CopyMemory, DelayedRecall, Parity, TemporalOrder
from zoo.tasks.regbench import (
    AutomatonSampler,
    RegBench,
    dfa_accuracy,
    l1_distance,
    next_symbol_distribution,
    total_variation,
    truth_cross_entropy,
    truth_divergence,
)
from zoo.tasks.regular_languages import BoardTracking, BracketArithmetic, ModularArithmetic
from zoo.tasks.resampling import Resampled
from zoo.tasks.reversal import Reversal
from zoo.tasks.selective_copying import SelectiveCopying
from zoo.tasks.sequence_metrics import position_accuracy, sequence_scores
from zoo.tasks.set_disjointness import SetDisjointness
from zoo.tasks.speech_commands import SpeechCommands
from zoo.tasks.text_streams import TextStreams, load_tokens
from zoo.tasks.timeseries import SeriesRegression, UEAClassification
from zoo.tasks.token_file import TokenFile

__all__ = [
    "Adding",
    "Agreement",
    "Algorithmic",
    "AssociativeRecall",
    "AutomatonSampler",
    "Babi",
    "Batch",
    "Battery",
    "BoardTracking",
    "BracketArithmetic",
    "ChainRoot",
    "CopyMemory",
    "Counting",
    "DelayedRecall",
    "Digits",
    "DocumentRetrieval",
    "DocumentStreams",
    "EventSequences",
    "Events",
    "FeatureCaptions",
    "FutureContext",
    "GenomicsBenchmark",
    "Group",
    "GroupWords",
    "Hop",
    "HopRecall",
    "HostTask",
    "IdxDigits",
    "IndexedTask",
    "InductionHeads",
    "KeyValueNeedle",
    "LabelledFrames",
    "Lambada",
    "LearningToExecute",
    "ListOps",
    "ListOpsFiles",
    "MarkovLogNormal",
    "ModularArithmetic",
    "MotifClassification",
    "MovieReviews",
    "MultiQueryAssociativeRecall",
    "NoisyStrokes",
    "OfflineTrajectories",
    "OutlierRegression",
    "PairRecall",
    "ParallelText",
    "Parity",
    "PasskeyStream",
    "Pathfinder",
    "PointMass",
    "RecallQuestion",
    "RegBench",
    "Resampled",
    "Reversal",
    "SelectiveCopying",
    "SequentialCifar",
    "SeriesRegression",
    "SeriesWindows",
    "SetDisjointness",
    "ShapeCaptions",
    "SpeechCommands",
    "SumOfSines",
    "Task",
    "TemporalOrder",
    "TextStreams",
    "TokenFile",
    "Trajectory",
    "UEAClassification",
    "bleu",
    "contains",
    "cut_context",
    "dfa_accuracy",
    "edit_distance",
    "error_rate",
    "group",
    "l1_distance",
    "load_recall",
    "load_tokens",
    "long_documents",
    "mask_prefix",
    "needle_accuracy",
    "needle_prompt",
    "next_symbol_distribution",
    "normalised_return",
    "normalized_squared_error",
    "passkey_accuracy",
    "passkey_prompt",
    "perplexity",
    "position_accuracy",
    "recall_prompt",
    "recall_scores",
    "sequence_scores",
    "token_f1",
    "total_variation",
    "truth_cross_entropy",
    "truth_divergence",
    "word_accuracy",
]
