"""Planted faults are found: by name where names are the same, by the smallest region where they are not."""

from __future__ import annotations

import shutil
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir
import pytest
import torch
from transformers import BertConfig, BertModel

from model_repo.runtime.errors import BadInput
from pipeline import BuildResult, Recipe, build
from pipeline.graph import save_graph
from pipeline.parity.compare import compare
from pipeline.parity.feeds import graph_feeds
from pipeline.parity.report import explain
from pipeline.parity.stepwise import Stepwise, comparable_graph
from pipeline.parity.walk import GraphReference, Walk, walk
from pipeline.recipe import Tolerance
from pipeline.stages import Product
from pipeline.steps.comparing import run_graph
from pipeline.steps.context import BuildContext
from pipeline.steps.locating import diagnosis, graphs, walk_beside_module
from pipeline.workspace import EXPORTED, Workspace
from tests.export.tiny_models import saved, sharpened

from .planted import KINDS, Fault, plant

SEEDS = range(3)
WIDE = range(3, 40)
MOST_NODES = {"fuse": 4, "lower": 1, "compile": 1}
"""Nodes of a region at most, by the stage that is compared with the one before. A fused graph's largest: a packed
product, its bias, its split and the attention that reads it."""


class Case(NamedTuple):
    """A build, and all that its graphs are run with."""

    context: BuildContext

    def graph(self, stage: str) -> Path:
        return self.context.workspace.path(graphs(self.context.recipe)[stage])

    def feeds(self) -> list[dict[str, np.ndarray]]:
        facts = self.context.facts
        return graph_feeds(facts.kind, facts.kv, self.context.parity_inputs())

    def walk(self, before: str, candidate: ir.Model) -> Walk:
        reference = GraphReference(comparable_graph(self.graph(before)), self.feeds())
        return walk(reference, candidate, self.feeds)

    def fails(self, before: str, damaged: Path) -> bool:
        """Whether the stage's gate would refuse the damaged graph."""
        facts, inputs = self.context.facts, self.context.parity_inputs()
        wanted = run_graph(self.context, self.graph(before), facts, inputs)
        found = run_graph(self.context, damaged, facts, inputs)
        figures = compare(wanted, found, before, top1=facts.kind == "decoder")
        limits = Tolerance()
        return not (
            figures["min_cosine"] >= limits.min_cosine and figures.get("top1", 1.0) >= limits.min_top1
        )


@pytest.fixture(scope="module")
def decoder(real_build: BuildResult, tmp_path_factory: pytest.TempPathFactory) -> Case:
    """Of a copy: damaged graphs are written beside the sound ones."""
    folder = tmp_path_factory.mktemp("decoder") / "tiny"
    shutil.copytree(real_build.folder, folder)
    return Case(BuildContext(Recipe.load(folder / "recipe.yaml"), Workspace(folder), exports=True))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp("encoder")
    torch.manual_seed(5)
    config = BertConfig(
        vocab_size=150,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=40,
    )
    checkpoint = saved(sharpened(BertModel(config)), folder / "bert")
    recipe = Recipe.for_model(str(checkpoint))
    build(recipe, folder / "out", stages=("export", "fuse", "lower", "compile"))
    return Case(BuildContext(recipe, Workspace(folder / "out"), exports=True))


@pytest.fixture(params=["decoder", "encoder"])
def case(request: pytest.FixtureRequest) -> Case:
    found: Case = request.getfixturevalue(request.param)
    return found


def damaged(
    case: Case, stage: str, before: str, kind: str, seed: int
) -> Iterator[tuple[ir.Model, Fault, Path]]:
    """The stage's graph with a fault that the gate sees; draws on until there is one. The file goes away."""
    for again in range(50):
        model = comparable_graph(case.graph(stage))
        fault = plant(model, kind, seed + 1000 * again)
        path = case.context.workspace.staged("damaged.onnx")
        save_graph(model, path)
        if case.fails(before, path):
            yield model, fault, path
            path.unlink()
            return
    raise AssertionError("no fault of this kind changes what the graph gives")


@pytest.mark.parametrize(("before", "stage"), [("export", "fuse"), ("fuse", "lower"), ("lower", "compile")])
def test_in_sound_builds_no_node_departs(case: Case, before: str, stage: str) -> None:
    found = case.walk(before, comparable_graph(case.graph(stage)))
    assert not found.departures
    assert max(step.own_error for step in found.steps) < 1e-5
    assert len(found.steps) >= len(comparable_graph(case.graph(stage)).graph) / 2
    assert "no node of" in explain(found, stage, before)[0]


