"""All stages for real on models of named tensors: from a function, an exported program and a foreign graph."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from click.testing import CliRunner

import pipeline.fuse
from calibration.scales import Scales
from model_repo.runtime.errors import BadInput, GateFailed
from model_repo.runtime.manifest import Manifest, sha256_of
from model_repo.runtime.tensors import TensorEngine
from pipeline import BuildResult, Recipe, build
from pipeline.check import check, verdict
from pipeline.cli import main
from pipeline.evaluate import Given, evaluate
from pipeline.inspect import inspect_folder
from pipeline.recipe import FuseRecipe
from pipeline.stages import Silent
from pipeline.workspace import ENGINE, FUSED, MANIFESTS, RECIPE, SCALES
from tests.pipeline import user_models

SCORER = "my_models:scorer"


def given(rows: int) -> dict[str, Any]:
    random = np.random.default_rng(rows)
    features = random.standard_normal((rows, 6), dtype=np.float32)
    return {"features": features, "kind": random.integers(0, 10, rows)}


def expected(inputs: dict[str, Any]) -> dict[str, Any]:
    """What torch gives."""
    with torch.no_grad():
        found = user_models.scorer().module(**{name: torch.from_numpy(a) for name, a in inputs.items()})
    return {name: tensor.numpy() for name, tensor in found.items()}


def assert_scores(engine: TensorEngine, names: tuple[str, ...] = ("scores", "best", "likely")) -> None:
    """At three batches, none of which is the example's."""
    for rows in (1, 2, 7):
        found = list(engine.run(given(rows)).values())
        for name, array in zip(names, found, strict=True):
            np.testing.assert_allclose(array, expected(given(rows))[name], rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder, with his module in it."""
    folder = tmp_path_factory.mktemp("tensors")
    shutil.copyfile(str(user_models.__file__), folder / "my_models.py")
    return folder


@pytest.fixture(scope="module")
def scored(folder: Path) -> BuildResult:
    """Built in that folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return build(Recipe.for_model(SCORER), folder / "out" / "scorer")


def test_a_function_of_the_users_becomes_an_engine(scored: BuildResult) -> None:
    for row, against in zip(scored.rows, ("the torch module", "export", "fuse", "lower"), strict=False):
        assert not isinstance(row.parity, str)
        assert row.parity["against"] == against
        assert (
            row.parity["rows"] == 3 + 1 + 3 + 4 + 1 + 4 + 1 + 1 + 1
        )  # scores, best, likely at batches 3, 4 and 1
        assert row.parity["max_relative_difference"] < 1e-5
    assert_scores(TensorEngine.load(scored.folder, threads=1))
    spec = Manifest.read(scored.folder / MANIFESTS["compile"]).engine
    assert spec is not None
    assert (spec.kind, spec.name, spec.batched, spec.axes[0].most) == ("tensors", "scorer", True, 32)
    verdict(check(scored.folder))
    assert [row.name for row in inspect_folder(scored.folder).graphs["compile"].inputs] == [
        "features",
        "kind",
    ]
    assert {path.name for path in scored.repository.iterdir()} == {"scorer"}


class Refusing(Silent):
    """Ends a build before a stage runs."""

    def started(self, stage: str) -> None:
        raise InterruptedError(stage)


def test_a_function_is_exported_again_when_its_file_changed(
    scored: BuildResult, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    recipe = Recipe.for_model(SCORER)
    assert not any(row.ran for row in build(recipe, scored.folder, progress=Refusing()).rows)
    before = Path("my_models.py").read_text()
    Path("my_models.py").write_text(before + "# another line\n")
    with pytest.raises(InterruptedError, match="export"):
        build(recipe, scored.folder, progress=Refusing())
    Path("my_models.py").write_text(before)


def test_a_stage_by_itself_knows_the_runs(scored: BuildResult, tmp_path: Path) -> None:
    shutil.copytree(scored.folder, tmp_path / "copy")
    result = CliRunner().invoke(main, ["fuse", str(tmp_path / "copy"), "--force"])
    assert result.exit_code == 0, result.output


def test_a_planted_fault_fails_the_gate(
    scored: BuildResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One weight of one column is off; scores still point the same way."""
    original = pipeline.fuse.fuse

    def planted(model: ir.Model, recipe: FuseRecipe, **options: Any) -> Any:
        report = original(model, recipe, **options)
        value = next(
            v for v in model.graph.initializers.values() if v.name and v.name.endswith("linear.bias")
        )
        assert value.const_value is not None
        array = value.const_value.numpy().copy()
        array[0] += 0.02
        value.const_value = ir.Tensor(array, name=value.name)
        return report

    monkeypatch.setattr(pipeline.fuse, "fuse", planted)
    shutil.copytree(scored.folder, tmp_path / "copy")
    with pytest.raises(GateFailed, match=r"fuse differs from export.*relative difference"):
        build(Recipe.for_model(SCORER), tmp_path / "copy", stages=("fuse",), force=True)


def test_an_exported_program_becomes_an_engine(tmp_path: Path) -> None:
    example = user_models.scorer()
    batch = torch.export.Dim("batch", min=1, max=16)
    program = torch.export.export(
        example.module.eval(),
        (),
        kwargs=dict(example.inputs),
        dynamic_shapes={"features": {0: batch}, "kind": {0: batch}},
    )
    torch.export.save(program, tmp_path / "scorer.pt2")
    result = build(Recipe.for_model(str(tmp_path / "scorer.pt2")), tmp_path / "out")
    engine = TensorEngine.load(result.folder, threads=1)
    assert [(axis.name, axis.least, axis.most) for axis in engine.spec.axes] == [("features_0", 1, 16)]
    assert [output.name for output in engine.spec.outputs] == ["scores", "best", "likely"]
    assert_scores(engine)


def test_a_foreign_graph_becomes_an_engine(tmp_path: Path) -> None:
    example = user_models.scorer()
    exported = torch.onnx.export(
        example.module.eval(), (), kwargs=dict(example.inputs), dynamo=True, opset_version=18, verbose=False,
        dynamic_shapes={"features": {0: "batch"}, "kind": {0: "batch"}},
    )  # fmt: skip
    assert exported is not None
    exported.save(tmp_path / "foreign.onnx")
    runner = CliRunner()
    arguments = ["build", str(tmp_path / "foreign.onnx"), "--output", str(tmp_path / "out")]
    result = runner.invoke(main, arguments)
    assert result.exit_code == 0, result.output
    parity = json.loads((tmp_path / "out" / "export.json").read_text())["parity"]
    assert parity["against"] == "the file given"
    assert ir.load(tmp_path / "out" / ENGINE).graph.opset_imports[""] >= 23
    engine = TensorEngine.load(tmp_path / "out", threads=1)
    assert (engine.spec.name, engine.spec.batched) == ("foreign", True)
    assert_scores(engine)


def test_named_tensors_are_calibrated_and_evaluated_on_arrays(scored: BuildResult, tmp_path: Path) -> None:
    folder = tmp_path / "scorer"
    shutil.copytree(scored.folder, folder)
    inputs = given(40)
    right = expected(inputs)["scores"].argmax(axis=1)
    np.savez(tmp_path / "data.npz", labels=right, **inputs)
    recipe = Recipe.load(folder / RECIPE)
    settings = replace(recipe.calibrate, data=str(tmp_path / "data.npz"), method="minmax", samples=30)
    build(replace(recipe, calibrate=settings), folder, stages=("calibrate",))
    ranges = Scales.read(folder / SCALES, sha256_of(folder / FUSED))
    assert ranges.samples == 30
    assert all(tensor.low < tensor.high for tensor in ranges.tensors.values())
    report = evaluate(folder, given=Given(tmp_path / "data.npz"), compare_always=True)
    scores = report["outputs"]["scores"]
    assert report["samples"] == 40
    assert (scores["accuracy"], scores["reference_accuracy"], scores["top1"]) == (1, 1, 1)
    assert scores["relative"] < 1e-5
    assert "best" not in report["outputs"]  # whole numbers
    np.savez(tmp_path / "data.npz", labels=right[:7], **inputs)
    with pytest.raises(BadInput, match=r"'labels' is \[7\]; it must be \[40\]"):
        evaluate(folder, given=Given(tmp_path / "data.npz"))
