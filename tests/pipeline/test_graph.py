"""Graphs on disk: weights by content, shared, linked, never half-written."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from model_repo.runtime.errors import BadInput
from pipeline.graph import load_graph, save_graph


def write_matmul(path: Path, weight: np.ndarray) -> None:
    """y = x @ weight, written by onnx itself with the weight inside."""
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", weight.shape[0]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", weight.shape[1]])],
        [numpy_helper.from_array(weight, "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)


@pytest.fixture
def weight() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((40, 24), dtype=np.float32)


def test_weights_lie_under_their_sha256_and_run(tmp_path: Path, weight: np.ndarray) -> None:
    write_matmul(tmp_path / "inline.onnx", weight)
    saved = save_graph(load_graph(tmp_path / "inline.onnx"), tmp_path / "out" / "a.onnx")
    assert [path.name for path in saved.weights] == [hashlib.sha256(weight.tobytes()).hexdigest()]
    assert saved.weights[0].read_bytes() == weight.tobytes()
    x = np.random.default_rng(1).standard_normal((3, 40), dtype=np.float32)
    (y,) = ort.InferenceSession(saved.graph, providers=["CPUExecutionProvider"]).run(None, {"x": x})
    np.testing.assert_allclose(y, x @ weight, rtol=1e-5, atol=1e-5)
    assert not list(saved.graph.parent.rglob(".*"))


def test_an_unchanged_weight_is_written_once_and_copied_elsewhere(tmp_path: Path, weight: np.ndarray) -> None:
    write_matmul(tmp_path / "inline.onnx", weight)
    first = save_graph(load_graph(tmp_path / "inline.onnx"), tmp_path / "a.onnx")
    before = first.weights[0].stat()
    second = save_graph(load_graph(first.graph), tmp_path / "b.onnx")
    assert second.weights == first.weights
    assert second.weights[0].stat().st_mtime_ns == before.st_mtime_ns
    assert second.bytes_written == second.graph.stat().st_size
    elsewhere = save_graph(load_graph(first.graph), tmp_path / "elsewhere" / "a.onnx")
    assert elsewhere.weights[0].read_bytes() == weight.tobytes()
    for graph in (first.graph, second.graph, elsewhere.graph):
        onnx.checker.check_model(graph)  # refuses weight files that are links


def test_small_weights_of_a_foreign_graph_come_along(tmp_path: Path, weight: np.ndarray) -> None:
    """They lie outside its file; under EXTERNAL_BYTES they are held in the graph itself."""
    write_matmul(tmp_path / "inline.onnx", weight[:2, :3])
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    model = onnx.load(tmp_path / "inline.onnx")
    onnx.save(model, foreign / "g.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    saved = save_graph(load_graph(foreign / "g.onnx"), tmp_path / "out" / "a.onnx")
    (foreign / "w.bin").unlink()
    assert saved.weights == ()
    x = np.ones((1, 2), np.float32)
    (y,) = ort.InferenceSession(saved.graph, providers=["CPUExecutionProvider"]).run(None, {"x": x})
    np.testing.assert_allclose(y, x @ weight[:2, :3], rtol=1e-6)


def test_missing_and_broken_graphs_are_refused_in_words(tmp_path: Path, weight: np.ndarray) -> None:
    with pytest.raises(BadInput, match="no ONNX graph"):
        load_graph(tmp_path / "none.onnx")
    (tmp_path / "junk.onnx").write_bytes(b"\xff" * 100)
    with pytest.raises(BadInput, match="not a readable ONNX graph"):
        load_graph(tmp_path / "junk.onnx")
    write_matmul(tmp_path / "inline.onnx", weight)
    saved = save_graph(load_graph(tmp_path / "inline.onnx"), tmp_path / "a.onnx")
    saved.weights[0].unlink()
    with pytest.raises(BadInput, match="weight file"):
        load_graph(saved.graph)
