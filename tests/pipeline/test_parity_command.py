"""`slipway parity` on builds and files: figures, the stage and node that part, exit codes, the picture."""

from __future__ import annotations

import json
import shutil
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from click.testing import CliRunner, Result

from pipeline import BuildResult, Recipe
from pipeline.cli import main
from pipeline.graph import load_graph, save_graph
from pipeline.parity.compare import compare
from pipeline.parity.picture import picture
from pipeline.parity.walk import NodeNote, Step, Walk
from pipeline.steps.comparing import run_graph
from pipeline.steps.context import BuildContext
from pipeline.workspace import EXPORTED, FUSED, Workspace

from .planted import plant

SMALL = """<ir_version: 10, opset_import: ["" : 20]>
small (int64[n] ids, float[n, 4] x, bool[n] flag) => (float[n, 4] y) <float[9, 4] table = {NUMBERS}> {
    row = Gather(table, ids)
    sum = Add(row, x)
    y = Tanh(sum)
}"""


def parity(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["parity", *map(str, arguments)])


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return write_small(tmp_path / "one" / "small.onnx", SMALL)


def write_small(path: Path, text: str, scale: float = 1.0) -> Path:
    """The graph of `text`, whose initializer `table` is random numbers times `scale`."""
    numbers = np.random.default_rng(0).standard_normal(36) * scale
    model = ir.from_onnx_text(text.replace("NUMBERS", ", ".join(f"{number:.6f}" for number in numbers)))
    path.parent.mkdir(exist_ok=True)
    save_graph(model, path)
    return path


def test_two_stages_of_a_build_agree_and_the_figures_are_those_of_the_gate(
    real_build: BuildResult, tmp_path: Path
) -> None:
    folder, report = real_build.folder, tmp_path / "report.json"
    result = parity(folder, folder, "--stage", "export", "--stage", "fuse", "--report", report)
    assert result.exit_code == 0, result.output
    assert "inside" in result.stdout
    found = json.loads(report.read_text())
    assert found["inside"] is True
    assert found["walk"]["departures"] == []
    (stage,) = found["stages"]

    context = BuildContext(Recipe.load(folder / "recipe.yaml"), Workspace(folder), exports=False)
    facts, inputs = context.facts, context.parity_inputs()
    rows = [run_graph(context, folder / name, facts, inputs) for name in (EXPORTED, FUSED)]
    expected = compare(*rows, "", top1=True)
    figures = stage["outputs"]["logits"]
    assert figures["rows"] == expected["rows"] == sum(map(len, inputs))
    assert figures["top1"] == 1.0
    assert figures["min_cosine"] == pytest.approx(expected["min_cosine"], abs=1e-9)
    assert figures["max_abs_difference"] < 1e-4
    as_json = parity(folder, folder, "--stage", "fuse", "--json")
    assert json.loads(as_json.stdout)["stages"][0]["outputs"]["logits"]["max_abs_difference"] == 0.0


def test_a_graph_and_the_engine_are_compared_tensor_by_tensor(real_build: BuildResult) -> None:
    result = parity(real_build.folder / EXPORTED, real_build.folder, "--json")
    assert result.exit_code == 0, result.output
    walk = json.loads(result.stdout)["walk"]
    # The engine's graph has lost its notes; they come from the graph that it was made of.
    assert len(walk["tensors"]) > walk["nodes"] / 2
    assert all(step["own_error"] < 1e-5 for step in walk["tensors"])
    assert any(step["node"]["source"] for step in walk["tensors"])


