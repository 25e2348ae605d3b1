"""Sequence mixers: [batch, time, dim] -> [batch, time, dim], one file per architecture.

The contract, which the laws in tests/laws check for every registered mixer:

* a Flax Linen module whose dataclass fields are its whole, JSON-able configuration; the first field is ``dim``, and
  ``dtype`` ("float32" or "bfloat16") is the compute dtype;
* ``__call__(x, state=None, *, reset=None) -> (y, state)``. ``x`` [B, T, dim]; ``state`` is what an earlier call
  returned, or None for the start; ``reset`` [B, T] bool marks the first token of a new document: nothing from before it
  reaches it or later tokens;
* ``initial_state(batch_size, dtype=None)``: a ``flax.struct.dataclass`` of fixed shapes; ``dtype`` is the storage dtype
  of caches (default: the compute dtype), recurrent states are always at least float32;
* a class that says ``reads_tokens = True`` also takes ``tokens`` [B, T] int, what x was made from (n-gram heads);
* class attributes ``causal`` and ``paper``. A mixer with ``causal = False`` keeps no state: it returns None, and
  refuses a state with ValueError; unless it has ``prefix_length`` > 1: then the first tokens of a document, that many, see
  each other, all that comes after them is causal, and one call must hold them;
* the mathematics is a pure function in the same file, ``name(params, x, state, ...) -> (y, state)``; the module only
  declares parameters and calls it.
"""

