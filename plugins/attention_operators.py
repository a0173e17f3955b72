"""The operators of domain `slipway` that are attention: of packed steps on a paged cache, and within packed texts."""

from __future__ import annotations

from .operator_schema import Attribute, OperatorSchema, Parameter

PAGED_ATTENTION = OperatorSchema(
    name="PagedAttention",
    meaning="Rotary embedding, writing of the step's keys and values into the pools, and causal attention of "
    "each token to its own sequence through the block table. The tokens of all sequences lie packed.",
    inputs=(
        Parameter(
            "query",
            "T",
            "[tokens, num_heads * head_dim]",
            "or packed query, key and value [tokens, (num_heads + 2 * kv_num_heads) * head_dim], with key "
            "and value absent",
        ),
        Parameter("key", "T", "[tokens, kv_num_heads * head_dim]", "new keys", optional=True),
        Parameter("value", "T", "[tokens, kv_num_heads * value_dim]", "new values", optional=True),
        Parameter("key_cache", "TCache", "[num_blocks, block_size, kv_num_heads, head_dim]", "key pool"),
        Parameter("value_cache", "TCache", "[num_blocks, block_size, kv_num_heads, value_dim]", "value pool"),
        Parameter(
            "cumulative_sequence_length",
            "Int",
            "[batch + 1]",
            "start of each sequence in `tokens`; first 0; rows from the last element on are padding, whose "
            "output is zero",
        ),
        Parameter("past_seqlens", "Int", "[batch]", "tokens in the cache before this step"),
        Parameter("block_table", "Int", "[batch, max_blocks]", "blocks of each sequence; -1 beyond its end"),
        Parameter("cos_cache", "T", "[max_positions, rotary_dim / 2]", "with do_rotary", optional=True),
        Parameter("sin_cache", "T", "[max_positions, rotary_dim / 2]", "with do_rotary", optional=True),
        Parameter(
            "slot_mapping",
            "Int",
            "[tokens]",
            "block * block_size + offset where each new key and value goes; -1 writes nothing",
        ),
        Parameter("head_sink", "T", "[num_heads]", "one more logit in each head's softmax", optional=True),
        Parameter("q_norm_weight", "T", "[head_dim]", "reserved", optional=True),
        Parameter("k_norm_weight", "T", "[head_dim]", "reserved", optional=True),
        Parameter(
            "k_scale", "Scale", "[kv_num_heads]", "pools of int8 or E4M3: key = code * scale", optional=True
        ),
        Parameter(
            "v_scale", "Scale", "[kv_num_heads]", "pools of int8 or E4M3: value = code * scale", optional=True
        ),
        Parameter("attention_metadata", "Int", "", "work list of the step; ignored", optional=True),
        Parameter("position_ids", "Int", "[tokens]", "row of cos_cache and sin_cache", optional=True),
        Parameter(
            "alibi_slopes",
            "Scale",
            "[num_heads]",
            "score += slope * (key position - query position)",
            optional=True,
        ),
        Parameter("tree_mask", "Bool", "", "reserved for speculative steps", optional=True),
        Parameter(
            "distance_bias",
            "Scale",
            "[num_heads, distances]",
            "score += bias of query position - key position; the last column is that of all farther keys too",
            optional=True,
        ),
    ),
    outputs=(
        Parameter("output", "T", "[tokens, num_heads * value_dim]", "the attention's result"),
        Parameter(
            "key_cache_out",
            "TCache",
            "as key_cache",
            "key pool with the new rows; absent: key_cache itself is written",
            optional=True,
        ),
        Parameter(
            "value_cache_out",
            "TCache",
            "as value_cache",
            "value pool with the new rows; absent: value_cache itself is written",
            optional=True,
        ),
    ),
    attributes=(
        Attribute("num_heads", "int", None, "query heads"),
        Attribute("kv_num_heads", "int", None, "key and value heads; divides num_heads"),
        Attribute("scale", "float", 0.0, "factor of the scores; 0 means 1 / sqrt(head_dim)"),
        Attribute("softcap", "float", 0.0, "c: scores become c * tanh(score / c); 0 means off"),
        Attribute("do_rotary", "int", 0, "1: turn query and key by cos_cache and sin_cache"),
        Attribute("rotary_interleaved", "int", 0, "1: pairs (0, 1), (2, 3), ...; 0: first with second half"),
        Attribute(
            "local_window_size",
            "int",
            -1,
            "w: a query sees the w last keys, its own included; -1 means all",
        ),
    ),
)

PACKED_ATTENTION = OperatorSchema(
    name="PackedAttention",
    meaning="Attention within each of several texts, whose tokens lie one after the other: "
    "softmax(scale * query @ key^T + bias) @ value, over the keys of the window.",
    inputs=(
        Parameter(
            "query",
            "T",
            "[tokens, num_heads * head_dim]",
            "or packed query, key and value [tokens, (num_heads + 2 * kv_num_heads) * head_dim], with key "
            "and value absent",
        ),
        Parameter("key", "T", "[tokens, kv_num_heads * head_dim]", "keys", optional=True),
        Parameter("value", "T", "[tokens, kv_num_heads * value_dim]", "values", optional=True),
        Parameter(
            "cu_seqlens",
            "Int",
            "[batch + 1]",
            "start of each text in `tokens`; first 0; the output of rows from the last element on is zero",
        ),
        Parameter(
            "bias",
            "Scale",
            "[1 or num_heads, length, length]",
            "added to the score of a query and a key by their positions in the text; length is at least that of the "
            "longest text",
            optional=True,
        ),
        Parameter("cos_cache", "T", "[positions, rotary_dim / 2]", "turns query and key", optional=True),
        Parameter("sin_cache", "T", "[positions, rotary_dim / 2]", "with cos_cache", optional=True),
        Parameter("position_ids", "Int", "[tokens]", "row of cos_cache and sin_cache", optional=True),
    ),
    outputs=(Parameter("output", "T", "[tokens, num_heads * value_dim]", "the attention's result"),),
    attributes=(
        Attribute("num_heads", "int", None, "query heads"),
        Attribute("kv_num_heads", "int", None, "key and value heads; divides num_heads"),
        Attribute("scale", "float", 0.0, "factor of the scores; 0 means 1 / sqrt(head_dim)"),
        Attribute("left_window", "int", -1, "keys before its own that a query sees; -1 means all"),
        Attribute("right_window", "int", -1, "keys behind its own that a query sees; -1 means all"),
        Attribute("rotary_interleaved", "int", 0, "1: pairs (0, 1), (2, 3), ...; 0: first with second half"),
    ),
)
