"""The operators of domain `slipway` on quantized weights and activations."""

from __future__ import annotations

from .operator_schema import Attribute, OperatorSchema, Parameter

_WEIGHT = Parameter(
    "weight",
    "Codes",
    "[columns / 16, inputs / 4, 64], or in blocks [columns / 16, inputs / block, 2 * bits * block + 32]",
    "codes as plugins/column_blocks.py packs them",
)
_WEIGHT_SCALE = Parameter(
    "weight_scale", "Scale", "[columns], or in blocks []", "step of the codes, or factor of the packed steps"
)
_BITS = Attribute(
    "bits", "int", 8, "of a weight's code: 8 (a scale a column or a block of inputs) or 4 (a block)"
)

QUANTIZED_MATMUL = OperatorSchema(
    name="QuantizedMatMul",
    meaning="Each row of the input is rounded to codes of -127 to 127 with a scale of its own (its largest absolute "
    "value / 127) and multiplied with quantized weights, in whole numbers. Rows for 8-bit weights in blocks have codes "
    "of -32639 to 32639.",
    inputs=(
        Parameter("input", "T", "[..., inputs]", "activations"),
        _WEIGHT,
        _WEIGHT_SCALE,
        Parameter("bias", "T", "[columns]", "added to each row", optional=True),
        Parameter("input_scale", "Scale", "[]", "a scale for all rows instead of their own", optional=True),
    ),
    outputs=(Parameter("output", "T", "[..., columns]", "the products"),),
    attributes=(
        _BITS,
        Attribute("columns", "int", None, "of the product"),
        Attribute(
            "input_blocks", "int", 0, "4 bits: 1 rounds each block of a row's inputs with a scale of its own"
        ),
    ),
)

QUANTIZED_GATHER = OperatorSchema(
    name="QuantizedGather",
    meaning="Rows of a quantized table, as numbers: an embedding that may share its weight with QuantizedMatMul.",
    inputs=(_WEIGHT, _WEIGHT_SCALE, Parameter("indices", "Index", "[...]", "rows wanted")),
    outputs=(Parameter("output", "T", "[..., inputs]", "their numbers"),),
    attributes=(
        _BITS,
        Attribute("columns", "int", None, "rows of the table"),
        Attribute("size", "int", None, "numbers of a row"),
    ),
)

QUANTIZED_EXPERT_LINEAR = OperatorSchema(
    name="QuantizedExpertLinear",
    meaning="ExpertLinear with quantized weights: each row is rounded as by QuantizedMatMul and multiplied with the "
    "codes of expert expert_ids[r]; those of other experts are not read.",
    inputs=(
        Parameter("input", "T", "[rows, inputs]", "a row for each pair of a token and an expert of its"),
        Parameter(
            "weight",
            "Codes",
            "[experts, ...]",
            "each expert's codes as QuantizedMatMul has them",
        ),
        Parameter(
            "weight_scale",
            "Scale",
            "[experts, columns], or in blocks [experts]",
            "step of the codes, or factor of the packed steps",
        ),
        Parameter("expert_ids", "Int", "[rows]", "0 to experts - 1"),
    ),
    outputs=(Parameter("output", "T", "[rows, columns]", "the products"),),
    attributes=(
        _BITS,
        Attribute("columns", "int", None, "of the product"),
        Attribute(
            "input_blocks", "int", 0, "4 bits: 1 rounds each block of a row's inputs with a scale of its own"
        ),
    ),
)

FAKE_QUANTIZE_TOKENS = OperatorSchema(
    name="FakeQuantizeTokens",
    meaning="Each row of the last axis rounded to codes of -127 to 127 with a scale of its own and back: what "
    "QuantizedMatMul sees of it.",
    inputs=(Parameter("input", "T", "[..., size]", "activations"),),
    outputs=(Parameter("output", "T", "[..., size]", "the numbers that the codes stand for"),),
    attributes=(),
)
