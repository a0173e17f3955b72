"""The operators of domain `slipway`: inputs, attributes and outputs, described once.

The ONNX translation of the export, the lowerings and the tests read the operators from here; the kernels
(`plugins/cpu`) implement what is written here. `onnx_schema` and `onnxscript_op` give the same description
as onnx's and onnxscript's own objects.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from .operator_schema import TYPE_CONSTRAINTS, Attribute, Parameter
from .operator_schema import OperatorSchema as OperatorSchema
from .quantized_operators import FAKE_QUANTIZE_TOKENS as FAKE_QUANTIZE_TOKENS
from .quantized_operators import QUANTIZED_GATHER as QUANTIZED_GATHER
from .quantized_operators import QUANTIZED_MATMUL as QUANTIZED_MATMUL

if TYPE_CHECKING:
    import onnx
    import onnxscript.values

DOMAIN = "slipway"
VERSION = 1

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
        Parameter("k_scale", "Scale", "[kv_num_heads]", "int8 pools: key = code * scale", optional=True),
        Parameter("v_scale", "Scale", "[kv_num_heads]", "int8 pools: value = code * scale", optional=True),
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

SKIP_RMS_NORMALIZATION = OperatorSchema(
    name="SkipRMSNormalization",
    meaning="sum = input + skip; output = sum / sqrt(mean(sum ** 2) + epsilon) * weight, over the last axis.",
    inputs=(
        Parameter("input", "T", "[..., hidden]", "one summand"),
        Parameter("skip", "T", "[..., hidden]", "the other summand, of the same shape"),
        Parameter("weight", "T", "[hidden]", "factor of each element"),
    ),
    outputs=(
        Parameter("output", "T", "[..., hidden]", "the normalized sum"),
        Parameter("input_skip_sum", "T", "[..., hidden]", "input + skip", optional=True),
    ),
    attributes=(Attribute("epsilon", "float", 1e-5, "added to the mean square"),),
)

SKIP_LAYER_NORMALIZATION = OperatorSchema(
    name="SkipLayerNormalization",
    meaning="sum = input + skip + input_bias; output = (sum - mean) / sqrt(variance + epsilon) * weight + bias, "
    "over the last axis.",
    inputs=(
        Parameter("input", "T", "[..., hidden]", "one summand"),
        Parameter(
            "skip",
            "T",
            "[..., hidden]",
            "the other: the last axes of input, repeated along the others, which may be 1 or absent",
        ),
        Parameter("weight", "T", "[hidden]", "factor of each element"),
        Parameter("bias", "T", "[hidden]", "added to the result", optional=True),
        Parameter("input_bias", "T", "[hidden]", "added to the sum", optional=True),
    ),
    outputs=(
        Parameter("output", "T", "[..., hidden]", "the normalized sum"),
        Parameter("input_skip_sum", "T", "[..., hidden]", "input + skip + input_bias", optional=True),
    ),
    attributes=(Attribute("epsilon", "float", 1e-5, "added to the variance"),),
)

_TANH = Attribute("tanh", "int", 0, "1: gelu(x) = x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x ** 3)))")

BIAS_GELU = OperatorSchema(
    name="BiasGelu",
    meaning="gelu(input + bias), where gelu(x) = x / 2 * (1 + erf(x / sqrt(2))).",
    inputs=(
        Parameter("input", "T", "[..., size]", "a product"),
        Parameter("bias", "T", "[size]", "added to each row"),
    ),
    outputs=(Parameter("output", "T", "[..., size]", "the activation"),),
    attributes=(_TANH,),
)

GEGLU = OperatorSchema(
    name="GeGLU",
    meaning="gelu(first half) * second half of the last axis, where gelu(x) = x / 2 * (1 + erf(x / sqrt(2))).",
    inputs=(Parameter("gate_up", "T", "[..., 2 * intermediate]", "gate, then up"),),
    outputs=(Parameter("output", "T", "[..., intermediate]", "the product"),),
    attributes=(_TANH,),
)

SWIGLU = OperatorSchema(
    name="SwiGLU",
    meaning="silu(first half) * second half of the last axis, where silu(x) = x / (1 + exp(-x)).",
    inputs=(Parameter("gate_up", "T", "[..., 2 * intermediate]", "gate, then up"),),
    outputs=(Parameter("output", "T", "[..., intermediate]", "the product"),),
    attributes=(),
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

PACKED_LAYOUT = OperatorSchema(
    name="PackedLayout",
    meaning="Where the tokens of padded texts lie once padding is left out. There are at least two rows; those of no "
    "text, behind all others, are the first place.",
    inputs=(Parameter("attention_mask", "Mask", "[batch, length]", "ones for a text's tokens, then zeros"),),
    outputs=(
        Parameter("rows", "Int", "[tokens]", "places of the tokens in batch * length", optional=True),
        Parameter("position_ids", "Int", "[tokens]", "position of each token in its text", optional=True),
        Parameter("cu_seqlens", "Int", "[batch + 1]", "start of each text in `tokens`", optional=True),
    ),
    attributes=(),
)

PACKED_POOL = OperatorSchema(
    name="PackedPool",
    meaning="The rows of each text as one row; zeros for a text without any.",
    inputs=(
        Parameter("rows", "T", "[tokens, width]", "the texts, one after the other"),
        Parameter("cu_seqlens", "Int", "[batch + 1]", "start of each text in `tokens`"),
    ),
    outputs=(Parameter("pooled", "T", "[batch, width]", "one row a text"),),
    attributes=(
        Attribute(
            "kind", "int", None, "0: sum, 1: maximum of each element, 2: the first row, 3: the last one"
        ),
    ),
)

UNPACKED_ROWS = OperatorSchema(
    name="UnpackedRows",
    meaning="Packed texts as a padded batch again, with zeros for padding.",
    inputs=(
        Parameter("rows", "T", "[tokens, ...]", "the texts, one after the other"),
        Parameter("cu_seqlens", "Int", "[batch + 1]", "start of each text in `tokens`"),
        Parameter("attention_mask", "Mask", "[batch, length]", "its shape says how long padded texts are"),
    ),
    outputs=(Parameter("padded", "T", "[batch, length, ...]", "the padded batch"),),
    attributes=(),
)

EMBED_LAYER_NORMALIZATION = OperatorSchema(
    name="EmbedLayerNormalization",
    meaning="sum = table[ids] + second_table[second_ids] + third_table[third_ids]; output = (sum - mean) / "
    "sqrt(variance + epsilon) * weight + bias, over the last axis. Negative ids count from a table's end.",
    inputs=(
        Parameter("ids", "Index", "[...]", "rows of table"),
        Parameter("table", "T", "[entries, hidden]", "an embedding table"),
        Parameter(
            "second_ids", "Index", "last axes of ids", "rows of second_table, repeated along the others"
        ),
        Parameter("second_table", "T", "[entries, hidden]", "an embedding table"),
        Parameter("weight", "T", "[hidden]", "factor of each element"),
        Parameter("bias", "T", "[hidden]", "added to the result", optional=True),
        Parameter("third_ids", "Index", "last axes of ids", "rows of third_table", optional=True),
        Parameter("third_table", "T", "[entries, hidden]", "an embedding table", optional=True),
    ),
    outputs=(
        Parameter("output", "T", "[..., hidden]", "the normalized sum"),
        Parameter("embedding_sum", "T", "[..., hidden]", "the sum", optional=True),
    ),
    attributes=(Attribute("epsilon", "float", 1e-5, "added to the variance"),),
)

EXPERT_LINEAR = OperatorSchema(
    name="ExpertLinear",
    meaning="Row r of the output is row r of the input times the matrix of expert expert_ids[r] (mixture of experts).",
    inputs=(
        Parameter("input", "T", "[rows, in]", "a row for each pair of a token and an expert of its"),
        Parameter("weight", "T", "[experts, out, in]", "matrices; [experts, in, out] with transposed"),
        Parameter("expert_ids", "Int", "[rows]", "0 to experts - 1"),
    ),
    outputs=(Parameter("output", "T", "[rows, out]", "the products"),),
    attributes=(Attribute("transposed", "int", 0, "1: the matrices lie as [in, out]"),),
)

OPERATORS: Mapping[str, OperatorSchema] = {
    schema.name: schema
    for schema in (
        PAGED_ATTENTION,
        SKIP_RMS_NORMALIZATION,
        SWIGLU,
        SKIP_LAYER_NORMALIZATION,
        BIAS_GELU,
        GEGLU,
        EXPERT_LINEAR,
        PACKED_ATTENTION,
        PACKED_LAYOUT,
        PACKED_POOL,
        UNPACKED_ROWS,
        EMBED_LAYER_NORMALIZATION,
        QUANTIZED_MATMUL,
        QUANTIZED_GATHER,
        FAKE_QUANTIZE_TOKENS,
    )
}


def onnx_schema(operator: OperatorSchema) -> onnx.defs.OpSchema:
    """`operator` as onnx describes operators (for checkers, and for onnxscript)."""
    from onnx.defs import OpSchema

    def formal(parameter: Parameter) -> OpSchema.FormalParameter:
        option = OpSchema.FormalParameterOption
        return OpSchema.FormalParameter(
            parameter.name,
            parameter.type,
            f"{parameter.shape} {parameter.meaning}".strip(),
            param_option=option.Optional if parameter.optional else option.Single,
        )

    def attribute(description: Attribute) -> OpSchema.Attribute:
        kind = OpSchema.AttrType.INT if description.kind == "int" else OpSchema.AttrType.FLOAT
        if description.default is None:
            return OpSchema.Attribute(description.name, kind, description.meaning, required=True)
        import onnx.helper

        default = onnx.helper.make_attribute(description.name, description.default)
        return OpSchema.Attribute(description.name, default, description.meaning)

    used = {parameter.type for parameter in (*operator.inputs, *operator.outputs)}
    return OpSchema(
        operator.name,
        DOMAIN,
        VERSION,
        operator.meaning,
        inputs=[formal(parameter) for parameter in operator.inputs],
        outputs=[formal(parameter) for parameter in operator.outputs],
        type_constraints=[
            (name, list(types), "") for name, types in TYPE_CONSTRAINTS.items() if name in used
        ],
        attributes=[attribute(description) for description in operator.attributes],
    )


def onnxscript_op(operator: OperatorSchema) -> onnxscript.values.Op:
    """`operator` as a callable of onnxscript, for `torch.onnx.export(custom_translation_table=...)`."""
    import onnxscript.values

    opset = onnxscript.values.Opset(DOMAIN, VERSION)
    return onnxscript.values.Op(opset, operator.name, onnx_schema(operator))
