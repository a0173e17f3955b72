"""An engine's values between its nodes beside ONNX Runtime's: an engine that computes one node wrong is found out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch

from model_repo.runtime.contract import KVSpec
from model_repo.runtime.device_engine import DeviceEngine
from model_repo.runtime.errors import BadInput
from model_repo.runtime.host_device import HostDevice
from pipeline.export.decoder import export_decoder
from pipeline.fuse import fuse
from pipeline.graph import load_graph, save_graph
from pipeline.parity.engine_values import EngineReference, Opener, exposable, run_engine
from pipeline.parity.feeds import Feeds, graph_feeds
from pipeline.parity.linear import linear_feeds
from pipeline.parity.sessions import computable_graph, graph_session
from pipeline.parity.walk import Walk, walk
from pipeline.recipe import FuseRecipe
from pipeline.targets.tensorrt.plugin_form import lower_to_plugins
from plugins.graph_walk import standard
from plugins.graph_walk.engine import WalkingEngine
from plugins.graph_walk.onnx_file import read
from tests.export.tiny_models import VOCABULARY, tiny_llama
from tests.runtime.host_engine import HostEngine
from tests.targets.test_linear import lowered as linear

LAYERS, KV_HEADS, HEAD_DIM = 2, 2, 64
KV = [KVSpec(0, KV_HEADS, HEAD_DIM, HEAD_DIM, 0, "float16")] * LAYERS
LIMIT = 8e-3
"""Two float16 roundings of the longest sums that torch and ONNX Runtime make in different orders."""


@pytest.fixture(scope="module")
def lowered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The graph of target tensorrt of a tiny decoder."""
    model = tiny_llama(num_hidden_layers=LAYERS, num_key_value_heads=KV_HEADS, head_dim=HEAD_DIM)
    folder = tmp_path_factory.mktemp("engine_values")
    exported = export_decoder(model, 64, 24).model  # type: ignore[arg-type]
    fuse(exported, FuseRecipe(), max_length=64)
    lower_to_plugins(exported, "fp16")
    exported.ir_version = 13  # the newest that ONNX Runtime reads
    save_graph(exported, folder / "lowered.onnx")
    return folder / "lowered.onnx"


def feeds() -> list[Feeds]:
    drawn = np.random.default_rng(5)
    prompts = [drawn.integers(5, VOCABULARY, length).tolist() for length in (40, 7, 19)]
    return graph_feeds("decoder", KV, prompts)


def opener(device: HostDevice) -> Opener:
    return lambda path: nullcontext(WalkingEngine(read(path), torch.device("cpu"), queue=device.queue))


def walked(lowered: Path, per_build: int | None = None) -> Walk:
    device = HostDevice()
    reference = EngineReference(lowered, device, opener(device), feeds, per_build)
    found = walk(reference, computable_graph(lowered), feeds, LIMIT)
    assert device.memory.free == HostDevice().memory.free
    return found


def test_an_engine_that_computes_the_graph_departs_nowhere(lowered: Path) -> None:
    found = walked(lowered)
    assert not found.departures
    compared = {step.tensor for step in found.steps}
    assert {*exposable(load_graph(lowered))} == compared
    assert "logits" in compared
    assert len(compared) > 10 * LAYERS
    assert not list(lowered.parent.glob("*.exposed.onnx"))


