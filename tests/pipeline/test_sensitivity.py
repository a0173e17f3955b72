"""`slipway sensitivity` on a real build: tables, files, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from model_repo.runtime.errors import BadInput
from pipeline import BuildResult
from pipeline.cli.sensitivity import command
from pipeline.sensitivity import PRECISIONS, Budget


def run(*arguments: str) -> str:
    result = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_it_measures_chooses_and_writes_what_the_next_build_reads(
    real_build: BuildResult, tmp_path: Path
) -> None:
    layers, report, svg = tmp_path / "layers.json", tmp_path / "report.json", tmp_path / "pareto.svg"
    files = ["--layers", str(layers), "--report", str(report), "--picture", str(svg)]
    output = run(str(real_build.folder), "--budget-share", "0.21", "--tokens", "200", *files)
    found = json.loads(report.read_text())
    chosen = json.loads(layers.read_text())
    assert chosen == found["chosen"]["precisions"]
    assert set(chosen.values()) <= set(PRECISIONS)
    assert len(set(chosen.values())) > 1
    assert all(name in output for name in chosen)
    floats = found["uniform"]["fp32"]
    assert floats["loss"] == 0
    assert found["chosen"]["num_bytes"] <= 0.21 * floats["bytes"]
    assert 0 < found["chosen"]["measured_loss"] < found["uniform"]["int4"]["loss"]
    assert "<svg" in svg.read_text()


def test_a_budget_of_loss_takes_the_fewest_bytes(real_build: BuildResult) -> None:
    def ask(*more: str) -> dict:
        return json.loads(run(str(real_build.folder), "--tokens", "100", "--json", *more))

    loose, tight = ask("--max-loss", "10"), ask("--max-loss", "1e-12")
    assert set(loose["chosen"]["precisions"].values()) == {"int4"}
    assert set(tight["chosen"]["precisions"].values()) == {"fp32"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tokens", "50"], "give one budget"),
        (["--budget-share", "0.2", "--max-loss", "1"], "give one budget"),
        (["--budget-share", "-1"], "above zero"),
        (["--budget-share", "0.01", "--tokens", "50"], "too small"),
        (["--budget-share", "0.2", "--precision", "int4"], "leaves nothing to choose"),
        (["--budget-share", "0.2", "--precision", "fp8", "--precision", "int4"], "'fp8' is not measured"),
        (["--budget-share", "0.2", "--data", "nowhere.txt"], "nowhere.txt"),
    ],
)
def test_what_cannot_be_is_refused(real_build: BuildResult, arguments: list[str], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        CliRunner().invoke(command, [str(real_build.folder), *arguments], catch_exceptions=False)


def test_a_budget_that_is_not_a_number_is_refused() -> None:
    with pytest.raises(BadInput, match="above zero"):
        Budget(share=float("nan"))
