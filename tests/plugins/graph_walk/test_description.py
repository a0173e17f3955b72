"""Descriptions of graphs on disk: what is written is read back, also without ONNX; other folders are refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import onnx_ir as ir
import pytest
import torch
from onnx import parser

from model_repo.runtime.errors import BadInput
from plugins.cuda.check_processes import ROOT
from plugins.graph_walk import description, onnx_file
from plugins.graph_walk.description import GRAPH, End, Graph, Node

DTYPES = (
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float8_e4m3fn,
    torch.int8,
    torch.int64,
    torch.bool,
)


def every_kind() -> Graph:
    weights = {
        str(dtype): torch.arange(3 * 5).reshape(3, 5).sub(7).to(torch.float32).to(dtype) for dtype in DTYPES
    }
    weights |= {"scalar": torch.tensor(2.5), "empty": torch.zeros(0, 4, dtype=torch.float16)}
    attributes = {"axis": -1, "epsilon": 0.5, "mode": "tanh", "pads": [1, 2], "value": torch.tensor([[3, 4]])}
    nodes = (
        Node("Gelu", ("x", "", "scalar"), ("y",), attributes, "a node"),
        Node("P", (), ("z",), domain="d"),
    )
    return Graph(nodes, (End("x", "float16", ("rows", 5)),), (End("y", "float16", ("rows", 5)),), weights)


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    graph = every_kind()
    graph.write(tmp_path / "new" / "folder")
    found = description.read(tmp_path / "new" / "folder")
    assert (found.inputs, found.outputs) == (graph.inputs, graph.outputs)
    assert list(found.weights) == list(graph.weights)
    for name, tensor in graph.weights.items():
        read = found.weights[name]
        assert (read.dtype, read.shape, read.data_ptr() % 4) == (tensor.dtype, tensor.shape, 0)
        assert read.float().tolist() == tensor.float().tolist()
    first, second = found.nodes
    value = first.attributes["value"]
    assert (value.dtype, value.tolist()) == (torch.int64, [[3, 4]])
    assert {**first.attributes, "value": None} == {**graph.nodes[0].attributes, "value": None}
    assert (first.words, second) == ("Gelu (node 'a node')", graph.nodes[1])


def test_it_is_read_with_nothing_but_torch_and_numpy(tmp_path: Path) -> None:
    every_kind().write(tmp_path)
    code = (
        "import sys; sys.modules.update(dict.fromkeys(['onnx', 'onnx_ir', 'onnxruntime', 'ml_dtypes']))\n"
        "from pathlib import Path; from plugins.graph_walk import description\n"
        "print(len(description.read(Path(sys.argv[1])).weights))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.returncode) == ("9\n", 0), done.stderr


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, r"holds no description of a graph .*python -m plugins.graph_walk.onnx_file GRAPH.onnx FOLDER"),
        ("[]", "holds no description"),
        ('{"schema": 99}', "has schema 99; this version reads 1"),
    ],
)
def test_other_folders_are_refused(text: str | None, words: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / GRAPH).write_text(text)
    with pytest.raises(BadInput, match=words):
        description.read(tmp_path)


def test_the_command_describes_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = """<ir_version: 11, opset_import: ["" : 24]>
        g (float[n, 2] x) => (float[n, 2] y) <float[2, 2] w = {1, 2, 3, 4}> { y = MatMul (x, w) }"""
    path = tmp_path / "graph.onnx"
    ir.save(ir.from_proto(parser.parse_model(text)), path)
    assert onnx_file.main([str(path), str(tmp_path / "out")]) == 0
    graph = description.read(tmp_path / "out")
    assert graph.weights["w"].tolist() == [[1, 2], [3, 4]]
    assert [(node.operator, node.inputs, node.outputs) for node in graph.nodes] == [
        ("MatMul", ("x", "w"), ("y",))
    ]
    assert onnx_file.main([str(tmp_path / "missing.onnx"), str(tmp_path / "out")]) == 2
    assert "missing.onnx is not a readable ONNX graph" in capsys.readouterr().err


def test_types_that_torch_has_not_are_refused() -> None:
    text = '<ir_version: 11, opset_import: ["" : 24]> g (string[n] x) => (string[n] y) { y = Identity (x) }'
    with pytest.raises(BadInput, match="the graph holds STRING, which has no type of torch"):
        onnx_file.described(ir.from_proto(parser.parse_model(text)))
