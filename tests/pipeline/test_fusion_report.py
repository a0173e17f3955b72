"""`inspect --fusion`: nodes and time of each rule on a real build of the tiny model."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

import pipeline.fusion_report
import pipeline.steps.comparing
from model_repo.runtime.errors import BadInput
from pipeline import BuildResult
from pipeline.cli import main
from pipeline.fuse import rule_names
from pipeline.fusion_report import FusionTable, inspect_fusion
from pipeline.inspect import inspect_graph
from pipeline.workspace import ENGINE, EXPORTED, FUSED


def files_of(folder: Path) -> dict[str, int]:
    return {
        str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()
    }


@pytest.fixture(scope="module")
def measured(real_build: BuildResult) -> FusionTable:
    before = files_of(real_build.folder)
    table = inspect_fusion(real_build.folder, rounds=1)
    assert files_of(real_build.folder) == before
    return table


def test_nodes_are_those_of_the_builds_own_graphs(real_build: BuildResult, measured: FusionTable) -> None:
    nodes = {name: inspect_graph(real_build.folder / name).nodes for name in (EXPORTED, FUSED, ENGINE)}
    assert (measured.nodes_before, measured.nodes_after, measured.engine_nodes) == (
        nodes[EXPORTED],
        nodes[FUSED],
        nodes[ENGINE],
    )
    assert measured.rules[0].nodes_before == nodes[EXPORTED]
    assert measured.rules[-1].nodes_after == nodes[FUSED]


def test_every_rule_has_a_row_and_those_that_matched_are_measured(measured: FusionTable) -> None:
    assert [row.rule for row in measured.rules] == list(rule_names())
    rows = {row.rule: row for row in measured.rules}
    for row in measured.rules:
        assert (row.time_ratio is None) == (row.engine_nodes_without is None) == (row.matched == 0)
        assert row.time_ratio is None or row.time_ratio > 0
    # Not skip_rms_norm: without it ONNX Runtime makes one node of the two by itself.
    for name in ("rotary", "qkv", "swiglu"):
        without = rows[name].engine_nodes_without
        assert without is not None
        assert without > measured.engine_nodes, name
    assert rows["conv_affine"].engine_nodes_without is None


def test_time_is_the_ratio_of_neighbouring_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    def run(session: str, *_: Any) -> None:
        order.append(session)
        time.sleep({"whole": 0.01, "other": 0.02}[session])

    monkeypatch.setattr(pipeline.steps.comparing, "run", run)
    workspace = SimpleNamespace(path=Path)
    context = SimpleNamespace(parity_inputs=list, facts=None, workspace=workspace)
    engines = [SimpleNamespace(session=name) for name in ("whole", "other")]
    ratio = pipeline.fusion_report._time_ratio(context, *engines, 4)  # type: ignore[arg-type]
    assert ratio == pytest.approx(0.5, abs=0.15)
    assert order == ["whole", "other", *["other", "whole", "whole", "other"] * 2]


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch, measured: FusionTable) -> None:
    """The command shows what was measured already."""
    monkeypatch.setattr(pipeline.fusion_report, "inspect_fusion", lambda folder: measured)


@pytest.mark.usefixtures("known")
def test_the_command_prints_a_table_and_json(measured: FusionTable) -> None:
    shown = CliRunner().invoke(main, ["inspect", "anywhere", "--fusion"])
    assert shown.exit_code == 0
    assert all(row.rule in shown.output for row in measured.rules)
    assert f"{measured.engine_nodes} in the engine" in " ".join(shown.output.split())
    plain = json.loads(CliRunner().invoke(main, ["inspect", "anywhere", "--fusion", "--json"]).stdout)
    assert plain == json.loads(json.dumps(measured.to_dict()))


def test_near_misses_are_counted_by_reason() -> None:
    from pipeline.fuse import NearMiss, RuleReport

    misses = (NearMiss("a", "x"), NearMiss("b", "y"), NearMiss("c", "y"))
    row = pipeline.fusion_report._row(RuleReport("qkv", 0, 9, 9, misses), None, None)
    assert row.near_misses == {"y": 2, "x": 1}
    assert row.near_miss_nodes == {"x": "a", "y": "b"}


@pytest.mark.parametrize("what", ["empty", "file"])
def test_what_is_no_build_is_refused(what: str, tmp_path: Path) -> None:
    path = tmp_path if what == "empty" else tmp_path / "graph.onnx"
    with pytest.raises(BadInput, match="holds no build; give a folder"):
        inspect_fusion(path)


def test_no_rounds_are_refused(real_build: BuildResult) -> None:
    with pytest.raises(BadInput, match="0 rounds"):
        inspect_fusion(real_build.folder, rounds=0)
