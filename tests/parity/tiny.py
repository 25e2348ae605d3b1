"""Tiny configurations of transformers' models, by the zoo's layout names: (class, fields)."""

COMMON = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2}
CONFIGURATIONS = {
    "mamba": ("Mamba", COMMON | {"state_size": 4}),
    "mamba-biased": (
        "Mamba", COMMON | {"state_size": 4, "use_bias": True, "use_conv_bias": False, "tie_word_embeddings": False},
    ),
    "falcon_mamba": ("FalconMamba", COMMON | {"state_size": 4}),
    "mamba2": (
        "Mamba2",
        COMMON | {"state_size": 8, "head_dim": 8, "num_heads": 8, "n_groups": 2, "chunk_size": 8, "use_bias": True},
    ),
    "jamba": (
        "Jamba",
        COMMON | {
            "num_hidden_layers": 4, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2,
            "num_experts": 3, "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2,
            "expert_layer_offset": 0, "mamba_d_state": 4, "mamba_dt_rank": 3, "use_mamba_kernels": False,
            "max_position_embeddings": 128,
        },
    ),
    "gpt2": ("GPT2", {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}),
    "llama": (
        "Llama",
        COMMON | {
            "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
        },
    ),
    "llama-scaled": (
        "Llama",
        COMMON | {
            "intermediate_size": 48, "num_attention_heads": 4, "head_dim": 16, "max_position_embeddings": 128,
            "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True,
            "rope_parameters": {
                "rope_type": "llama3", "rope_theta": 500.0, "factor": 4.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 16,
            },
        },
    ),
    "recurrent_gemma": (
        "RecurrentGemma",
        COMMON | {
            "num_hidden_layers": 3, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 1,
            "lru_width": 48, "attention_window_size": 8, "logits_soft_cap": 3.0,
            "rope_parameters": {"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 0.5},
        },
    ),
    "rwkv": ("Rwkv", COMMON | {"num_hidden_layers": 3, "intermediate_size": 48, "rescale_every": 2}),
    "xlstm": (  # caches are made for widths of keys and values that are multiples of 64
        "xLSTM",
        COMMON | {
            "hidden_size": 64, "qk_dim_factor": 1.0, "num_heads": 4, "gate_soft_cap": 5.0, "output_logit_soft_cap": 3.0,
        },
    ),
    "qwen3_next": (
        "Qwen3Next",
        COMMON | {
            "num_hidden_layers": 4, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2,
            "head_dim": 16, "max_position_embeddings": 128, "linear_num_value_heads": 4, "linear_num_key_heads": 2,
            "linear_value_head_dim": 8, "linear_key_head_dim": 6, "num_experts": 4, "num_experts_per_tok": 2,
            "moe_intermediate_size": 24, "shared_expert_intermediate_size": 16, "mlp_only_layers": [1],
            "attention_bias": True,
            "layer_types": ["linear_attention", "full_attention", "linear_attention", "full_attention"],
            "rope_parameters": {"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 0.25},
        },
    ),
}  # fmt: skip
