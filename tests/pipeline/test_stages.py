"""The runner: what is unchanged is not run again, what changed runs with all that follows."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest

import pipeline.stages
from model_repo.runtime.errors import BadInput, GateFailed, SlipwayError
from model_repo.runtime.manifest import Manifest
from pipeline.builder import BuildResult, build
from pipeline.recipe import FuseRecipe, ParityRecipe, Recipe, ServeRecipe, TargetRecipe, Tolerance
from pipeline.workspace import ENGINE, MANIFESTS, RECIPE, REPOSITORY, WEIGHTS, Workspace

from .fake_steps import NAMES, PARITY, Fakes

ALL = list(NAMES)


@pytest.fixture
def recipe(checkpoint: Path) -> Recipe:
    return Recipe.for_model(str(checkpoint))


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "out" / "model"


def ran(recipe: Recipe, output: Path, **options: Any) -> list[str]:
    """Names of the fake stages that a build ran."""
    fakes = Fakes()
    build(recipe, output, steps=fakes.steps(), **options)
    return fakes.ran


def whole(output: Path) -> None:
    """Asserts that every manifest's files are there as listed, and that nothing else was left."""
    workspace = Workspace(output)
    for stage in MANIFESTS:
        manifest = workspace.manifest(stage)
        assert manifest is not None
        manifest.verify_outputs(output)
    assert not [path.name for path in output.rglob(".*") if path.name != ".hashes.json"]


def test_an_unchanged_build_runs_nothing(recipe: Recipe, output: Path) -> None:
    assert ran(recipe, output) == ALL
    whole(output)
    assert ran(recipe, output) == []
    assert ran(recipe, output, force=True) == ALL


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"fuse": FuseRecipe(disable=("qkv",))}, ["fuse", "lower", "compile", "emit"]),
        ({"target": TargetRecipe(max_batch=3)}, ["compile", "emit"]),
        ({"serve": ServeRecipe(max_queue=3)}, ["emit"]),
        ({"parity": ParityRecipe(fuse=Tolerance(min_cosine=0.5))}, []),
    ],
)
def test_a_changed_section_runs_its_stage_and_what_follows(
    recipe: Recipe, output: Path, change: dict[str, Any], expected: list[str]
) -> None:
    ran(recipe, output)
    assert ran(dataclasses.replace(recipe, **change), output) == expected
    whole(output)
    assert Recipe.load(output / RECIPE) == dataclasses.replace(recipe, **change)


def test_a_changed_source_file_runs_everything_that_depends_on_it(
    recipe: Recipe, output: Path, checkpoint: Path
) -> None:
    ran(recipe, output)
    (checkpoint / "tokenizer.json").write_text('{"changed": 1}')
    # The fake export writes the same bytes again, so what follows has unchanged inputs.
    assert ran(recipe, output) == ["export"]


def test_a_moved_source_is_the_same_source(recipe: Recipe, output: Path, checkpoint: Path) -> None:
    ran(recipe, output)
    moved = checkpoint.rename(checkpoint.with_name("moved"))
    assert ran(Recipe.for_model(str(moved)), output) == []


