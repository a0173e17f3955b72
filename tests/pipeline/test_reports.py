"""check, inspect, doctor, clean and bench, on a real build of the tiny model."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from pathlib import Path

import onnx
import pytest
from click.testing import CliRunner

import plugins.cpu.build
import plugins.cuda.nvcc
from model_repo.runtime.errors import BadInput, GateFailed
from pipeline import BuildResult
from pipeline.check import check, verdict
from pipeline.clean import clean
from pipeline.cli import main
from pipeline.doctor import diagnose
from pipeline.inspect import inspect_folder, inspect_graph
from pipeline.workspace import ENGINE, FUSED, MANIFESTS, RECIPE


def problems(folder: Path) -> list[str]:
    """What `check` finds wrong."""
    return [f"{finding.what}: {finding.problem}" for finding in check(folder) if finding.problem]


def test_a_good_build_passes(real_build: BuildResult) -> None:
    findings = check(real_build.folder)
    verdict(findings)
    looked_at = {finding.what for finding in findings}
    assert {"emit.json", "engine section", RECIPE} <= looked_at
    assert any(what.endswith("config.pbtxt") for what in looked_at)
    assert CliRunner().invoke(main, ["check", str(real_build.folder)]).exit_code == 0


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: (folder / ENGINE).write_bytes(b"x"), "engine.onnx has changed"),
        (lambda folder: next((folder / "weights").iterdir()).unlink(), "is missing"),
        (lambda folder: (folder / MANIFESTS["fuse"]).unlink(), "fuse.json: missing"),
        (lambda folder: (folder / MANIFESTS["lower"]).write_text("{}"), "schema version"),
        (lambda folder: next(folder.glob("repository/*/config.pbtxt")).write_text("name: 3"), "config.pbtxt"),
        (
            lambda folder: next(folder.glob("repository/*/1/model.py")).write_text("def"),
            "not readable Python",
        ),
        (
            lambda folder: shutil.rmtree(next(folder.glob("repository/*_generate"))),
            "which is not in the repo",
        ),
        (
            lambda folder: next(folder.glob("repository/*/1/engine/engine.onnx")).write_bytes(b"x"),
            "engine by",
        ),
    ],
)
def test_damage_is_found(built: Path, damage: object, words: str) -> None:
    damage(built)  # type: ignore[operator]
    found = problems(built)
    assert any(words in problem for problem in found), found
    with pytest.raises(BadInput):
        verdict(check(built))
    assert CliRunner().invoke(main, ["check", str(built)]).exit_code == 2


def test_parity_outside_the_recipe_is_a_gate_of_its_own(built: Path) -> None:
    path = built / MANIFESTS["lower"]
    data = json.loads(path.read_text())
    data["parity"]["min_cosine"] = 0.5
    path.write_text(json.dumps(data))
    with pytest.raises(GateFailed, match="lower differs"):
        verdict(check(built))
    assert CliRunner().invoke(main, ["check", str(built)]).exit_code == 3


def test_a_stage_made_from_something_older_is_found(built: Path) -> None:
    path = built / MANIFESTS["fuse"]
    data = json.loads(path.read_text())
    record = next(record for record in data["inputs"] if record["path"] == "export.onnx")
    record["sha256"] = "0" * 64
    path.write_text(json.dumps(data))
    assert any("export.onnx is newer" in problem for problem in problems(built))


def test_a_folder_without_a_build_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="holds no build"):
        check(tmp_path)
    with pytest.raises(BadInput, match="holds no build"):
        inspect_folder(tmp_path)


def test_inspect_counts_what_onnx_itself_counts(real_build: BuildResult) -> None:
    path = real_build.folder / FUSED
    report = inspect_graph(path)
    proto = onnx.load(path, load_external_data=False)
    expected = Counter(f"{n.domain}::{n.op_type}" if n.domain else n.op_type for n in proto.graph.node)
    assert dict(report.operators) == dict(expected)
    assert [row.name for row in report.inputs] == [value.name for value in proto.graph.input]
    assert [row.name for row in report.outputs] == [value.name for value in proto.graph.output]
    assert report.weights == len(proto.graph.initializer)
    arrays = [onnx.numpy_helper.to_array(t, str(path.parent)) for t in proto.graph.initializer]
    assert report.weight_bytes == sum(array.nbytes for array in arrays)


def test_inspect_shows_tables_and_json(real_build: BuildResult) -> None:
    shown = CliRunner().invoke(main, ["inspect", str(real_build.folder)])
    assert shown.exit_code == 0, shown.output
    for words in ("slipway::PagedAttention", "input_ids", "cosine 1.0000", "bytes of weights"):
        assert words in shown.stdout
    as_json = CliRunner().invoke(main, ["inspect", str(real_build.folder / FUSED), "--json"])
    assert json.loads(as_json.stdout)["operators"]["slipway::PagedAttention"] == 2
    one = CliRunner().invoke(main, ["inspect", str(real_build.folder / FUSED)])
    assert "[tokens]" in one.stdout


def test_doctor_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {row.what: row for row in diagnose()}
    assert rows["Python"].works
    assert rows["package torch"].works
    assert rows["target onnxruntime"].works
    assert all(row.remedy for row in rows.values() if not row.works)
    monkeypatch.setenv("CXX", "no-such-compiler")
    plugins.cpu.build.library_path.__globals__["_library"].cache_clear()
    rows = {row.what: row for row in diagnose()}
    assert not rows["C++ compiler"].works
    assert "install g++" in rows["C++ compiler"].remedy
    assert CliRunner().invoke(main, ["doctor"]).exit_code == 0


def test_doctor_says_whether_cuda_kernels_can_be_compiled(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    nvcc = tmp_path / "nvcc"
    nvcc.write_text('#!/bin/sh\necho "Cuda compilation tools, release 13.0, V13.0.88"\n')
    nvcc.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    rows = {row.what: row for row in diagnose()}
    assert rows["CUDA compiler"].found == f"nvcc 13.0.88 ({nvcc})"
    nvcc.unlink()
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.setattr(plugins.cuda.nvcc, "STANDARD_PLACE", tmp_path)
    row = {row.what: row for row in diagnose()}["CUDA compiler"]
    assert row.works
    assert "none; only `make plugins` asks for one" in row.found
    assert "set CUDA_HOME" in row.found


def test_clean_removes_what_slipway_made_and_nothing_else(built: Path) -> None:
    (built / "notes.txt").write_text("mine")
    assert clean(built, print) > 0
    assert [path.name for path in built.iterdir()] == ["notes.txt"]
    with pytest.raises(BadInput, match="did not make"):
        clean(built, print)


def test_clean_removes_the_folder(built: Path) -> None:
    result = CliRunner().invoke(main, ["clean", str(built)])
    assert result.exit_code == 0, result.output
    assert "freed" in result.stdout
    assert not built.exists()


def test_bench_measures_every_rate(real_build: BuildResult) -> None:
    result = CliRunner().invoke(main, ["bench", str(real_build.folder), "--threads", "1", "--json"])
    assert result.exit_code == 0, result.output
    rates = json.loads(result.stdout)["rates"]
    assert [rate["what"] for rate in rates] == [
        "prefill of 62",
        "decode, 1 streams from 32",
        "decode, 16 streams from 32",
    ]
    assert all(rate["value"] > 0 and 0 < rate["loop_share"] < 1 for rate in rates)