from zoo.mixers.aaren import Aaren, AarenState, aaren, aaren_pool, prefix_attention
from zoo.mixers.attention import Attention, AttentionState, attention, cached_attention
from zoo.mixers.base_conv import BaseConv, BaseConvState, base_conv
from zoo.mixers.based import Based, BasedState, based, based_attention, based_parallel
from zoo.mixers.bidirectional import Bidirectional, bidirectional
from zoo.mixers.bidirectional_attention import BidirectionalAttention, bidirectional_attention
from zoo.mixers.deltanet import DeltaNet, DeltaNetState, deltanet
from zoo.mixers.deltaproduct import DeltaProduct, DeltaProductState, deltaproduct
from zoo.mixers.dss import DSS, DSSState, dss, dss_kernel
from zoo.mixers.elman import Elman, ElmanState, elman
from zoo.mixers.ema import EMA
from zoo.mixers.flashrnn import SLSTM, FlashRNN, FlashRNNState, flashrnn_layer
from zoo.mixers.gated_attention import GatedAttention, gated_attention
from zoo.mixers.gated_deltanet import GatedDeltaNet, GatedDeltaNetState, gated_deltanet
from zoo.mixers.gated_recurrence import GatedRecurrence, GatedRecurrenceState, gated_recurrence
from zoo.mixers.gilr import GILR, GILRState, gilr
from zoo.mixers.gla import GLA, GLAState, gla
from zoo.mixers.griffin_recurrent import GriffinRecurrent, GriffinRecurrentState, griffin_recurrent
from zoo.mixers.gru import GRU, GRUState, gru
from zoo.mixers.gsa import GSA, GSAState, gsa
from zoo.mixers.gss import GSS, GSSState, gss
from zoo.mixers.h3 import H3, H3State, h3
from zoo.mixers.hgrn import HGRN, HGRNState, hgrn
from zoo.mixers.hgrn2 import HGRN2, HGRN2State, hgrn2
from zoo.mixers.hyena import Hyena, HyenaState, hyena, hyena_filters
from zoo.mixers.jordan import Jordan, JordanOutput, JordanState, jordan
from zoo.mixers.linear_attention import LinearAttention, LinearAttentionState, linear_attention_layer
from zoo.mixers.liquid_s4 import LiquidS4, LiquidS4State, liquid_s4, liquid_scan, liquid_second_order
from zoo.mixers.longhorn import Longhorn, LonghornState, longhorn
from zoo.mixers.lru import LRU, LRUState, lru
from zoo.mixers.lssl import (
    LSSL,
    LinearSystem,
    LSSLState,
    lssl,
    lssl_convolution,
    lssl_recurrence,
    lssl_system,
    precompute_kernel,
)
from zoo.mixers.lstm import LSTM, LSTMState, lstm, lstm_states
from zoo.mixers.mamba import Mamba, MambaState, mamba
from zoo.mixers.mamba2 import Mamba2, Mamba2State, mamba2
from zoo.mixers.mega import Mega, MegaBidirectional, MegaState, mega, mega_bidirectional
from zoo.mixers.memora import Memora
from zoo.mixers.miras import MirasLayer, MirasLayerState, miras_layer
from zoo.mixers.mlstm import MLSTM, MLSTMState, mlstm
from zoo.mixers.moneta import Moneta
from zoo.mixers.ngram_head import NGramHead, NGramHeadState, ngram_head, ngram_mean, ngram_weights
from zoo.mixers.normalized_attention import NormalizedAttention, NormalizedAttentionState, normalized_attention
from zoo.mixers.ntm import (
    NTM,
    Addresses,
    NTMState,
    address,
    content_address,
    ntm,
    read_memory,
    sharpen_address,
    shift_address,
    write_memory,
)
from zoo.mixers.paragru import ParaGRU, ParaGRUState, paragru
from zoo.mixers.paralstm import ParaLSTM, ParaLSTMState, paralstm
from zoo.mixers.prefix_linear_attention import (
    PrefixLinearAttention,
    PrefixLinearAttentionState,
    prefix_linear_attention,
    prefix_parallel,
)
from zoo.mixers.qlstm import QLSTM, QLSTMState, qlstm, qlstm_cell
from zoo.mixers.retnet import RetNet, RetNetState, retnet
from zoo.mixers.rg_lru import RGLRU, RGLRUState, rg_lru
from zoo.mixers.rwkv4 import RWKV4, RWKV4State, rwkv4, wkv
from zoo.mixers.rwkv4_channel_mix import RWKV4ChannelMix, RWKV4ChannelMixState, rwkv4_channel_mix
from zoo.mixers.s4 import S4, S4Bidirectional, S4State, S4System, s4, s4_bidirectional, s4_kernel
from zoo.mixers.s4d import S4D, S4DBidirectional, S4DState, s4d, s4d_bidirectional, s4d_kernel
from zoo.mixers.s5 import S5, S5Bidirectional, S5State, s5, s5_bidirectional
from zoo.mixers.s6 import S6, S6State, s6
from zoo.mixers.seahawk import SEaHawk, SEaHawkState, seahawk
from zoo.mixers.ssd import SSD, SSDState, ssd
from zoo.mixers.tcn import TCN
from zoo.mixers.tcnca import TCNCA, TCNCABidirectional, TCNCAState, tcnca
from zoo.mixers.tcnca_simplified import SimplifiedTCNCA, SimplifiedTCNCAState, tcnca_simplified
from zoo.mixers.titans_mac import TitansContext, TitansContextState, titans_mac
from zoo.mixers.titans_mag import TitansGate, TitansGateState, titans_mag
from zoo.mixers.titans_mal import TitansLayer, TitansLayerState, titans_mal
from zoo.mixers.titans_memory import TitansMemory, TitansMemoryState, titans_memory
from zoo.mixers.ttt_linear import TTTLinear, ttt_linear
from zoo.mixers.ttt_mlp import TTTMLP, ttt_mlp
from zoo.mixers.universal_transformer import (
    UniversalTransformer,
    UniversalTransformerState,
    ponder_cost,
    step_histogram,
    universal_transformer,
)
from zoo.mixers.universal_transformer_encoder import UniversalTransformerEncoder
from zoo.mixers.window_mlp import WindowMLP, WindowMLPState, window_mlp
from zoo.mixers.yaad import Yaad