def test_in_sound_exports_no_module_departs(case: Case, tmp_path: Path) -> None:
    found = beside_module(case, case.graph("export"), tmp_path)
    assert not found.departures
    assert max(step.own_error for step in found.steps) < 1e-5
    modules = {step.partner.removeprefix("output of module ") for step in found.steps}
    # Of two layers each: the norms, the products, the activation, the layer itself.
    assert len(modules) >= 15, modules
    assert any("norm" in module.lower() for module in modules)


def beside_module(case: Case, graph: Path, folder: Path) -> Walk:
    context = case.context
    found = walk_beside_module(context.recipe.to_dict(), context.facts.to_dict(), str(graph), "", str(folder))
    assert found is not None
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("before", "stage"), [("export", "fuse"), ("fuse", "lower"), ("lower", "compile")])
def test_a_planted_fault_is_named(case: Case, before: str, stage: str, kind: str, seed: int) -> None:
    check_planted(case, before, stage, kind, seed)


@pytest.mark.wide
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", WIDE)
@pytest.mark.parametrize(("before", "stage"), [("export", "fuse"), ("fuse", "lower"), ("lower", "compile")])
def test_many_planted_faults_are_named(case: Case, before: str, stage: str, kind: str, seed: int) -> None:
    check_planted(case, before, stage, kind, seed)


def check_planted(case: Case, before: str, stage: str, kind: str, seed: int) -> None:
    """Departures hold the damaged node and few others, and nothing else departs."""
    for model, fault, _ in damaged(case, stage, before, kind, seed):
        found = case.walk(before, model)
        # A node that several tensors are made by (a packed product) shows in each of them, and nothing else does.
        assert found.departures, fault
        assert all(holds(model, entry.nodes, fault) for entry in found.departures), (fault, found.departures)
        departure = found.departures[0]
        assert len(departure.nodes) <= MOST_NODES[stage], (fault, departure)
        text = "\n".join(explain(found, stage, before))
        assert f"{stage} brought it in" in text
        assert departure.inputs, "what the node reads is shown"


def holds(model: ir.Model, nodes: Any, fault: Fault) -> bool:
    (wrong,) = (node for node in model.graph if node.outputs[0].name == fault.output)
    return any(node.name == (wrong.name or fault.output) for node in nodes)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", SEEDS)
def test_a_fault_of_the_export_lies_between_modules_of_torch(
    case: Case, kind: str, seed: int, tmp_path: Path
) -> None:
    for model, fault, path in damaged(case, "export", "export", kind, seed):
        found = beside_module(case, path, tmp_path)
        assert found.departures, fault
        departure = found.departures[0]
        assert holds(model, departure.nodes, fault), (fault, departure)
        assert len(departure.nodes) <= len(model.graph) / 3, (fault, departure)


def test_a_fault_that_only_padding_brings_out_is_found_in_an_export(encoder: Case, tmp_path: Path) -> None:
    """Padding is seen: the mask's lowest number becomes 0. Texts alone have none, so their runs are right."""
    model = comparable_graph(encoder.graph("export"))
    lowest = [
        value
        for value in model.graph.initializers.values()
        if value.const_value is not None
        and value.const_value.size == 1
        and value.const_value.numpy().min() < -1e30
    ]
    for value in lowest:
        value.const_value = ir.tensor(np.zeros_like(value.const_value.numpy()), name=value.name)
    readers = {node.name for value in lowest for node in value.consumers()}
    assert readers
    path = tmp_path / "damaged.onnx"
    save_graph(model, path)
    found = beside_module(encoder, path, tmp_path)
    assert found.departures
    assert readers & {node.name for node in found.departures[0].nodes}
    assert "encoder.layer.0.attention" in found.departures[0].step.node.module


