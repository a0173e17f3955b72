"""The one description of the operators, and what is made from it."""

from __future__ import annotations

from pathlib import Path

import onnx.defs
import pytest

import plugins
from plugins.schemas import OPERATORS, PAGED_ATTENTION, onnx_schema, onnxscript_op


@pytest.mark.parametrize("name", OPERATORS)
def test_onnx_schema_says_the_same(name: str) -> None:
    operator = OPERATORS[name]
    schema = onnx_schema(operator)
    assert (schema.name, schema.domain, schema.since_version) == (name, "slipway", 1)
    optional = onnx.defs.OpSchema.FormalParameterOption.Optional
    for described, made in ((operator.inputs, schema.inputs), (operator.outputs, schema.outputs)):
        assert [(p.name, p.type, p.optional) for p in described] == [
            (p.name, p.type_str, p.option == optional) for p in made
        ]
    assert {a.name: a.default is None for a in operator.attributes} == {
        a.name: a.required for a in schema.attributes.values()
    }
    assert onnxscript_op(operator).name == name


def test_input_order_is_that_of_onnx_runtimes_operator() -> None:
    """The first 17 inputs are those of com.microsoft.PagedAttention, so that lowering to it is a rename."""
    assert [p.name for p in PAGED_ATTENTION.inputs[:17]] == [
        *("query", "key", "value", "key_cache", "value_cache", "cumulative_sequence_length", "past_seqlens"),
        *("block_table", "cos_cache", "sin_cache", "slot_mapping", "head_sink", "q_norm_weight"),
        *("k_norm_weight", "k_scale", "v_scale", "attention_metadata"),
    ]
    assert PAGED_ATTENTION.input_index("position_ids") == 17
    with pytest.raises(KeyError, match="PagedAttention has no input 'mask'"):
        PAGED_ATTENTION.input_index("mask")


def test_readme_names_every_input_output_and_attribute() -> None:
    """The table that users read has all that the schemas have."""
    assert plugins.__file__ is not None
    readme = (Path(plugins.__file__).parent / "README.md").read_text(encoding="utf-8")
    for operator in OPERATORS.values():
        assert f"`{operator.name}`" in readme
        for part in (*operator.inputs, *operator.outputs, *operator.attributes):
            assert f"`{part.name}`" in readme, f"{operator.name}: {part.name}"