def test_changed_code_runs_its_stage(recipe: Recipe, output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran(recipe, output)
    monkeypatch.setattr(pipeline.stages, "code_version", lambda code: "another")
    assert ran(recipe, output) == ALL


@pytest.mark.parametrize("damage", ["missing", "changed", "same size and time", "manifest"])
def test_a_damaged_artifact_is_made_again(recipe: Recipe, output: Path, damage: str) -> None:
    ran(recipe, output)
    engine = output / ENGINE
    before = engine.stat()
    if damage == "missing":
        engine.unlink()
    elif damage == "changed":
        engine.write_text("changed")
    elif damage == "same size and time":
        data = bytearray(engine.read_bytes())
        data[5] ^= 1
        engine.unlink()
        engine.write_bytes(data)
        os.utime(engine, ns=(before.st_atime_ns, before.st_mtime_ns))
        if engine.stat().st_ino == before.st_ino:
            pytest.skip("the file system gave the new file the old one's inode")
    else:
        (output / MANIFESTS["compile"]).write_text("{}")
    assert "compile" in ran(recipe, output)
    whole(output)


def test_a_damaged_weight_is_written_again(recipe: Recipe, output: Path) -> None:
    ran(recipe, output)
    manifest = Manifest.read(output / MANIFESTS["fuse"])
    (weight,) = (output / record.path for record in manifest.outputs if record.path.startswith(WEIGHTS))
    weight.write_bytes(b"x" * weight.stat().st_size)
    assert ran(recipe, output) == ["fuse"]
    whole(output)


def test_weights_that_nothing_needs_any_more_are_removed(recipe: Recipe, output: Path) -> None:
    ran(recipe, output)
    before = {path.name for path in (output / WEIGHTS).iterdir()}
    ran(dataclasses.replace(recipe, fuse=FuseRecipe(disable=("qkv",))), output)
    after = {path.name for path in (output / WEIGHTS).iterdir()}
    assert len(before) == len(after) == 4
    assert len(before & after) == 1  # the export's, which did not run again
    whole(output)


def test_a_failing_stage_names_its_command_and_keeps_what_was_there(recipe: Recipe, output: Path) -> None:
    ran(recipe, output)
    old = (output / ENGINE).read_text()
    fakes = Fakes(fail={"compile": SlipwayError("no luck")})
    with pytest.raises(SlipwayError, match="no luck") as caught:
        build(recipe, output, steps=fakes.steps(), force=True)
    assert caught.value.__notes__ == [f"to repeat just this stage: slipway compile {output}"]
    assert fakes.ran == ["export", "fuse", "lower", "compile"]
    assert (output / ENGINE).read_text() == old
    whole(output)


def test_a_gate_that_fails_publishes_nothing(recipe: Recipe, output: Path) -> None:
    ran(recipe, output, stages=("export", "fuse"))
    bad = {**PARITY, "min_cosine": 0.9}
    fakes = Fakes(parity=bad)
    with pytest.raises(GateFailed, match=r"lower differs from before.*0\.9000.*at least 0\.99999") as caught:
        build(recipe, output, steps=fakes.steps())
    assert caught.value.exit_code == 3
    assert fakes.ran == ["lower"]
    assert not (output / MANIFESTS["lower"]).exists()
    assert not (output / NAMES["lower"]).exists()


def test_a_tightened_tolerance_judges_the_recorded_figures(recipe: Recipe, output: Path) -> None:
    loose = dataclasses.replace(
        recipe,
        parity=ParityRecipe(
            **dict.fromkeys(("export", "fuse", "lower", "compile"), Tolerance(min_cosine=0.8))
        ),
    )
    fakes = Fakes(parity={**PARITY, "min_cosine": 0.9})
    build(loose, output, steps=fakes.steps())
    with pytest.raises(GateFailed, match="export differs"):
        build(recipe, output, steps=Fakes().steps())


@pytest.mark.parametrize("error", [BadInput("bad"), RuntimeError("fault"), KeyboardInterrupt()])
def test_a_folder_that_got_nothing_is_not_left_behind(
    recipe: Recipe, tmp_path: Path, error: BaseException
) -> None:
    fakes = Fakes(fail={"export": error})  # type: ignore[dict-item]  # KeyboardInterrupt is no Exception
    with pytest.raises(type(error)):
        build(recipe, tmp_path / "new" / "deep" / "model", steps=fakes.steps())
    assert not (tmp_path / "new").exists()


def test_a_bad_source_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no folder at"):
        build(Recipe.for_model(str(tmp_path / "none" / "model")), tmp_path / "new" / "model")
    assert not (tmp_path / "new").exists()


def test_a_folder_of_someone_else_is_refused(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "theirs" / "weights").mkdir(parents=True)
    (tmp_path / "theirs" / "notes.txt").write_text("mine")
    with pytest.raises(BadInput, match="files that slipway did not make"):
        build(recipe, tmp_path / "theirs", steps=Fakes().steps())
    assert (tmp_path / "theirs" / "notes.txt").read_text() == "mine"


def test_a_stage_by_itself_needs_the_one_before(recipe: Recipe, output: Path) -> None:
    with pytest.raises(BadInput, match="no folder"):
        build(recipe, output, stages=("fuse",), steps=Fakes().steps())
    ran(recipe, output, stages=("export",))
    with pytest.raises(BadInput, match=r"no result of the stage fuse; run `slipway fuse"):
        build(recipe, output, stages=("lower",), steps=Fakes().steps())
    assert ran(recipe, output, stages=("fuse",)) == ["fuse"]


def test_the_result_says_what_was_done(recipe: Recipe, output: Path) -> None:
    first = build(recipe, output, steps=Fakes().steps())
    second = build(recipe, output, steps=Fakes().steps())
    assert [row.stage for row in first.rows] == ALL
    assert [row.ran for row in first.rows] == [True] * 5
    assert [row.ran for row in second.rows] == [False] * 5
    assert [row.bytes for row in first.rows] == [row.bytes for row in second.rows]
    assert isinstance(first, BuildResult)
    assert first.repository == output / REPOSITORY
    listed = Manifest.read(output / MANIFESTS["fuse"]).outputs
    assert first.rows[1].bytes == sum((output / record.path).stat().st_size for record in listed)
