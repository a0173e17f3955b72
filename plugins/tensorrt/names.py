"""What a plugin node in an ONNX graph is called, and the attributes that all of them have."""

from __future__ import annotations

DOMAIN = "slipway.tensorrt"
"""Of the nodes in graphs that are lowered for TensorRT. The parser looks plugins up by the operator's name alone."""

NAMESPACE = "slipway"
VERSION = "1"
"""Of plugins: they go up together when a node of before would mean something else."""

STATE_VERSION = 1
"""Of what an engine keeps of a plugin; an engine of another one has to be built again."""

INPUTS = "input_names"
"""Attribute: the kernel's names of the node's inputs, joined by commas, so that absent ones are left out."""

STATE = "state_version"
PLUGIN_VERSION, PLUGIN_NAMESPACE = "plugin_version", "plugin_namespace"
"""Attributes that the parser reads."""

PAGED_ATTENTION, FLASH_ATTENTION, INT4_GEMM = "PagedAttention", "FlashAttention", "Int4Gemm"

PAGED_ATTENTION_INPUTS = (
    *(
        "query",
        "key",
        "value",
        "key_cache",
        "value_cache",
        "cumulative_sequence_length",
        "past_seqlens",
        "block_table",
    ),
    *(
        "cos_cache",
        "sin_cache",
        "slot_mapping",
        "head_sink",
        "q_norm_weight",
        "k_norm_weight",
        "k_scale",
        "v_scale",
    ),
    *("attention_metadata", "position_ids", "alibi_slopes", "tree_mask", "prefix_leader", "prefix_lens"),
    *("k_token_scale", "v_token_scale"),
)
"""What the kernel takes, for lowering graphs where it is not compiled; a test holds it to the kernel's own words."""