def test_the_stage_and_the_node_that_part_are_named(built: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(built, damaged)
    model = load_graph(damaged / FUSED)
    fault = plant(model, "weight", 5)
    save_graph(model, damaged / FUSED)
    image, report = tmp_path / "error.svg", tmp_path / "report.json"
    result = parity(built, damaged, "--picture", image, "--report", report)
    assert result.exit_code == 3, result.output
    assert "outside" in result.stdout
    assert f"error: {damaged} differs from {built} beyond the tolerance" in result.stderr
    assert "fuse brought it in: the first node that departs" in result.stderr
    assert fault.output in result.stderr
    found = json.loads(report.read_text())
    assert [(stage["stage"], stage["inside"]) for stage in found["stages"]] == [
        ("export", True),
        ("fuse", False),
    ]
    assert found["walk"]["departures"][0]["tensor"] == fault.output

    root = ElementTree.parse(image).getroot()
    marks = [element for element in root.iter() if element.get("class") == "own"]
    assert len(marks) - 1 == len(found["walk"]["tensors"])  # one in the legend
    (name,) = (element for element in root.iter() if element.get("class") == "wrong-name")
    assert found["walk"]["departures"][0]["nodes"][0]["name"] in (name.text or "")


def test_an_edited_graph_in_a_build_is_run_on_the_builds_inputs(built: Path) -> None:
    """A file that no stage made, compared with one that a stage made."""
    model = load_graph(built / FUSED)
    plant(model, "weight", 5)
    save_graph(model, built / "edited.onnx")
    result = parity(built / FUSED, built / "edited.onnx")
    assert result.exit_code == 3, result.output
    assert f"{built / 'edited.onnx'} brought it in" in result.stderr


def test_files_of_no_build_are_run_on_invented_or_given_inputs(small: Path, tmp_path: Path) -> None:
    same = write_small(tmp_path / "two" / "same.onnx", SMALL)
    assert parity(small, same).exit_code == 0
    scaled = write_small(tmp_path / "two" / "scaled.onnx", SMALL, scale=1.5)
    result = parity(small, scaled, "--json")
    assert result.exit_code == 3
    assert json.loads(result.stdout)["walk"]["departures"][0]["tensor"] == "row"
    swapped = write_small(tmp_path / "two" / "swapped.onnx", SMALL.replace("Tanh", "Sigmoid"))
    result = parity(small, swapped)
    assert "Sigmoid 'y'" in result.stderr
    # Inputs on which both are nearly equal.
    given = tmp_path / "given.npz"
    np.savez(given, ids=np.zeros(2, np.int64), x=np.full((2, 4), 60, np.float32), flag=np.ones(2, bool))
    assert parity(small, swapped, "--inputs", given).exit_code == 0


def test_a_looser_tolerance_lets_it_pass(small: Path, tmp_path: Path) -> None:
    near = write_small(tmp_path / "two" / "near.onnx", SMALL, scale=1.02)
    assert parity(small, near).exit_code == 3
    loose = parity(small, near, "--min-cosine", "0.99", "--max-relative", "0.1", "--limit", "0.1", "--json")
    assert loose.exit_code == 0
    assert json.loads(loose.stdout)["walk"]["departures"] == []


def test_another_precision_is_compared_by_its_numbers(small: Path, tmp_path: Path) -> None:
    """Tensors of bfloat16, which numpy does not have, go from node to node as float32."""
    text = SMALL.replace(
        "y = Tanh(sum)",
        "half = Cast <to: int = 16> (sum)\n    sum2 = Cast <to: int = 1> (half)\n    y = Tanh(sum2)",
    )
    rounded = write_small(tmp_path / "two" / "rounded.onnx", text)
    result = parity(small, rounded, "--max-relative", "0.01", "--min-cosine", "0.9999", "--json")
    assert result.exit_code == 0, result.output
    steps = {step["tensor"]: step for step in json.loads(result.stdout)["walk"]["tensors"]}
    assert 1e-4 < steps["y"]["own_error"] < 8e-3


def test_bad_input_is_one_clear_error(
    small: Path, tmp_path: Path, real_build: BuildResult, built: Path
) -> None:
    folder = real_build.folder
    other = write_small(tmp_path / "two" / "other.onnx", SMALL.replace("float[n, 4] x", "float[n, 5] x"))
    two = write_small(
        tmp_path / "two" / "two.onnx",
        SMALL.replace("=> (float[n, 4] y)", "=> (float[n, 4] y, float[n, 4] sum)"),
    )
    renamed = SMALL.replace(" y", " p").replace("row", "q").replace("sum", "r")
    junk = tmp_path / "junk.onnx"
    junk.write_bytes(b"no graph")
    lacking = tmp_path / "lacking.npz"
    np.savez(lacking, x=np.zeros((2, 4), np.float32))
    (built / "weights" / next((built / "weights").iterdir()).name).unlink()
    alone = tmp_path / "alone" / FUSED
    alone.parent.mkdir()
    save_graph(load_graph(folder / FUSED), alone)
    cases = [
        ((small, tmp_path / "none.onnx"), "there is no"),
        ((small, junk), "is not a readable ONNX graph"),
        ((small, tmp_path), "holds no build"),
        ((small, other), "x is float [?, 4] in the first and float [?, 5] in the second"),
        ((small, two), "compare artifacts that give the same outputs"),
        ((small, write_small(tmp_path / "two" / "renamed.onnx", renamed), "--limit", "-1"), "limit"),
        ((small, folder / FUSED), "ids is int64 [?] in the first and no input in the second"),
        ((small, small, "--stage", "fuse"), "both artifacts are files"),
        ((folder, folder, "--stage", "quantise"), "stages with graphs: export, fuse, lower, compile"),
        ((small, small, "--inputs", lacking), "lacks the graph's input 'ids'"),
        ((small, small, "--inputs", junk), "not a readable .npz"),
        ((small, small, "--min-cosine", "2"), "min_cosine"),
        ((alone, alone), "inputs of a decoder's graph depend on each other"),
        ((built, folder), "is missing"),
    ]
    for arguments, words in cases:
        result = parity(*arguments)
        assert result.exit_code == 2, (arguments, result.output)
        assert words in result.stderr, (arguments, result.stderr)
        assert result.stderr.count("error: ") + result.stderr.count("Error: ") == 1


def test_outputs_of_other_names_are_paired_by_their_place(small: Path, tmp_path: Path) -> None:
    text = SMALL.replace(" y", " p").replace("row", "q").replace("sum", "r")
    renamed = write_small(tmp_path / "two" / "renamed.onnx", text)
    assert onnx.load(renamed).graph.output[0].name == "p"
    result = parity(small, renamed, "--json")
    assert result.exit_code == 0, result.output
    (step,) = json.loads(result.stdout)["walk"]["tensors"]
    assert (step["tensor"], step["partner"]) == ("p", "y")


def test_the_picture_puts_small_errors_low_and_escapes_names() -> None:
    def step(name: str, error: float, module: str) -> Step:
        return Step(name, name, NodeNote(name, "Add", module, ""), error, error / 10, 0, 0)

    steps = [step("a<b", 1e-7, "layers.0"), step("c", 1e-2, "layers.1.norm"), step("d", float("inf"), "head")]
    text = picture(Walk(tuple(steps), (), 3), "B & A")
    root = ElementTree.fromstring(text)
    names = [element for element in root.iter() if element.tag.endswith("polyline")]
    heights = [float(point.split(",")[1]) for point in names[0].get("points", "").split()]
    assert heights == sorted(heights, reverse=True)
    assert len(set(heights)) == 3
    assert "a&lt;b" in text
    assert "B &amp; A" in text
