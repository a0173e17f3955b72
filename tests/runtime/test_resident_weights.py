"""Weights read into memory: what sessions compute with them, and that no file stays mapped."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from model_repo.runtime.resident_weights import WEIGHTS, ResidentWeights

onnx = pytest.importorskip("onnx", reason="graphs are written with the package onnx")

SHAPES = {"first": (300, 7), "second": (7,), "empty": (0, 7)}


def write_sum(folder: Path) -> dict[str, np.ndarray]:
    """A graph that gives row `row` of `first`, plus `second`; each weight is a file of its own."""
    generator = np.random.default_rng(5)
    arrays = {name: generator.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}
    make, kinds = onnx.helper.make_node, onnx.TensorProto
    (folder / WEIGHTS).mkdir()
    initializers = []
    for name, array in arrays.items():
        tensor = onnx.numpy_helper.from_array(array, name)
        onnx.external_data_helper.set_external_data(tensor, f"{WEIGHTS}/{name}")
        tensor.ClearField("raw_data")
        (folder / WEIGHTS / name).write_bytes(array.tobytes())
        initializers.append(tensor)
    graph = onnx.helper.make_graph(
        [
            make("Concat", ["first", "empty"], ["all"], axis=0),
            make("Gather", ["all", "row"], ["rows"]),
            make("Add", ["rows", "second"], ["sum"]),
        ],
        "sum",
        [onnx.helper.make_tensor_value_info("row", kinds.INT64, ["n"])],
        [onnx.helper.make_tensor_value_info("sum", kinds.FLOAT, ["n", 7])],
        initializers,
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)
    (folder / "engine.onnx").write_bytes(model.SerializeToString())
    return arrays


def test_a_session_computes_with_the_memory_and_not_with_the_files(tmp_path: Path) -> None:
    arrays = write_sum(tmp_path)
    weights = ResidentWeights.read(tmp_path)
    assert weights.names == [f"{WEIGHTS}/{name}" for name in sorted(SHAPES)]
    for name in SHAPES:
        (tmp_path / WEIGHTS / name).write_bytes(bytes(arrays[name].nbytes))
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    weights.give_to(options)
    session = ort.InferenceSession(str(tmp_path / "engine.onnx"), options, providers=["CPUExecutionProvider"])
    rows = np.array([0, 299, 17])
    (found,) = session.run(None, {"row": rows})
    assert np.array_equal(found, arrays["first"][rows] + arrays["second"])
    assert str(tmp_path) not in Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
    # The very memory is used, no copy of it. (ONNX Runtime copies what is smaller than 128 bytes.)
    np.frombuffer(weights.contents[weights.names.index(f"{WEIGHTS}/first")], np.float32)[:] = 0
    (found,) = session.run(None, {"row": rows})
    assert np.array_equal(found, np.tile(arrays["second"], (3, 1)))
