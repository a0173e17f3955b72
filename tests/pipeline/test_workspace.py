"""The workspace: what may be a name, what is swept away, what is left alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from model_repo.runtime.errors import BadInput
from model_repo.runtime.manifest import FileRecord, Manifest
from pipeline.workspace import MANIFESTS, Workspace, checked_name


@pytest.mark.parametrize("name", ["demo", "Llama-3.2_1B", "a"])
def test_good_names(name: str) -> None:
    assert checked_name(name) == name


@pytest.mark.parametrize("name", ["", "a/b", "../a", ".hidden", "a b", "-x", "a\n", "x" * 65, "ü"])
def test_bad_names(name: str) -> None:
    with pytest.raises(BadInput, match="cannot be used: 1 to 64 letters"):
        checked_name(name)


def test_leftovers_are_swept_and_nothing_else(tmp_path: Path) -> None:
    digest = "a" * 64
    swept = [
        ".staging-fuse.onnx",
        ".staging-repository/x/y",
        "..staging-fuse.onnx.123",
        ".engine.json.77",
        f"weights/.{digest}.9",
    ]
    kept = ["fuse.onnx", ".hashes.json", "engine.json", f"weights/{digest}", ".git/config", ".env", "notes.5"]
    for name in swept + kept:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    Workspace(tmp_path).sweep()
    assert {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()} == set(
        kept
    )


def test_a_file_that_is_no_longer_made_is_removed(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    for names in (("engine.onnx", "chat_template.jinja"), ("engine.onnx",)):
        for name in names:
            workspace.staged(name).write_text(name)
        outputs = tuple(FileRecord.of(workspace.staged(name), tmp_path) for name in names)
        records = tuple(FileRecord(name, r.sha256, r.bytes) for name, r in zip(names, outputs, strict=True))
        manifest = Manifest("compile", {}, "", (), records, {}, 0.0, "not run: test", ("slipway",))
        workspace.publish({name: workspace.staged(name) for name in names}, manifest)
        assert {path.name for path in tmp_path.iterdir()} == {*names, MANIFESTS["compile"]}


def test_weights_stay_while_a_manifest_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / ("b" * 64)).write_text("x")
    (tmp_path / "weights" / "notes.txt").write_text("x")
    (tmp_path / MANIFESTS["fuse"]).write_text("broken")
    assert Workspace(tmp_path).collect_weights() == 0
    (tmp_path / MANIFESTS["fuse"]).unlink()
    assert Workspace(tmp_path).collect_weights() == 1
    assert [path.name for path in (tmp_path / "weights").iterdir()] == ["notes.txt"]
