"""Sequence mixers: [batch, time, dim] -> [batch, time, dim], one file per architecture.

The contract, which the laws in tests/laws check for every registered mixer:

* a Flax Linen module whose dataclass fields are its whole, JSON-able configuration; the first field is ``dim``, and
  ``dtype`` ("float32" or "bfloat16") is the compute dtype;
* ``__call__(x, state=None, *, reset=None) -> (y, state)``. ``x`` [B, T, dim]; ``state`` is what an earlier call
  returned, or None for the start; ``reset`` [B, T] bool marks the first token of a new document: nothing from before it
  reaches it or later tokens;
* ``initial_state(batch_size, dtype=None)``: a ``flax.struct.dataclass`` of fixed shapes; ``dtype`` is the storage dtype
  of caches (default: the compute dtype), recurrent states are always at least float32;
* class attributes ``causal`` and ``paper``. A mixer with ``causal = False`` keeps no state: it returns None, and
  refuses a state with ValueError;
* the mathematics is a pure function in the same file, ``name(params, x, state, ...) -> (y, state)``; the module only
  declares parameters and calls it.
"""

from zoo.mixers.aaren import Aaren, AarenState, aaren, aaren_pool, prefix_attention
from zoo.mixers.attention import Attention, AttentionState, attention, cached_attention
from zoo.mixers.bidirectional import Bidirectional, bidirectional
from zoo.mixers.bidirectional_attention import BidirectionalAttention, bidirectional_attention
from zoo.mixers.elman import Elman, ElmanState, elman
from zoo.mixers.flashrnn import SLSTM, FlashRNN, FlashRNNState, flashrnn_layer
from zoo.mixers.gated_attention import GatedAttention, gated_attention
from zoo.mixers.gated_deltanet import GatedDeltaNet, GatedDeltaNetState, gated_deltanet
from zoo.mixers.gated_recurrence import GatedRecurrence, GatedRecurrenceState, gated_recurrence
from zoo.mixers.gilr import GILR, GILRState, gilr
from zoo.mixers.griffin_recurrent import GriffinRecurrent, GriffinRecurrentState, griffin_recurrent
from zoo.mixers.gru import GRU, GRUState, gru
from zoo.mixers.jordan import Jordan, JordanOutput, JordanState, jordan
from zoo.mixers.liquid_s4 import LiquidS4, LiquidS4State, liquid_s4, liquid_scan, liquid_second_order
from zoo.mixers.lru import LRU, LRUState, lru
from zoo.mixers.lstm import LSTM, LSTMState, lstm, lstm_states
from zoo.mixers.mamba import Mamba, MambaState, mamba
from zoo.mixers.mamba2 import Mamba2, Mamba2State, mamba2
from zoo.mixers.mlstm import MLSTM, MLSTMState, mlstm
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
from zoo.mixers.rg_lru import RGLRU, RGLRUState, rg_lru
from zoo.mixers.rwkv4 import RWKV4, RWKV4State, rwkv4, wkv
from zoo.mixers.rwkv4_channel_mix import RWKV4ChannelMix, RWKV4ChannelMixState, rwkv4_channel_mix
from zoo.mixers.s5 import S5, S5Bidirectional, S5State, s5, s5_bidirectional
from zoo.mixers.universal_transformer import (
    UniversalTransformer,
    UniversalTransformerState,
    ponder_cost,
    step_histogram,
    universal_transformer,
)
from zoo.mixers.universal_transformer_encoder import UniversalTransformerEncoder
from zoo.mixers.window_mlp import WindowMLP, WindowMLPState, window_mlp

__all__ = [
    "GILR",
    "GRU",
    "LRU",
    "LSTM",
    "MLSTM",
    "NTM",
    "RGLRU",
    "RWKV4",
    "S5",
    "SLSTM",
    "Aaren",
    "AarenState",
    "Addresses",
    "Attention",
    "AttentionState",
    "Bidirectional",
    "BidirectionalAttention",
    "Elman",
    "ElmanState",
    "FlashRNN",
    "FlashRNNState",
    "GILRState",
    "GRUState",
    "GatedAttention",
    "GatedDeltaNet",
    "GatedDeltaNetState",
    "GatedRecurrence",
    "GatedRecurrenceState",
    "GriffinRecurrent",
    "GriffinRecurrentState",
    "Jordan",
    "JordanOutput",
    "JordanState",
    "LRUState",
    "LSTMState",
    "LiquidS4",
    "LiquidS4State",
    "MLSTMState",
    "Mamba",
    "Mamba2",
    "Mamba2State",
    "MambaState",
    "NTMState",
    "ParaGRU",
    "ParaGRUState",
    "ParaLSTM",
    "ParaLSTMState",
    "RGLRUState",
    "RWKV4ChannelMix",
    "RWKV4ChannelMixState",
    "RWKV4State",
    "S5Bidirectional",
    "S5State",
    "UniversalTransformer",
    "UniversalTransformerEncoder",
    "UniversalTransformerState",
    "WindowMLP",
    "WindowMLPState",
    "aaren",
    "aaren_pool",
    "address",
    "attention",
    "bidirectional",
    "bidirectional_attention",
    "cached_attention",
    "content_address",
    "elman",
    "flashrnn_layer",
    "gated_attention",
    "gated_deltanet",
    "gated_recurrence",
    "gilr",
    "griffin_recurrent",
    "gru",
    "jordan",
    "liquid_s4",
    "liquid_scan",
    "liquid_second_order",
    "lru",
    "lstm",
    "lstm_states",
    "mamba",
    "mamba2",
    "mlstm",
    "ntm",
    "paragru",
    "paralstm",
    "ponder_cost",
    "prefix_attention",
    "read_memory",
    "rg_lru",
    "rwkv4",
    "rwkv4_channel_mix",
    "s5",
    "s5_bidirectional",
    "sharpen_address",
    "shift_address",
    "step_histogram",
    "universal_transformer",
    "window_mlp",
    "wkv",
    "write_memory",
]