__all__ = [
    "DSS",
    "EMA",
    "GILR",
    "GLA",
    "GRU",
    "GSA",
    "GSS",
    "H3",
    "HGRN",
    "HGRN2",
    "LRU",
    "LSSL",
    "LSTM",
    "MLSTM",
    "NTM",
    "QLSTM",
    "RGLRU",
    "RWKV4",
    "S4",
    "S4D",
    "S5",
    "S6",
    "SLSTM",
    "SSD",
    "TCN",
    "TCNCA",
    "TTTMLP",
    "Aaren",
    "AarenState",
    "Addresses",
    "Attention",
    "AttentionState",
    "BaseConv",
    "BaseConvState",
    "Based",
    "BasedState",
    "Bidirectional",
    "BidirectionalAttention",
    "DSSState",
    "DeltaNet",
    "DeltaNetState",
    "DeltaProduct",
    "DeltaProductState",
    "Elman",
    "ElmanState",
    "FlashRNN",
    "FlashRNNState",
    "GILRState",
    "GLAState",
    "GRUState",
    "GSAState",
    "GSSState",
    "GatedAttention",
    "GatedDeltaNet",
    "GatedDeltaNetState",
    "GatedRecurrence",
    "GatedRecurrenceState",
    "GriffinRecurrent",
    "GriffinRecurrentState",
    "H3State",
    "HGRN2State",
    "HGRNState",
    "Hyena",
    "HyenaState",
    "Jordan",
    "JordanOutput",
    "JordanState",
    "LRUState",
    "LSSLState",
    "LSTMState",
    "LinearAttention",
    "LinearAttentionState",
    "LinearSystem",
    "LiquidS4",
    "LiquidS4State",
    "Longhorn",
    "LonghornState",
    "MLSTMState",
    "Mamba",
    "Mamba2",
    "Mamba2State",
    "MambaState",
    "Mega",
    "MegaBidirectional",
    "MegaState",
    "Memora",
    "MirasLayer",
    "MirasLayerState",
    "Moneta",
    "NGramHead",
    "NGramHeadState",
    "NTMState",
    "NormalizedAttention",
    "NormalizedAttentionState",
    "ParaGRU",
    "ParaGRUState",
    "ParaLSTM",
    "ParaLSTMState",
    "PrefixLinearAttention",
    "PrefixLinearAttentionState",
    "QLSTMState",
    "RGLRUState",
    "RWKV4ChannelMix",
    "RWKV4ChannelMixState",
    "RWKV4State",
    "RetNet",
    "RetNetState",
    "S4Bidirectional",
    "S4DBidirectional",
    "S4DState",
    "S4State",
    "S4System",
    "S5Bidirectional",
    "S5State",
    "S6State",
    "SEaHawk",
    "SEaHawkState",
    "SSDState",
    "SimplifiedTCNCA",
    "SimplifiedTCNCAState",
    "TCNCABidirectional",
    "TCNCAState",
    "TTTLinear",
    "TitansContext",
    "TitansContextState",
    "TitansGate",
    "TitansGateState",
    "TitansLayer",
    "TitansLayerState",
    "TitansMemory",
    "TitansMemoryState",
    "UniversalTransformer",
    "UniversalTransformerEncoder",
    "UniversalTransformerState",
    "WindowMLP",
    "WindowMLPState",
    "Yaad",
    "aaren",
    "aaren_pool",
    "address",
    "attention",
    "base_conv",
    "based",
    "based_attention",
    "based_parallel",
    "bidirectional",
    "bidirectional_attention",
    "cached_attention",
    "content_address",
    "deltanet",
    "deltaproduct",
    "dss",
    "dss_kernel",
    "elman",
    "flashrnn_layer",
    "gated_attention",
    "gated_deltanet",
    "gated_recurrence",
    "gilr",
    "gla",
    "griffin_recurrent",
    "gru",
    "gsa",
    "gss",
    "h3",
    "hgrn",
    "hgrn2",
    "hyena",
    "hyena_filters",
    "jordan",
    "linear_attention_layer",
    "liquid_s4",
    "liquid_scan",
    "liquid_second_order",
    "longhorn",
    "lru",
    "lssl",
    "lssl_convolution",
    "lssl_recurrence",
    "lssl_system",
    "lstm",
    "lstm_states",
    "mamba",
    "mamba2",
    "mega",
    "mega_bidirectional",
    "miras_layer",
    "mlstm",
    "ngram_head",
    "ngram_mean",
    "ngram_weights",
    "normalized_attention",
    "ntm",
    "paragru",
    "paralstm",
    "ponder_cost",
    "precompute_kernel",
    "prefix_attention",
    "prefix_linear_attention",
    "prefix_parallel",
    "qlstm",
    "qlstm_cell",
    "read_memory",
    "retnet",
    "rg_lru",
    "rwkv4",
    "rwkv4_channel_mix",
    "s4",
    "s4_bidirectional",
    "s4_kernel",
    "s4d",
    "s4d_bidirectional",
    "s4d_kernel",
    "s5",
    "s5_bidirectional",
    "s6",
    "seahawk",
    "sharpen_address",
    "shift_address",
    "ssd",
    "step_histogram",
    "tcnca",
    "tcnca_simplified",
    "titans_mac",
    "titans_mag",
    "titans_mal",
    "titans_memory",
    "ttt_linear",
    "ttt_mlp",
    "universal_transformer",
    "window_mlp",
    "wkv",
    "write_memory",
]
