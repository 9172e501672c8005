"""How small a miniature is: values of a config by the name of the field, and types by name.

A miniature is much shorter in every direction than its rows, as the released model is than the rows
of a real run: windows and chunks hold 16 tokens where sequences have 64 and more, scales by
position begin at 16 to 24 tokens, an indexer chooses 12 keys.
"""

from typing import Any

VOCAB = 320
_ATTENTION = ("full_attention", "sliding_attention")
_LINEAR = ("linear_attention", "full_attention")

# By field. Only fields that the config class has are set, whatever their default.
SMALL: dict[str, Any] = {
    "vocab_size": VOCAB,
    "vocab_size_per_layer_input": VOCAB,
    "unpadded_vocab_size": VOCAB,
    "decoder_vocab_size": VOCAB,
    "max_position_embeddings": 512,
    "n_positions": 512,
    "max_seq_len": 512,
    "n_ctx": 512,
    "context_length": 512,
    "max_target_positions": 512,
    # Widths.
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "emb_dim", "embedding_size"), 64),
    **dict.fromkeys(("word_embed_proj_dim", "attention_hidden_size", "lru_width"), 64),
    **dict.fromkeys(("input_embedding_size", "output_embedding_size"), 64),
    **dict.fromkeys(("intermediate_size", "intermediate_size_mlp", "dense_intermediate_size"), 96),
    **dict.fromkeys(("prefix_dense_intermediate_size", "ffn_hidden_size"), 96),
    **dict.fromkeys(("decoder_ffn_dim", "encoder_ffn_dim", "ffn_dim", "dff", "dim_ff"), 96),
    **dict.fromkeys(("feed_forward_size", "d_inner", "n_inner"), 96),
    **dict.fromkeys(("moe_intermediate_size", "shared_intermediate_size"), 32),
    **dict.fromkeys(("shared_expert_intermediate_size", "expert_ffn_hidden_size"), 32),
    **dict.fromkeys(
        ("moe_shared_expert_intermediate_size", "shared_experts_intermediate_size"), 32
    ),
    "hidden_size_per_layer_input": 16,
    "laurel_rank": 8,
    "router_hidden_size": 16,
    # Depth; where a config lists its layers, `miniatures` keeps one of each kind.
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), 2),
    **dict.fromkeys(("decoder_layers", "encoder_layers", "num_decoder_layers"), 2),
    "num_encoder_layers": 2,
    "num_mtp_layers": 0,
    "num_nextn_predict_layers": 0,
    # Heads: two groups of two.
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "swa_num_attention_heads"), 4),
    **dict.fromkeys(("decoder_attention_heads", "encoder_attention_heads", "attention_heads"), 4),
    **dict.fromkeys(("num_decoder_attention_heads", "num_encoder_attention_heads"), 4),
    **dict.fromkeys(("num_heads", "num_kv_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "swa_num_key_value_heads"), 2),
    **dict.fromkeys(("head_dim", "swa_head_dim", "kv_channels", "dim_head", "d_head"), 16),
    **dict.fromkeys(("attention_head_size", "attention_head_dim", "rotary_dim"), 16),
    "query_pre_attn_scalar": 16,
    # Latent attention, and the indexers that choose its keys.
    "kv_lora_rank": 16,
    "q_lora_rank": 24,
    "o_lora_rank": 16,
    "o_groups": 2,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "qk_head_dim": 24,
    "v_head_dim": 12,
    "index_n_heads": 32,  # fewer give scores of exactly 0, and ties
    "index_head_dim": 16,
    "index_topk": 12,
    "index_block_size": 4,
    "index_topk_blocks": 3,
    "index_local_blocks": 1,
    "indexer_head_dim": 16,
    "indexer_budget": 12,
    # Windows, chunks and scales by position.
    **dict.fromkeys(("sliding_window", "sliding_window_size", "window_size"), 16),
    **dict.fromkeys(("attention_window_size", "local_attention", "keep_window_size"), 16),
    **dict.fromkeys(("attention_chunk_size", "block_size", "rel_extent"), 16),
    "use_sliding_window": True,
    "max_window_layers": 0,
    "floor_scale": 16,
    "log_scaling_n_floor": 16,
    "position_bias_max_distance": 16,
    "d_rel": 4,
    # Experts.
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    "moe_num_experts": 4,
    **dict.fromkeys(("num_experts_per_tok", "moe_topk", "moe_k", "top_k_experts"), 2),
    **dict.fromkeys(("n_shared_experts", "moe_num_shared_experts", "num_shared_experts"), 1),
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "num_dense_layers": 1,
    "moe_layer_start_index": 1,
    "decoder_sparse_step": 1,
    "zero_expert_num": 2,
    "moe_latent_size": None,
    # Recurrent layers and short convolutions.
    **dict.fromkeys(("mamba_d_state", "state_size", "ssm_state_size"), 8),
    **dict.fromkeys(("mamba_expand", "expand"), 2),
    **dict.fromkeys(("mamba_n_heads", "mamba_num_heads", "n_mamba_heads"), 8),
    **dict.fromkeys(("mamba_d_head", "mamba_head_dim"), 16),
    **dict.fromkeys(("mamba_n_groups", "mamba_ngroups", "n_groups"), 2),
    **dict.fromkeys(("mamba_chunk_size", "chunk_size"), 8),
    **dict.fromkeys(("mamba_dt_rank", "time_step_rank"), 4),
    "mamba_d_ssm": 128,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_num_heads": 4,
    "linear_head_dim": 16,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "adapter_rank": 8,
    "layerdrop": 0.0,
    "decoder_layerdrop": 0.0,
    "encoder_layerdrop": 0.0,
    "is_decoder": True,  # BERT and its kin look ahead without it
    # No special token: sequences are random ids.
    **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id"), 1),
}

# By type, the types within a type included: what released models have and the defaults of their
# config class have not, or sizes that must fit each other.
OF_TYPE: dict[str, dict[str, Any]] = {
    # Layers of both kinds where the defaults have one.
    **{
        name: {"layer_types": [*_ATTENTION]}
        for name in ("qwen2", "qwen2_moe", "qwen3", "ministral")
    },
    "cohere_compass_text": {
        "layer_types": [*_ATTENTION],
        "rope_parameters": {
            "full_attention": None,
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        },
    },
    "smollm3": {"layer_types": [*_ATTENTION], "no_rope_layers": [0, 1]},
    "dots1": {"num_hidden_layers": 3, "layer_types": [*_ATTENTION, "sliding_attention"]},
    "mellum": {"layer_types": [*_ATTENTION], "mlp_layer_types": ["sparse"] * 2},
    "laguna": {
        "layer_types": [*_ATTENTION, "sliding_attention"],
        "mlp_layer_types": ["dense", "sparse", "sparse"],
        "num_attention_heads_per_layer": [4, 2, 4],
        "num_hidden_layers": 3,
    },
    "granitemoehybrid": {"layer_types": [*_LINEAR, "linear_attention"], "num_hidden_layers": 3},
    "bamba": {"num_hidden_layers": 3, "attn_layer_indices": [1]},
    "jamba": {
        "num_hidden_layers": 4,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 3,
        "expert_layer_offset": 0,
    },
    "lfm2": {"layer_types": ["conv", "full_attention", "conv"], "num_hidden_layers": 3},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv"], "num_hidden_layers": 3},
    "recurrent_gemma": {"num_hidden_layers": 3},
    "minimax_m3_vl_text": {
        "layer_types": ["full_attention", "minimax_m3_sparse"],
        "mlp_layer_types": ["dense", "sparse"],
        "index_n_heads": 2,
    },
    "zaya": {"layer_types": ["hybrid", "hybrid_sliding"], "num_experts_per_tok": 1},
    "llama4_text": {"num_hidden_layers": 4, "layer_types": None, "no_rope_layers": None}
    | {"moe_layers": None, "interleave_moe_layer_step": 2, "num_experts_per_tok": 1},
    # Layers that read the keys and values of earlier ones.
    "gemma3n_text": {
        "num_hidden_layers": 4,
        "layer_types": [*_ATTENTION[::-1]] * 2,
        "activation_sparsity_pattern": [0.95, 0.0, 0.0, 0.0],
        "intermediate_size": 96,
        "num_kv_shared_layers": 2,
    },
    **{
        name: {
            "num_hidden_layers": 4,
            "layer_types": [*_ATTENTION[::-1]] * 2,
            "num_kv_shared_layers": 2,
            "global_head_dim": 32,
            "attention_k_eq_v": True,
            "enable_moe_block": True,
        }
        for name in ("gemma4_text", "gemma4_unified_text")
    },
    # Sizes that must fit.
    "mamba2": {"num_heads": 8},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
        "ffn_config": {"hidden_size": 64, "ffn_hidden_size": 32, "moe_top_k": 2},
    },
    "deepseek_v4": {
        "num_key_value_heads": 1,
        "partial_rotary_factor": 0.5,
        "compress_rates": {"compressed_sparse_attention": 4, "heavily_compressed_attention": 16},
    },
    "longcat_flash": {"head_dim": 8},
    "reformer": {
        "axial_pos_embds_dim": [32, 32],
        "axial_pos_shape": [16, 32],
        "attn_layers": ["local", "lsh"],
        "num_hidden_layers": 2,
        "local_attn_chunk_length": 8,
        "lsh_attn_chunk_length": 8,
        "num_buckets": 8,
    },
    "xmod": {"languages": ["en_XX"], "default_language": "en_XX"},
    "qwen4_exp_text": {
        "indexer_n_heads": 32,
        "indexer_kv_heads": 1,
        "indexer_compress_ratio": 4,
        "hc_lowrank": 16,
    },
    "dots3_note_text": {
        "swa_num_attention_heads": 4,
        "swa_num_key_value_heads": 4,
        "swa_q_lora_rank": 24,
        "swa_kv_lora_rank": 16,
        "swa_head_dim": 24,
        "swa_qk_nope_head_dim": 16,
        "swa_v_head_dim": 12,
    },
    "dots3_note_vision_encoder": {"adapter_in_dim": 64, "adapter_out_dim": 64},
    "dots3_note_audio_encoder": {"adapter_out_dim": 64, "adapter_input_size": 64},
    "zamba": {
        "num_hidden_layers": 4,
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
        "attention_hidden_size": 128,
        "attention_head_dim": 32,
        "num_key_value_heads": 4,
        "n_mamba_heads": 2,
    },
    "blt": {"encoder_hash_byte_group_vocab": 64, "patch_in_forward": True},
    "blt_local_encoder": {"hidden_size_global": 64},
    "blt_local_decoder": {"hidden_size_global": 64},
    "roc_bert": {"pronunciation_vocab_size": 320, "shape_vocab_size": 320},
}
