"""Whole models: exported Llamas of several shapes, fused, against the exported graph's own numbers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from model_repo.runtime.errors import BadInput
from pipeline.fuse import fuse, rule_names
from pipeline.fuse.weights import read_origin
from pipeline.graph import load_graph, save_graph
from pipeline.recipe import FuseRecipe

from .exported import LAYERS, MAX_LENGTH, SHAPES, Exported, exported_llama
from .graphs import assert_same, operators, run


@pytest.fixture(params=list(SHAPES))
def exported(request: pytest.FixtureRequest) -> Exported:
    return exported_llama(request.param)


def test_a_layer_becomes_eight_nodes_with_the_same_numbers(exported: Exported) -> None:
    model = exported.load()
    before = run(model, **exported.step())
    report = fuse(model, FuseRecipe(), max_length=MAX_LENGTH)
    assert_same(before, run(model, **exported.step()), tolerance=1e-5)
    biased = any(name.endswith("q_proj.bias") for name in exported.parameters)
    tied = "lm_head.weight" not in exported.parameters
    expected = {
        "PagedAttention": LAYERS,
        "SkipRMSNormalization": 2 * LAYERS,
        "SwiGLU": LAYERS,
        "MatMul": 4 * LAYERS + (not tied),
        "RMSNormalization": 1,
        "Gather": 2,
        **({"Gemm": 1} if tied else {}),
        **({"Add": 4 * LAYERS} if biased else {}),
    }
    assert operators(model) == expected
    assert report.nodes_after == sum(expected.values()) == len(model.graph)
    assert report.nodes_before == len(exported.load().graph)
    assert report.rule("qkv").matched == report.rule("rotary").matched == LAYERS
    assert report.rule("gate_up").matched == report.rule("swiglu").matched == LAYERS
    assert report.rule("rms_norm").matched == 2 * LAYERS + 1
    assert all(not rule.near_misses for rule in report.rules)


def test_every_slice_of_every_weight_is_the_rows_of_its_parameter(exported: Exported, tmp_path: Path) -> None:
    model = exported.load()
    fuse(model, FuseRecipe(), max_length=MAX_LENGTH)
    model = load_graph(save_graph(model, tmp_path / "fuse.onnx").graph)  # origins survive the disk
    seen: dict[str, int] = {}
    for name, value in model.graph.initializers.items():
        origins = read_origin(value)
        assert value.const_value is not None
        whole = value.const_value.numpy()
        if not origins:
            assert name.startswith("rotary_") or whole.size < 8, name
            continue
        start = 0
        for origin in origins:
            parameter = exported.parameters[origin.parameter]
            rows = parameter if origin.rows is None else parameter[slice(*origin.rows)]
            held = (whole if whole.ndim == 1 or not origin.transposed else whole.T)[start : start + len(rows)]
            np.testing.assert_array_equal(held, rows, err_msg=f"{origin} in {name}")
            start += len(rows)
            seen[origin.parameter] = seen.get(origin.parameter, 0) + len(rows)
        assert start == (whole.shape[-1] if origins[0].transposed else whole.shape[0])
    assert seen == {name: len(array) for name, array in exported.parameters.items()}


@pytest.mark.parametrize("disabled", rule_names())
def test_any_rule_can_be_left_out(disabled: str) -> None:
    exported = exported_llama(next(iter(SHAPES)))
    model = exported.load()
    before = run(model, **exported.step())
    report = fuse(model, FuseRecipe(disable=(disabled,)), max_length=MAX_LENGTH)
    assert disabled not in [rule.rule for rule in report.rules]
    assert_same(before, run(model, **exported.step()), tolerance=1e-5)


def test_the_report_is_plain_json_and_reads_as_a_line(exported: Exported) -> None:
    model = exported.load()
    report = fuse(model, FuseRecipe(disable=("rotary",)), max_length=MAX_LENGTH)
    assert bool(report)
    plain = json.loads(json.dumps(report.to_dict()))
    (qkv,) = (rule for rule in plain["rules"] if rule["rule"] == "qkv")
    assert qkv["matched"] == 0
    assert qkv["near_misses"][0]["reason"] == "query, key and value are not all plain products"
    assert plain["operators"]["slipway::PagedAttention"] == LAYERS
    assert f"{report.nodes_before} -> {report.nodes_after} nodes" in str(report)


def test_a_rule_that_does_not_exist_is_refused() -> None:
    with pytest.raises(BadInput, match=f"'rotery'.*there are: {', '.join(rule_names())}"):
        fuse(
            ir.Model(ir.Graph([], [], nodes=[]), ir_version=11), FuseRecipe(disable=("rotery",)), max_length=1
        )
