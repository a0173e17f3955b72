"""Graphs in 16 bit: types, numbers against the emulation and torch's own rounding, and what a search keeps."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from click.testing import CliRunner

from model_repo.runtime.errors import BadInput
from pipeline import BuildResult, Recipe
from pipeline.cli import main
from pipeline.graph import save_graph
from pipeline.parity.distance import distance
from pipeline.parity.feeds import graph_feeds
from pipeline.parity.stepwise import Stepwise, comparable_graph
from pipeline.parity.walk import GraphReference, walk
from pipeline.precision.convert import convert, emulate
from pipeline.precision.plan import Precision, plan, rounded
from pipeline.precision.search import search
from pipeline.steps.context import BuildContext
from pipeline.workspace import EXPORTED, FUSED, Workspace

Feeds = dict[str, np.ndarray]
FLOATS = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}
TORCH = {"fp16": torch.float16, "bf16": torch.bfloat16}


class Decoder:
    """A graph of the tiny build, and its inputs."""

    def __init__(self, folder: Path, name: str) -> None:
        context = BuildContext(Recipe.load(folder / "recipe.yaml"), Workspace(folder), exports=False)
        facts, inputs = context.facts, context.parity_inputs()
        self.model = comparable_graph(folder / name)
        self.feeds: Callable[[], Sequence[Feeds]] = lambda: graph_feeds(facts.kind, facts.kv, inputs)


@pytest.fixture(params=[EXPORTED, FUSED])
def decoder(request: pytest.FixtureRequest, real_build: BuildResult) -> Decoder:
    return Decoder(real_build.folder, request.param)


def outputs(model: ir.Model, feeds: Sequence[Feeds]) -> list[np.ndarray]:
    """The first output of all runs, by ONNX Runtime."""
    value = model.graph.outputs[0]
    graph = Stepwise(model, [feeds], [value])
    graph.reach(value)
    found = graph.get(value)
    assert found is not None
    return found


def narrow_graph(text: str, **weights: np.ndarray) -> ir.Model:
    """A graph of `text` in which values called as the weights are constants."""
    model = ir.from_onnx_text(f'<ir_version: 10, opset_import: ["" : 23]>\n{text}')
    for value in list(model.graph.inputs):
        if value.name in weights:
            model.graph.inputs.remove(value)
            value.const_value = ir.tensor(weights[value.name], name=value.name)
            model.graph.register_initializer(value)
    for place, node in enumerate(model.graph):
        node.name = node.name or f"{node.op_type}_{place}"
    types = {value.name: ir.TensorType(ir.DataType.FLOAT) for node in model.graph for value in node.outputs}
    for node in model.graph:
        for value in node.outputs:
            value.type = value.type or types[value.name]
    return model


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_a_converted_graph_keeps_its_contract_and_is_valid(
    decoder: Decoder, precision: Precision, tmp_path: Path
) -> None:
    model = decoder.model.clone()
    before = [(v.name, v.dtype, str(v.shape)) for v in (*model.graph.inputs, *model.graph.outputs)]
    convert(model, plan(model, precision))
    assert [(v.name, v.dtype, str(v.shape)) for v in (*model.graph.inputs, *model.graph.outputs)] == before
    kinds = [value.dtype for node in model.graph if node.op_type == "MatMul" for value in node.outputs]
    assert kinds
    assert set(kinds) == {FLOATS[precision]}
    custom = [node for node in model.graph if node.domain]
    assert custom
    assert {value.dtype for node in custom for value in node.outputs} == {ir.DataType.FLOAT}
    weights = [value for value in model.graph.initializers.values() if value.name.endswith("proj.weight")]
    assert all(value.uses() for value in model.graph.initializers.values()), "nothing is stored twice"
    assert not [value for value in weights if value.dtype == ir.DataType.FLOAT]
    path = save_graph(model, tmp_path / "narrow.onnx").graph
    stored = onnx.shape_inference.infer_shapes(onnx.load(path), strict_mode=False)
    assert len(stored.graph.node) == len(model.graph)


def test_the_emulation_has_the_numbers_of_the_converted_graph(decoder: Decoder) -> None:
    """fp16 runs in ONNX Runtime as it is; only its products round their sums in another place."""
    made, same = decoder.model.clone(), decoder.model.clone()
    convert(made, plan(made, "fp16"))
    emulate(same, plan(same, "fp16"))
    steps = walk(GraphReference(same, decoder.feeds()), made, decoder.feeds, limit=1.0).steps
    assert len(steps) > 20
    two_roundings = 2 * 2.0**-10  # of partial sums and of the result
    for step in steps:
        assert step.own_error <= (two_roundings if step.node.operator in ("MatMul", "Gemm") else 0.0), step
    wanted, emulated = outputs(decoder.model, decoder.feeds()), outputs(same, decoder.feeds())
    assert 1e-4 < distance(wanted, emulated) < 2e-2


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_numbers_are_those_that_torch_computes_in_that_type(precision: Precision) -> None:
    draw = np.random.default_rng(0)
    weight, bias = draw.standard_normal((8, 6), np.float32), draw.standard_normal(6, np.float32)
    text = (
        "mlp (float[n, 8] x, float[8, 6] w, float[6] b) => (float[n, 6] y) {\n"
        "product = MatMul(x, w)\nbiased = Add(product, b)\ny = Sigmoid(biased)\n}"
    )
    model = narrow_graph(text, w=weight, b=bias)
    emulate(model, plan(model, precision))
    x = draw.standard_normal((5, 8), np.float32)
    (found,) = outputs(model, [{"x": x}])
    kind = TORCH[precision]
    narrow = [torch.from_numpy(array).to(kind) for array in (x, weight, bias)]
    expected = torch.sigmoid(narrow[0] @ narrow[1] + narrow[2]).float().numpy()
    step = {"fp16": 2**-11, "bf16": 2**-8}[precision]
    np.testing.assert_allclose(found, expected, atol=2 * step)
    assert (found == torch.from_numpy(found).to(kind).float().numpy()).all(), (
        "results are numbers of the type"
    )


def test_masks_become_the_largest_number_and_are_no_overflow() -> None:
    lowest = np.float32(np.finfo(np.float32).min)
    assert rounded(np.array([lowest, 1.0, -np.inf], np.float32), "fp16").tolist() == [-65504.0, 1.0, -np.inf]


def test_what_does_not_fit_is_named_and_stays_in_float32() -> None:
    text = (
        "big (float[n, 4] x, float[4, 4] w, float[4] tiny) => (float[n, 4] y) {\n"
        "product = MatMul(x, w)\nsquare = Mul(product, product)\nsmall = Mul(square, tiny)\ny = Neg(small)\n}"
    )
    weight = np.eye(4, dtype=np.float32) * 300
    model = narrow_graph(text, w=weight, tiny=np.full(4, 1e-4, np.float32))
    feeds = lambda: [{"x": np.ones((2, 4), np.float32)}]  # noqa: E731
    result = search(model, "fp16", feeds)
    # 300 squared is above 65504: who makes it and who reads it need float32, nobody else does.
    assert result.infinite == ("square",)
    assert result.kept == ("Mul_1", "Mul_2")
    assert result.error <= 1e-2
    assert result.to_dict()["error_of_all"] == "not finite"
    weight[0, 0] = 1e5
    model = narrow_graph(text, w=weight, tiny=np.full(4, 1e-8, np.float32))
    (found,) = plan(model, "fp16").overflows
    assert (found.name, found.elements, found.largest) == ("w", 1, 1e5)
    assert "MatMul_0" not in {node.name for node in plan(model, "fp16").inputs}
    assert not plan(model, "bf16").overflows


def test_the_search_keeps_what_makes_the_difference(real_build: BuildResult) -> None:
    """A cancellation that float16 loses, planted before the logits: it and few others are kept."""
    case = Decoder(real_build.folder, FUSED)
    graph = case.model.graph
    end = graph.outputs[0]
    node = end.producer()
    assert node is not None
    shift = ir.Value(
        name="shift",
        type=ir.TensorType(ir.DataType.FLOAT),
        shape=ir.Shape([]),
        const_value=ir.tensor(np.float32(3000.0), name="shift"),
    )
    graph.register_initializer(shift)
    end.name = "inner"
    up = ir.node("Add", [end, shift], name="up")
    down = ir.node("Sub", [up.outputs[0], shift], name="down")
    for made in (up, down):
        made.outputs[0].type, made.outputs[0].shape = end.type, end.shape
    down.outputs[0].name = "logits"
    graph.insert_after(node, [up, down])
    graph.outputs[0] = down.outputs[0]
    result = search(case.model, "fp16", case.feeds, tolerance=1e-2)
    assert result.error_of_all > 0.1
    assert result.error <= 1e-2
    assert {"up", "down"} <= set(result.kept)
    assert len(result.kept) <= 3
    kept = case.model.clone()
    emulate(kept, plan(kept, "fp16", result.kept))
    assert distance(outputs(case.model, case.feeds()), outputs(kept, case.feeds())) == result.error


def test_a_tolerance_that_16_bit_meets_keeps_nothing_and_zero_keeps_all(real_build: BuildResult) -> None:
    case = Decoder(real_build.folder, FUSED)
    loose = search(case.model, "bf16", case.feeds, tolerance=0.2)
    assert (loose.kept, loose.runs) == ((), 1)
    exact = search(case.model, "bf16", case.feeds, tolerance=0.0)
    assert exact.error == 0.0
    assert len(exact.kept) > exact.nodes / 2


def test_bad_input_is_refused(real_build: BuildResult) -> None:
    text = "one (float[n] x) => (float[n] y) {\ny = Neg(x)\n}"
    model = narrow_graph(text)
    next(iter(model.graph)).name = None
    with pytest.raises(BadInput, match="no names"):
        search(model, "fp16", lambda: [{"x": np.ones(2, np.float32)}])
    whole = ir.from_onnx_text(
        '<ir_version: 10, opset_import: ["" : 23]>\nint (int64[n] x) => (int64[n] y) {\ny = Neg(x)\n}'
    )
    next(iter(whole.graph)).name = "neg"
    with pytest.raises(BadInput, match="no node of the graph can compute in fp16"):
        search(whole, "fp16", lambda: [{"x": np.ones(2, np.int64)}])


def test_the_command_writes_the_graph_and_lists_what_it_kept(built: Path, tmp_path: Path) -> None:
    output = tmp_path / "narrow.onnx"
    arguments = ["convert", str(built / FUSED), "--to", "fp16", "--output", str(output)]
    result = CliRunner().invoke(main, [*arguments, "--tolerance", "1e-3", "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert 0 < len(found["kept"]) < found["nodes"]
    assert found["error"] <= 1e-3 < found["error_of_all"]
    compared = CliRunner().invoke(
        main,
        ["parity", str(built / FUSED), str(output), "--min-cosine", "0.9999", "--min-top1", "0.95", "--json"],
    )
    assert compared.exit_code == 0, compared.output
    figures = json.loads(compared.stdout)["stages"][0]["outputs"]["logits"]
    assert 0 < figures["max_abs_difference"] < 0.1
    assert json.loads(compared.stdout)["walk"]["departures"] == []
    shown = CliRunner().invoke(main, arguments)
    assert shown.exit_code == 0, shown.output
    assert "nodes in fp16" in shown.stdout
    for bad, words in [
        ([*arguments[:-1], str(built / FUSED)], "is the graph itself"),
        ([*arguments[:-1], str(tmp_path / "none" / "x.onnx")], "in a folder that exists"),
        (["convert", str(built), *arguments[2:]], "is a folder; give a graph in it"),
        (["convert", str(tmp_path / "none.onnx"), *arguments[2:]], "there is no"),
    ]:
        refused = CliRunner().invoke(main, bad)
        assert refused.exit_code == 2, (bad, refused.output)
        assert words in refused.stderr
