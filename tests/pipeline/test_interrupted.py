"""Builds that are killed, and builds of one model at the same time, in processes of their own."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.builder import build
from pipeline.recipe import Recipe
from pipeline.workspace import MANIFESTS, REPOSITORY, Workspace

from .fake_steps import REPOSITORY_FILES, Fakes

ROOT = Path(__file__).resolve().parents[2]


def start(*arguments: object) -> subprocess.Popen[str]:
    """`python -m tests.pipeline.fake_steps` with these arguments."""
    command = [sys.executable, "-m", "tests.pipeline.fake_steps", *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("seed", range(8))
def test_a_kill_at_any_moment_leaves_the_old_artifact_or_none(
    checkpoint: Path, tmp_path: Path, seed: int
) -> None:
    output = tmp_path / "model"
    process = start("loop", checkpoint, output)
    assert process.stdout is not None
    assert process.stdout.readline() == "0\n"  # one whole generation is there
    time.sleep(random.Random(seed).uniform(0, 0.3))
    process.kill()
    process.wait()
    assert process.returncode == -9
    workspace = Workspace(output)
    for stage in MANIFESTS:
        manifest = workspace.manifest(stage)
        if manifest is not None:
            manifest.verify_outputs(output)
    if (output / REPOSITORY).exists():
        texts = [path.read_text().split() for path in (output / REPOSITORY).rglob("*.pbtxt")]
        assert len(texts) == REPOSITORY_FILES
        assert len({generation for *_, generation, _ in texts}) == 1
    fakes = Fakes()
    build(Recipe.for_model(str(checkpoint)), output, steps=fakes.steps())
    assert {path.name for path in output.iterdir() if path.name.startswith(".")} == {".hashes.json"}
    assert not (output / "build.lock").exists()
    listed = {record.path for stage in MANIFESTS for record in Workspace(output).manifest(stage).outputs}  # type: ignore[union-attr]
    assert {f"weights/{path.name}" for path in (output / "weights").iterdir()} <= listed


def test_two_builds_of_one_model_wait_for_each_other(checkpoint: Path, tmp_path: Path) -> None:
    output, counter, gate = tmp_path / "model", tmp_path / "ran", tmp_path / "gate"
    first = start("build", checkpoint, output, counter, gate)
    assert first.stderr is not None
    assert first.stderr.readline() == "started export\n"
    second = start("build", checkpoint, output, counter)
    assert second.stderr is not None
    waiting = second.stderr.readline()
    assert f"waiting for {output}: process {first.pid} " in waiting
    gate.touch()
    assert first.wait(60) == 0, first.stderr.read()
    assert second.wait(60) == 0, second.stderr.read()
    assert counter.read_text().split() == ["export", "fuse", "lower", "compile", "emit"]


def test_a_build_that_waits_survives_the_others_failure(checkpoint: Path, tmp_path: Path) -> None:
    output, counter, gate = tmp_path / "new" / "model", tmp_path / "ran", tmp_path / "gate"
    first = start("build", checkpoint, output, counter, gate)
    assert first.stderr is not None
    assert first.stderr.readline() == "started export\n"
    second = start("build", checkpoint, output, counter)
    assert second.stderr is not None
    assert "waiting" in second.stderr.readline()
    first.send_signal(
        2
    )  # Ctrl-C: the first leaves nothing behind, not even the folder that the second waits in
    assert first.wait(60) != 0
    assert second.wait(60) == 0, second.stderr.read()
    assert counter.read_text().split() == ["export", "export", "fuse", "lower", "compile", "emit"]
    for stage in MANIFESTS:
        manifest = Workspace(output).manifest(stage)
        assert manifest is not None
        manifest.verify_outputs(output)
