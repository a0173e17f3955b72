"""Foreign graphs: what is taken, and one sentence for everything that is wrong with the rest."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from model_repo.runtime.errors import BadInput
from pipeline.export.tensors import export_tensors
from pipeline.recipe import SourceRecipe
from pipeline.sources import open_source
from pipeline.sources.graph_checks import MAX_BYTES, NEWEST_OPSET, OLDEST_OPSET

WEIGHT = np.random.default_rng(0).standard_normal((6, 4), dtype=np.float32)
Change = Callable[[ModelProto], Any]


def linear(opset: int = 21) -> ModelProto:
    """y = relu(x @ w), x [n, 6]."""
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["product"], name="multiply"),
            helper.make_node("Relu", ["product"], ["y"], name="cut"),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
        [numpy_helper.from_array(WEIGHT, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def write(model: ModelProto, path: Path) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


def open_(path: Path, **recipe: Any) -> Any:
    return open_source(str(path), SourceRecipe(str(path), **recipe))


@pytest.mark.parametrize("opset", [OLDEST_OPSET, 11, 13, 18, NEWEST_OPSET])
def test_every_opset_that_is_taken_is_converted(opset: int, tmp_path: Path) -> None:
    """Softmax changed its meaning at 13, Unsqueeze its signature."""
    model = linear(opset)
    axes = numpy_helper.from_array(np.array([1]), "axes")
    del model.graph.node[1]
    model.graph.node.append(helper.make_node("Softmax", ["product"], ["shares"], axis=1))
    if opset < 13:
        model.graph.node.append(helper.make_node("Unsqueeze", ["shares"], ["y"], axes=[1]))
    else:
        model.graph.initializer.append(axes)
        model.graph.node.append(helper.make_node("Unsqueeze", ["shares", "axes"], ["y"]))
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 1, 4]))
    model.graph.input.append(
        helper.make_tensor_value_info("w", TensorProto.FLOAT, [6, 4])
    )  # as IR 3 wanted it
    source = open_(write(model, tmp_path / "old.onnx"))
    loaded = source.load()
    made = export_tensors(loaded, opset=24)
    assert made.graph.graph.opset_imports[""] == 24
    assert [(spec.name, spec.shape) for spec in made.inputs] == [("x", ("n", 6))]
    assert made.outputs[0].shape == ("n", 1, 4)
    assert made.batched
    (y,) = loaded.run({"x": np.ones((1, 6), np.float32)})
    logits = WEIGHT.sum(axis=0)
    np.testing.assert_allclose(y[0, 0], np.exp(logits) / np.exp(logits).sum(), rtol=1e-5)


def test_functions_that_the_file_brings_along_are_put_in_their_place(tmp_path: Path) -> None:
    model = linear()
    body = [helper.make_node("Relu", ["a"], ["b"])]
    model.functions.append(
        helper.make_function("mine", "Cut", ["a"], ["b"], body, [helper.make_opsetid("", 21)])
    )
    model.opset_import.append(helper.make_opsetid("mine", 1))
    model.graph.node[1].op_type, model.graph.node[1].domain = "Cut", "mine"
    made = export_tensors(open_(write(model, tmp_path / "functions.onnx")).load(), opset=24)
    assert [node.op_type for node in made.graph.graph] == ["MatMul", "Relu"]
    assert {node.domain for node in made.graph.graph} == {""}


def test_weights_beside_the_graph_are_read_and_decide(tmp_path: Path) -> None:
    onnx.save(linear(), tmp_path / "g.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    source = open_(tmp_path / "g.onnx")
    assert [path.name for path in source.files] == ["g.onnx", "w.bin"]
    (y,) = source.load().run({"x": np.ones((1, 6), np.float32)})
    np.testing.assert_allclose(y[0], np.maximum(WEIGHT.sum(axis=0), 0), rtol=1e-5)


def _nodes(*nodes: Any) -> Change:
    def change(model: ModelProto) -> None:
        del model.graph.node[:]
        model.graph.node.extend(nodes)

    return change


def _shapeless(model: ModelProto) -> None:
    model.graph.input[0].type.tensor_type.ClearField("shape")


def _sequence(model: ModelProto) -> None:
    model.graph.input[0].CopyFrom(helper.make_tensor_sequence_value_info("x", TensorProto.FLOAT, None))


def _external(location: str) -> Change:
    def change(model: ModelProto) -> None:
        tensor = model.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=location)

    return change


def _too_long(model: ModelProto) -> None:
    _external("short.bin")(model)
    model.graph.initializer[0].external_data.add(key="length", value="96")


node = helper.make_node
BAD: dict[str, tuple[Change, str]] = {
    "unknown operator": (
        _nodes(node("MatMool", ["x", "w"], ["y"], name="n")),
        r"node 'n' is MatMool, which opset 21 does not have",
    ),
    "operator of a later opset": (
        _nodes(node("RMSNormalization", ["x", "w"], ["y"], name="n")),
        r"node 'n' is RMSNormalization, which opset 21 does not have",
    ),
    "unknown domain": (
        _nodes(node("Gelu", ["x"], ["y"], name="n", domain="com.microsoft")),
        r"node 'n' is com\.microsoft::Gelu; standard operators are taken.*before a runtime optimized it",
    ),
    "opset too old": (lambda m: setattr(m.opset_import[0], "version", 6), "is of opset 6; 7 to 24 are taken"),
    "opset too new": (
        lambda m: setattr(m.opset_import[0], "version", 25),
        "is of opset 25; 7 to 24 are taken",
    ),
    "a cycle": (
        _nodes(node("Add", ["x", "b"], ["a"]), node("Relu", ["a"], ["b"]), node("Add", ["a", "b"], ["y"])),
        "has a cycle: 'a' needs 'b' needs 'a'",
    ),
    "needs itself": (_nodes(node("Add", ["x", "y"], ["y"])), "has a cycle: 'y' needs 'y'"),
    "undefined": (
        _nodes(node("Relu", ["z"], ["y"], name="n")),
        r"node 'n' \(Relu\) reads 'z', which nothing defines",
    ),
    "output undefined": (_nodes(node("Relu", ["x"], ["z"])), "the output 'y' is computed by no node"),
    "unnamed value": (
        _nodes(node("Relu", ["x"], ["y"]), node("Relu", ["x"], [""], name="n")),
        r"node 'n' \(Relu\) has no output with a name",
    ),
    "defined twice": (
        _nodes(node("Relu", ["x"], ["y"]), node("Tanh", ["x"], ["y"], name="n")),
        r"the value 'y' is defined twice, once by node 'n' \(Tanh\)",
    ),
    "in the wrong order": (
        _nodes(node("Relu", ["p"], ["y"]), node("MatMul", ["x", "w"], ["p"])),
        r"is not valid ONNX: .*topologically sorted",
    ),
    "types that do not fit": (
        lambda m: setattr(m.graph.node[1].attribute.add(), "name", "slope"),
        "is not valid ONNX: ",
    ),
    "no outputs": (lambda m: m.graph.ClearField("output"), "has no outputs, so nothing could be asked"),
    "no inputs": (
        lambda m: (m.graph.ClearField("input"), _nodes(node("Relu", ["w"], ["y"]))(m)),
        "has no inputs: it always gives the same",
    ),
    "unnamed input": (lambda m: setattr(m.graph.input[0], "name", ""), "an input or output without a name"),
    "dynamic rank": (_shapeless, "the input 'x' has no shape, so its number of dimensions may differ"),
    "a sequence": (_sequence, "'x' is sequence; inputs and outputs must be tensors"),
    "weights missing": (_external("gone.bin"), r"the weight 'w' lies in 'gone\.bin', which is missing"),
    "weights above": (_external("../outside.bin"), r"'\.\./outside\.bin', outside the graph's folder"),
    "weights elsewhere": (_external("/etc/hostname"), "'/etc/hostname', outside the graph's folder"),
    "weights by a link": (_external("link.bin"), r"'link\.bin', outside the graph's folder; .* not be links"),
    "weights by a linked folder": (_external("linked/outside.bin"), "outside the graph's folder"),
    "weights nowhere": (_external(""), "the weight 'w' is said to lie in '', outside"),
    "weights cut off": (
        _too_long,
        r"takes the bytes 0 to 96 of 'short\.bin', which has 10; get that file again",
    ),
}


@pytest.mark.parametrize(("change", "message"), BAD.values(), ids=BAD.keys())
def test_a_bad_graph_is_refused_when_it_is_opened(tmp_path: Path, change: Change, message: str) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "outside.bin").write_bytes(WEIGHT.tobytes())
    (folder / "short.bin").write_bytes(b"0123456789")
    (folder / "link.bin").symlink_to(tmp_path / "outside.bin")
    (folder / "linked").symlink_to(tmp_path)
    model = linear()
    change(model)
    with pytest.raises(BadInput, match=message):
        open_(write(model, folder / "bad.onnx"))


def test_a_value_that_only_an_inner_graph_lacks_is_found(tmp_path: Path) -> None:
    def branch(reads: str) -> Any:
        return helper.make_graph(
            [node("Relu", [reads], ["inner"], name="n")],
            "branch",
            [],
            [helper.make_tensor_value_info("inner", TensorProto.FLOAT, None)],
        )

    model = linear()
    model.graph.input.append(helper.make_tensor_value_info("choice", TensorProto.BOOL, []))
    for reads, message in (("product", None), ("nowhere", "'n' .* reads 'nowhere', which nothing defines")):
        del model.graph.node[1]
        model.graph.node.append(
            node(
                "If",
                ["choice"],
                ["y"],
                then_branch=branch("x" if message else reads),
                else_branch=branch(reads),
            )
        )
        path = write(model, tmp_path / "inner.onnx")
        if message is None:
            open_(path)
        else:
            with pytest.raises(BadInput, match=message):
                open_(path)


@pytest.mark.parametrize("share", [0.0, 0.02, 0.3, 0.9])
def test_a_file_cut_short_is_refused(tmp_path: Path, share: float) -> None:
    path = write(linear(), tmp_path / "cut.onnx")
    os.truncate(path, int(path.stat().st_size * share))
    with pytest.raises(BadInput, match="is truncated or no ONNX file"):
        open_(path)


def test_a_file_that_no_protobuf_can_be_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "huge.onnx"
    path.touch()
    os.truncate(path, MAX_BYTES + 1)  # a hole: takes no room
    with pytest.raises(
        BadInput, match=r"has 2147483648 bytes; one protobuf holds at most 2147483647.*external data"
    ):
        open_(path)


def test_slice_ends_are_no_overflow(tmp_path: Path) -> None:
    model = linear()
    for name, value in (("starts", 0), ("ends", np.iinfo(np.int64).max), ("axes", 1)):
        model.graph.initializer.append(numpy_helper.from_array(np.array([value]), name))
    model.graph.node[1].CopyFrom(node("Slice", ["product", "starts", "ends", "axes"], ["y"]))
    open_(write(model, tmp_path / "slice.onnx"))


EXAMPLES: dict[str, tuple[dict[str, Any], str]] = {
    "another name": ({"z": np.ones((2, 6), np.float32)}, r"the example holds \['z'\]; .* takes \['x'\]"),
    "another width": (
        {"x": np.ones((2, 5), np.float32)},
        r"the example's 'x' is float32 \[2, 5\]; .* float32 \[n, 6\]",
    ),
    "another type": ({"x": np.ones((2, 6))}, r"the example's 'x' is float64 \[2, 6\]"),
    "another rank": ({"x": np.ones(6, np.float32)}, r"the example's 'x' is float32 \[6\]"),
}


@pytest.mark.parametrize(("arrays", "message"), EXAMPLES.values(), ids=EXAMPLES.keys())
def test_an_example_that_does_not_fit_is_refused(
    tmp_path: Path, arrays: dict[str, Any], message: str
) -> None:
    np.savez(tmp_path / "example.npz", **arrays)
    source = open_(write(linear(), tmp_path / "g.onnx"), example=str(tmp_path / "example.npz"))
    with pytest.raises(BadInput, match=message):
        source.load()


def test_an_example_decides_where_made_up_inputs_do_not_fit(tmp_path: Path) -> None:
    """Rows of a table of two are there for 0 and 1; the graph asks for twice the input."""
    model = linear()
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info("x", TensorProto.INT64, ["n"]))
    model.graph.initializer.append(numpy_helper.from_array(np.array(6), "six"))
    _nodes(node("Add", ["x", "six"], ["row"]), node("Gather", ["w", "row"], ["y"]))(model)
    path = write(model, tmp_path / "g.onnx")
    with pytest.raises(
        BadInput, match=r"does not run with x \[2\]: .*; inputs were made up\. .*--example FILE\.npz"
    ):
        open_(path).load()
    np.savez(tmp_path / "example.npz", x=np.array([-6, -1, -2]))
    source = open_(path, example=str(tmp_path / "example.npz"))
    assert tmp_path / "example.npz" in source.files
    assert source.load().example["x"].tolist() == [-6, -1, -2]
    with pytest.raises(BadInput, match=r"no file at .*--example names a \.npz"):
        open_(path, example=str(tmp_path / "none.npz"))
    (tmp_path / "text.npz").write_text("no archive")
    with pytest.raises(BadInput, match=r"text\.npz is not a readable \.npz"):
        open_(path, example=str(tmp_path / "text.npz")).load()


def test_a_size_that_is_baked_in_is_found(tmp_path: Path) -> None:
    """The input says n; a reshape says 2, as exporters without dynamic axes leave it."""
    model = linear()
    model.graph.initializer.append(numpy_helper.from_array(np.array([2, 4]), "shape"))
    model.graph.node[1].CopyFrom(node("Reshape", ["product", "shape"], ["y"]))
    with pytest.raises(BadInput, match="'n' is said to be dynamic, and 2 works; 3 does not"):
        export_tensors(open_(write(model, tmp_path / "baked.onnx")).load(), opset=24)


def test_an_output_declared_with_a_size_that_changes_is_refused(tmp_path: Path) -> None:
    model = linear()
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 4]))
    with pytest.raises(BadInput, match=r"axis 0 of the output 'y' is declared 2 and was seen as \[1, 2, 3\]"):
        export_tensors(open_(write(model, tmp_path / "declared.onnx")).load(), opset=24)


def test_pt2_files_are_checked_as_archives(tmp_path: Path) -> None:
    path = tmp_path / "model.pt2"
    path.write_bytes(b"PK\x03\x04 cut")
    with pytest.raises(BadInput, match=r"model\.pt2 is truncated or no \.pt2 archive"):
        open_(path)
    with pytest.raises(BadInput, match="no file at"):
        open_(tmp_path / "none.pt2")


def test_an_archive_that_torch_does_not_know_is_refused(tmp_path: Path) -> None:
    import zipfile

    with zipfile.ZipFile(tmp_path / "other.pt2", "w") as archive:
        archive.writestr("other/data", "nothing")
    with pytest.raises(BadInput, match=r"torch cannot load .*save it again with torch\.export\.save"):
        open_(tmp_path / "other.pt2").load()