def test_the_report_of_a_failed_export_names_module_and_source(case: Case) -> None:
    """The whole way, through the child process that holds the torch module."""
    context = case.context
    for model, fault, path in damaged(case, "export", "export", "operator", 0):
        (wrong,) = (node for node in model.graph if node.outputs[0].name == fault.output)
        product = Product({EXPORTED: path}, details={"model": context.facts.to_dict()})
        text = "\n".join(diagnosis(context, "export", product))
        assert text.startswith("export brought it in")
        assert f"{wrong.op_type} {wrong.name!r}" in text
        assert wrong.metadata_props["slipway.module"] in text
        assert wrong.metadata_props["slipway.source"] in text
        assert "output of module" in text
        assert "  reads " in text


def test_numbers_that_are_not_finite_are_told_by_tensor(decoder: Case) -> None:
    model = comparable_graph(decoder.graph("fuse"))
    gemms = [
        node for node in model.graph if node.op_type == "MatMul" and node.inputs[1].const_value is not None
    ]
    node = gemms[3]
    weight = node.inputs[1]
    array = np.array(weight.const_value.numpy())
    array[:, 0] = np.inf
    weight.const_value = ir.tensor(array, name=weight.name)
    found = decoder.walk("export", model)
    text = "\n".join(explain(found, "fuse", "export"))
    (line,) = (line for line in text.splitlines() if line.startswith("not finite"))
    first = next(step for step in found.steps if step.not_finite)
    assert f"{first.tensor} ({first.not_finite} elements)" in line
    assert holds(model, found.departures[0].nodes, Fault(node.outputs[0].name or "", "", ""))
    assert "infinitely far" in text


def test_two_faults_are_both_told_and_what_lies_behind_them_is_not(decoder: Case) -> None:
    model = comparable_graph(decoder.graph("lower"))
    gemms = [
        node for node in model.graph if node.op_type == "MatMul" and node.inputs[1].const_value is not None
    ]
    for node in (gemms[1], gemms[-1]):
        weight = node.inputs[1]
        weight.const_value = ir.tensor(weight.const_value.numpy() * np.float32(1.1), name=weight.name)
    found = decoder.walk("fuse", model)
    assert [departure.nodes[0].name for departure in found.departures] == [gemms[1].name, gemms[-1].name]
    assert sum(step.error > 1e-3 for step in found.steps) > 10
    assert "departing by themselves too" in "\n".join(explain(found, "lower", "fuse"))


def test_only_what_is_still_read_is_in_memory() -> None:
    """A chain of 60 tensors of 1 MiB takes the memory of a few of them."""
    text = "".join(f"t{place + 1} = Neg(t{place})\n" for place in range(60))
    model = ir.from_onnx_text(
        f'<ir_version: 10, opset_import: ["" : 20]>\nchain (float[n] t0) => (float[n] t60) {{\n{text}}}'
    )
    feeds = [{"t0": np.ones(1 << 18, np.float32)}]
    reference = GraphReference(model, feeds)
    tracemalloc.start()
    found = walk(reference, model.clone(), lambda: feeds)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(found.steps) == 60
    # The reference, two worlds, and the float64 copies of a comparison; all tensors would be 180 MiB.
    assert peak < 24 << 20, peak


def test_a_graph_is_computed_once_whoever_asks() -> None:
    model = ir.from_onnx_text(
        '<ir_version: 10, opset_import: ["" : 20]>\n'
        "fork (float[n] x) => (float[n] z) {\n"
        "both = Exp(x)\nleft = Neg(both)\nright = Abs(both)\nz = Add(left, right)\n}"
    )
    values = {value.name: value for node in model.graph for value in node.outputs}
    x = np.array([1.0, 2.0], np.float32)
    graph = Stepwise(model, [[{"x": x}], [{"x": x + 1}]], [values["right"], values["z"]])
    graph.reach(values["right"])
    np.testing.assert_allclose(graph.get(values["right"], 1)[0], np.exp(x + 1), rtol=1e-6)
    graph.replace(values["right"], 1, [np.array([7.0, 8.0])])
    graph.release(values["right"])
    graph.sweep()
    graph.reach(values["z"])
    np.testing.assert_allclose(graph.get(values["z"], 0)[0], 0.0, atol=1e-6)
    np.testing.assert_allclose(graph.get(values["z"], 1)[0], np.array([7.0, 8.0]) - np.exp(x + 1), rtol=1e-5)
    graph.sweep()
    assert graph.get(values["both"]) is None
    with pytest.raises(BadInput, match="nothing is given for the graph's input 'x'"):
        Stepwise(model, [[{"y": x}]], [values["z"]])