@pytest.mark.parametrize("per_build", [None, 5])
def test_a_node_that_the_engine_computes_wrong_is_named(
    lowered: Path, per_build: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    norms = [node for node in load_graph(lowered).graph if node.op_type == "RMSNormalization"]
    wrong = norms[2]
    right = standard.STANDARD["RMSNormalization"]

    def planted(node: Any, *given: Any) -> Any:
        made = right(node, *given)
        return made * 1.05 if node.name == wrong.name else made

    monkeypatch.setitem(standard.STANDARD, "RMSNormalization", planted)
    found = walked(lowered, per_build)
    assert [departure.step.tensor for departure in found.departures] == [wrong.outputs[0].name]
    assert wrong.name in [node.name for node in found.departures[0].nodes]  # casts around it have names too


def test_one_engine_is_on_the_device_at_a_time(lowered: Path) -> None:
    device = HostDevice()
    most = held = builds = 0

    @contextmanager
    def counted(path: Path) -> Iterator[DeviceEngine]:
        nonlocal most, held, builds
        held, builds = held + 1, builds + 1
        most = max(most, held)
        with opener(device)(path) as engine:
            yield engine
        held -= 1

    walk(EngineReference(lowered, device, counted, feeds, 20), computable_graph(lowered), feeds, LIMIT)
    assert (most, held) == (1, 0)
    assert builds == -(-len(exposable(load_graph(lowered))) // 20) > 1


def test_a_wrong_node_of_an_engine_with_linear_caches_is_named(tmp_path: Path) -> None:
    model = tiny_llama(num_hidden_layers=LAYERS, num_key_value_heads=KV_HEADS, head_dim=HEAD_DIM)
    norms = [node for node in linear(model, tmp_path).graph if node.op_type == "RMSNormalization"]
    wrong = norms[3]
    prompts = [[*range(5, 5 + length)] for length in (40, 7)]
    path, copy = tmp_path / "linear.onnx", tmp_path / "wrong.onnx"
    with graph_session(path, tmp_path / "scratch.onnx") as session:
        runs = linear_feeds(session, prompts)
    device = HostDevice()
    most = {name: tuple(99 for _ in array.shape) for name, array in runs[0].items()}
    ranges = {"any": {name: (tuple(1 for _ in shape), shape) for name, shape in most.items()}}
    ranges["any"] |= {
        name: ((1, *a.shape[1:]), (9, *a.shape[1:])) for name, a in runs[0].items() if "cache" in name
    }

    @contextmanager
    def open_wrong(exposed: Path) -> Iterator[HostEngine]:
        planted = load_graph(exposed)
        (node,) = [node for node in planted.graph if node.name == wrong.name]
        weight = node.inputs[1]
        assert weight is not None
        assert weight.const_value is not None
        other = ir.Value(name="other", const_value=ir.tensor(weight.const_value.numpy() * np.float32(1.05)))
        planted.graph.register_initializer(other)
        node.replace_input_with(1, other)
        save_graph(planted, copy)
        yield HostEngine(device, copy, ranges)

    reference = EngineReference(path, device, open_wrong, lambda: runs)
    found = walk(reference, computable_graph(path), lambda: runs)
    assert [departure.step.tensor for departure in found.departures] == [wrong.outputs[0].name]
    assert device.memory.free == HostDevice().memory.free


def test_codes_and_what_only_weights_decide_are_not_asked_for() -> None:
    weight = ir.Value(
        name="w", const_value=ir.tensor(np.zeros((2, 2), np.int8)), type=ir.TensorType(ir.DataType.INT8)
    )
    scale = ir.Value(name="s", const_value=ir.tensor(np.float32(1)), type=ir.TensorType(ir.DataType.FLOAT))
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([2, 2]))

    def made(name: str, operator: str, *inputs: ir.Value, kind: ir.DataType = ir.DataType.FLOAT) -> ir.Node:
        return ir.node(operator, inputs, outputs=[ir.Value(name=name, type=ir.TensorType(kind))], name=name)

    codes = made("codes", "QuantizeLinear", x, scale, kind=ir.DataType.INT8)
    back = made("back", "DequantizeLinear", codes.outputs[0], scale)
    weights = made("weights", "DequantizeLinear", weight, scale)
    turned = made("turned", "Transpose", weights.outputs[0])
    product = made("product", "MatMul", back.outputs[0], turned.outputs[0])
    nodes = [codes, back, weights, turned, product]
    graph = ir.Graph([x], product.outputs, nodes=nodes, initializers=[weight, scale], opset_imports={"": 23})
    assert exposable(ir.Model(graph, ir_version=10)) == ["product"]


def test_an_input_that_nothing_is_given_for_is_named(lowered: Path) -> None:
    device = HostDevice()
    given = feeds()[0]
    del given["slot_mapping"]
    with (
        opener(device)(lowered) as engine,
        pytest.raises(BadInput, match="the engine takes slot_mapping, which nothing is given for"),
    ):
        run_engine(engine, device, given, {}, {})
