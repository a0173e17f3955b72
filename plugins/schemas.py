"""The operators of domain `slipway`: inputs, attributes and outputs, described once.

The ONNX translation of the export, the lowerings and the tests read the operators from here; the kernels
(`plugins/cpu`) implement what is written here. `onnx_schema` and `onnxscript_op` give the same description
as onnx's and onnxscript's own objects.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from .attention_operators import PACKED_ATTENTION as PACKED_ATTENTION
from .attention_operators import PAGED_ATTENTION as PAGED_ATTENTION
from .operator_schema import TYPE_CONSTRAINTS, Attribute, Parameter
from .operator_schema import OperatorSchema as OperatorSchema
from .quantized_operators import FAKE_QUANTIZE_TOKENS as FAKE_QUANTIZE_TOKENS
from .quantized_operators import QUANTIZED_EXPERT_LINEAR as QUANTIZED_EXPERT_LINEAR
from .quantized_operators import QUANTIZED_GATHER as QUANTIZED_GATHER
from .quantized_operators import QUANTIZED_MATMUL as QUANTIZED_MATMUL

if TYPE_CHECKING:
    import onnx
    import onnxscript.values

DOMAIN = "slipway"
VERSION = 1

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
        QUANTIZED_EXPERT_LINEAR,
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
