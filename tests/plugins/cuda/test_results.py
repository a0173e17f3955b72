"""The results of `make gpu-check`: how they are printed, and which files are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from model_repo.runtime.errors import BadInput
from plugins.cuda import check, check_processes, results
from plugins.cuda.results import GoalResult, Measurement, Results, SanitizerReport


def test_measurements_are_printed_with_their_goals(capsys: pytest.CaptureFixture[str]) -> None:
    goals = (
        GoalResult("of copy bandwidth", 0.85, False, 0.9, True),
        GoalResult("us", 60, True, 70.0, False),
        GoalResult("times the speed of FlashInfer", 1.0, False, None, None),
    )
    measured = Measurement(
        "toy", "64 MiB", 20.0, 0.01, True, 2_000_000, 0, goals, {"torch": 30.0, "other": "none: why"}
    )
    found = Results(
        date="2030-01-02T00:00:00+00:00",
        commit="abc",
        gpu=check.emulated_gpu(),
        versions={},
        build={},
        operators=("toy",),
        checks=(check_processes.problem("toy", "odd", "is wrong"),),
        sanitizer=(SanitizerReport("toy", "racecheck", "errors", "a race"),),
        ceilings={"bf16 matmul, TFLOP/s": 700.0},
        measurements=(measured,),
        dropped=("toy: one case",),
        seconds={"build": 60.0},
        verdict="wrong",
    )
    check.print_results(found)
    printed = capsys.readouterr().out
    rows = [" ".join(line.split()) for line in printed.splitlines()]
    assert "toy 1 1 0 errors" in rows
    assert "toy 64 MiB 20 100 0 30 none" in rows
    assert "toy 64 MiB 0.9 at least 0.85 of copy bandwidth reached" in rows
    assert "toy 64 MiB 70 at most 60 us MISSED" in rows
    assert "toy 64 MiB at least 1 times the speed of FlashInfer not measured" in rows
    assert "ceilings: bf16 matmul, TFLOP/s 700" in rows
    assert "left out: toy: one case" in rows
    assert "WRONG toy, odd: is wrong" in rows
    assert "WRONG toy, racecheck:" in rows


def test_foreign_files_are_refused(tmp_path: Path) -> None:
    for text, words in (
        ("{}", "is not a result"),
        ('{"schema": 99}', "schema 99"),
        ("no json", "is not a result"),
    ):
        path = tmp_path / "x.json"
        path.write_text(text)
        with pytest.raises(BadInput, match=words):
            results.read(path)
