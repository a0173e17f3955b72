"""Weights that are made on their way to the disk: the right bytes, a piece at a time, nothing half-written."""

from __future__ import annotations

import hashlib
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from pipeline import contents
from pipeline.contents import store_pieces
from pipeline.fuse.weights import packed, transposed
from pipeline.graph import load_graph, save_graph
from pipeline.parity.sessions import graph_session

KIB = 1024


def weight(array: np.ndarray, name: str) -> ir.Value:
    return ir.Value(name=name, const_value=ir.tensor(array, name=name))


def saved(tensor: ir.TensorProtocol, folder: Path) -> bytes:
    """What lies on the disk for a graph whose output is the weight `tensor`."""
    value = ir.Value(
        name="w", const_value=tensor, shape=ir.Shape(tensor.shape), type=ir.TensorType(tensor.dtype)
    )
    graph = ir.Graph([], [value], nodes=[], initializers=[value], opset_imports={"": 24})
    (path,) = save_graph(ir.Model(graph, ir_version=10), folder / "graph.onnx").weights
    data = path.read_bytes()
    assert hashlib.sha256(data).hexdigest() == path.name
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    return data


@pytest.fixture(params=[1 * KIB, 7 * KIB + 3, contents.PIECE_BYTES])
def piece_bytes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(contents, "PIECE_BYTES", request.param)
    return int(request.param)


@pytest.mark.usefixtures("piece_bytes")
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, np.int8])
@pytest.mark.parametrize("shape", [(1, 2049), (2049, 1), (54, 97), (97, 54), (16, 128)])
def test_transposes_are_those_of_numpy(tmp_path: Path, shape: tuple[int, int], dtype: type) -> None:
    array = np.random.default_rng(0).integers(-100, 100, shape).astype(dtype)
    assert saved(transposed(weight(array, "w")), tmp_path) == array.T.tobytes()


@pytest.mark.usefixtures("piece_bytes")
def test_packed_transposes_are_those_of_numpy(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    arrays = [random.standard_normal((rows, 61), np.float32) for rows in (32, 7, 12)]
    parts = [ir.Value(name="t", const_value=transposed(weight(array, "w"))) for array in arrays]
    wanted = np.concatenate([array.T for array in arrays], axis=1)
    assert saved(packed(parts, "all"), tmp_path) == wanted.tobytes()


@pytest.mark.usefixtures("piece_bytes")
def test_packed_biases_stand_one_after_the_other(tmp_path: Path) -> None:
    arrays = [np.arange(start, start + 400, dtype=np.float32) for start in (0, 1000)]
    wanted = np.concatenate(arrays)
    assert saved(packed([weight(array, "b") for array in arrays], "all"), tmp_path) == wanted.tobytes()


def test_a_few_pieces_are_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """numpy tells tracemalloc of its arrays."""
    monkeypatch.setattr(contents, "PIECE_BYTES", 64 * KIB)
    arrays = [np.ones((rows, 1024), np.float32) for rows in (512, 256)]
    tensor = packed([ir.Value(name="t", const_value=transposed(weight(array, "w"))) for array in arrays], "w")
    tracemalloc.start()
    try:
        data = contents.store_pieces(tensor.pieces(), tmp_path)  # type: ignore[attr-defined]
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert data[1] == 4 * 1024 * 768
    assert most < 5 * 64 * KIB


def test_an_error_on_the_way_leaves_nothing(tmp_path: Path) -> None:
    def pieces() -> Iterator[memoryview]:
        yield memoryview(b"abc")
        raise OSError("the disk went away")

    with pytest.raises(OSError, match="went away"):
        store_pieces(pieces(), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_is_not_written_again(tmp_path: Path) -> None:
    name, written = store_pieces([memoryview(b"abc"), memoryview(b"def")], tmp_path)
    assert (name, written) == (hashlib.sha256(b"abcdef").hexdigest(), 6)
    (tmp_path / name).chmod(0o400)
    assert store_pieces([memoryview(b"abcdef")], tmp_path) == (name, 0)


def test_a_comparison_reads_weights_as_they_are_stored(tmp_path: Path) -> None:
    """ONNX Runtime would turn each weight as it loads the graph: a copy of all of them."""
    random = np.random.default_rng(0)
    tables = {name: random.standard_normal((40, 24), np.float32) for name in ("table", "other")}
    nodes = [
        helper.make_node("Transpose", ["table"], ["turned"], perm=[1, 0]),
        helper.make_node("Gather", ["table", "ids"], ["rows"]),  # the table is read as it is, too
        helper.make_node("MatMul", ["rows", "turned"], ["y"], name="head"),
        helper.make_node("Transpose", ["other"], ["other_turned"]),
        helper.make_node("Transpose", ["rows"], ["rows_turned"]),  # no weight: stays
        helper.make_node("MatMul", ["rows", "other_turned"], ["z"]),
        helper.make_node("MatMul", ["rows", "rows_turned"], ["grams"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["n"])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("y", "z", "grams")],
        [numpy_helper.from_array(array, name) for name, array in tables.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(model, tmp_path / "inline.onnx")
    save_graph(load_graph(tmp_path / "inline.onnx"), tmp_path / "graph.onnx")
    ids = np.array([3, 39, 0], np.int64)
    wanted = ReferenceEvaluator(model).run(None, {"ids": ids})
    with graph_session(tmp_path / "graph.onnx", tmp_path / "scratch.onnx") as session:
        operators = [
            node.op_type for node in onnx.load(tmp_path / "scratch.onnx", load_external_data=False).graph.node
        ]
        found = session.run(["y", "z", "grams"], {"ids": ids})
    assert operators.count("FusedMatMul") == 2
    assert operators.count("Transpose") == 1
    for one, other in zip(wanted, found, strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-5, atol=1e-5)
