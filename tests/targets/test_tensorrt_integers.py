"""int64 constants beyond int32: kept by ONNX Runtime and by most of TensorRT, refused where its parser cuts them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx import parser

from model_repo.runtime.errors import BadInput
from model_repo.runtime.tensors import TensorEngine
from pipeline import Recipe, build
from pipeline.graph import save_graph
from pipeline.targets.tensorrt.builder import BuildOptions, build_engine
from pipeline.targets.tensorrt.integers import check_integers
from pipeline.targets.tensorrt.layers import parse_layers
from pipeline.targets.tensorrt.profiles import Profile, Shapes

LARGE = 3_000_000_000
HEAD = '<ir_version: 10, opset_import: ["" : 21]>\n'
PROFILE = Profile("all", {"x": Shapes((1,), (4,), (8,))})


def graph(text: str) -> ir.Model:
    return ir.from_proto(parser.parse_model(HEAD + text))


def distances() -> ir.Model:
    """A hash of an id: only right when every step has 64 bits."""
    return graph(
        f"""g (int64[n] x) => (int64[n] y)
        <int64[1] large = {{{LARGE}}}, int64[1] prime = {{7000000001}}> {{
            s = Add (x, large)
            [rest] y = Mod (s, prime)
        }}"""
    )


def one_hot(inputs: str, name: str = "hot") -> ir.Model:
    return graph(
        f"""g (int64[4] x) => (int64[4, 3] y)
        <int64[4] large = {{1, {LARGE}, 2, 0}}, int64[4] small = {{1, 9, 2, 0}}, int64 deep = {{{LARGE}}},
         int64 three = {{3}}, int64[2] values = {{0, {LARGE}}}> {{ [{name}] y = OneHot ({inputs}, values) }}"""
    )


def test_onnxruntimes_engine_computes_with_all_bits(tmp_path: Path) -> None:
    path = save_graph(distances(), tmp_path / "hash.onnx").graph
    built = build(Recipe.for_model(str(path)), tmp_path / "out")
    ids = np.array([0, 5, 2**40 + 3, -(2**35), 4_000_000_000])
    (found,) = TensorEngine.load(built.folder, threads=1).run({"x": ids}).values()
    assert [int(number) for number in found] == [(int(number) + LARGE) % 7_000_000_001 for number in ids]


def test_tensorrt_keeps_them_in_arithmetic(tmp_path: Path) -> None:
    path = save_graph(distances(), tmp_path / "hash.onnx").graph
    built = build_engine(
        "tensorrt-rtx", path, tmp_path / "hash.rtx", [PROFILE], BuildOptions(compute_capabilities=("8.9",))
    )
    layers = parse_layers(built.layers)
    held = {tensor.dtype for layer in layers.layers for tensor in (*layer.inputs, *layer.outputs)}
    assert held == {"Int64"}


@pytest.mark.parametrize(
    ("inputs", "constant"), [("large, three", "large"), ("x, deep", "deep")], ids=["indices", "depth"]
)
def test_what_its_parser_would_cut_is_refused_by_name(inputs: str, constant: str) -> None:
    message = rf"OneHot 'hot' reads the int64 constant '{constant}', which holds {LARGE}; TensorRT takes .* onnxruntime"
    with pytest.raises(BadInput, match=message):
        check_integers(one_hot(inputs))


def test_no_engine_is_built_of_them(tmp_path: Path) -> None:
    path = save_graph(one_hot("large, three"), tmp_path / "hot.onnx").graph
    with pytest.raises(BadInput, match=f"OneHot 'hot' reads .* {LARGE}"):
        build_engine("tensorrt-rtx", path, tmp_path / "hot.rtx", [], BuildOptions(("8.9",)))
    assert not (tmp_path / "hot.rtx").exists()


def test_values_that_are_not_cut_are_taken() -> None:
    check_integers(one_hot("small, three"))
    check_integers(one_hot("x, three"))  # only `values` are large


def test_plugins_get_no_large_integers() -> None:
    model = one_hot("large, three")
    node = model.graph.node("hot")
    node.op_type, node.domain = "Mine", "slipway"
    with pytest.raises(BadInput, match="Mine 'hot' reads the int64 constant 'large'"):
        check_integers(model)


def loop(trips: int) -> Any:
    return graph(
        f"""g (int64[4] x) => (int64[4] y) <int64 trips = {{{trips}}}> {{
            [again] y = Loop (trips, "", x) <body = b (int64 i, bool go, int64[4] a) => (bool on, int64[4] s) {{
                on = Identity (go)
                s = Add (a, a)
            }}>
        }}"""
    )


def test_a_loop_may_have_no_limit() -> None:
    check_integers(loop(2**63 - 1))
    with pytest.raises(BadInput, match=f"Loop 'again' .* holds {LARGE}"):
        check_integers(loop(LARGE))


def test_constants_of_nodes_are_seen_too() -> None:
    model = graph(
        f"""g (int64[4] x) => (int64[4, n] y) <int64[2] values = {{0, 1}}> {{
            deep = Constant <value = int64 {{{LARGE}}}> ()
            [hot] y = OneHot (x, deep, values)
        }}"""
    )
    with pytest.raises(BadInput, match="OneHot 'hot' reads the int64 constant 'deep'"):
        check_integers(model)
