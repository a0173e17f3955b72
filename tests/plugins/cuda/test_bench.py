"""The benchmarks' arithmetic, and every case of them in small on the emulated library. No time is asserted."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
import torch

from plugins.bench.cuda import __main__ as driver
from plugins.bench.cuda.benchmark import Bench, Benchmark, Goal, Prepared
from plugins.bench.cuda.timing import Clock, Timing
from plugins.cuda.library import Library
from plugins.cuda.results import Measurement

CPU = torch.device("cpu")


class FixedClock(Clock):
    """Says what a test wants a call to have taken: the call's own answer, in microseconds."""

    def measure(self, calls: object) -> Timing:
        (call,) = calls  # type: ignore[misc]
        return Timing(float(call()), 0.01, True)


@pytest.fixture(name="bench")
def toy_bench(toy_library: Path) -> Bench:
    """100 GB/s of copies, 1 TFLOP/s of products."""
    bench = Bench(Library(toy_library), CPU)
    bench.clock = FixedClock(CPU)
    bench.ceilings.copy_bandwidth = lambda moved: 100e9  # type: ignore[method-assign]
    bench.ceilings.matmul_rate = lambda: 1e12  # type: ignore[method-assign]
    return bench


def judged(bench: Bench, goal: Goal, microseconds: float, **more: object) -> tuple[float | None, bool | None]:
    values = {"bytes_moved": 1_000_000, "operations": 40_000_000, **more}
    prepared = Prepared([lambda: microseconds], **values)  # type: ignore[arg-type]
    (result,) = bench.measure(Benchmark("toy", "case", lambda _: prepared, (goal,))).goals
    achieved = None if result.achieved is None else round(result.achieved, 6)
    return achieved, result.reached


def test_goals_are_shares_of_what_was_measured(bench: Bench) -> None:
    # 1 MB at 100 GB/s are 10 us, 40 MFLOP at 1 TFLOP/s are 40 us.
    assert judged(bench, Goal("copy bandwidth", 0.85), 12.5) == (0.8, False)
    assert judged(bench, Goal("copy bandwidth", 0.85), 10.0) == (1.0, True)
    assert judged(bench, Goal("matmul rate", 0.75), 50.0) == (0.8, True)
    assert judged(bench, Goal("microseconds", 60), 61.0) == (61.0, False)
    assert judged(bench, Goal("microseconds", 60), 59.0) == (59.0, True)
    assert judged(bench, Goal("floors", 1.15), 56.0) == (1.15, True)  # 1.15 * 40 + 10
    assert judged(bench, Goal("floors", 1.15), 60.0) == (1.25, False)


def test_goals_against_others(bench: Bench) -> None:
    def missing() -> list[object]:
        raise ModuleNotFoundError("No module named 'flashinfer'")

    baselines = {"flash": lambda: [lambda: 30.0], "cudnn": lambda: [lambda: 24.0], "flashinfer": missing}
    assert judged(bench, Goal("ahead of", 1.0), 20.0, baselines=baselines) == (1.2, True)
    assert judged(bench, Goal("ahead of", 1.0, "flash"), 40.0, baselines=baselines) == (0.75, False)
    assert judged(bench, Goal("ahead of", 1.0, "flashinfer"), 20.0, baselines=baselines) == (None, None)
    assert judged(bench, Goal("times faster than", 1.4, "bf16"), 10.0) == (None, None)
    bench.earlier["toy", "bf16"] = 15.0
    assert judged(bench, Goal("times faster than", 1.4, "bf16"), 10.0) == (1.5, True)
    prepared = Prepared([lambda: 1.0], 1, 1, baselines)
    measurement = bench.measure(Benchmark("toy", "case", lambda _: prepared))
    assert measurement.baselines == {
        "flash": 30.0,
        "cudnn": 24.0,
        "flashinfer": "none: ModuleNotFoundError: No module named 'flashinfer'",
    }


def test_lines_are_read_back(toy_library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver's report: a measurement, what cannot run and why, and the ceilings last."""

    def prepare(bench: Bench) -> Prepared:
        values = torch.ones(3, 17).half()
        call = bench.kernel("toy", {"input": values, "output": torch.empty_like(values)}, {"factor": 3})
        return Prepared([call], 204, 51, {"torch": lambda: [lambda: values * 3]})

    def refused(bench: Bench) -> Prepared:
        values = torch.ones(3, 13).half()
        bench.kernel("toy", {"input": values.float(), "output": values})
        raise AssertionError("was accepted")

    listed = [
        Benchmark("toy", "small", prepare, (Goal("copy bandwidth", 0.85), Goal("matmul rate", 0.75))),
        Benchmark("toy", "refused", refused),
        Benchmark("other", "any", prepare),
    ]
    monkeypatch.setattr(driver, "all_benchmarks", lambda tiny: listed)
    report = tmp_path / "report.jsonl"
    assert driver.main(["--library", str(toy_library), "--device", "cpu", "--report", str(report)]) == 0
    lines = [json.loads(line) for line in report.read_text().splitlines()]
    measured = Measurement.from_record(lines[0]["measurement"])
    assert (measured.operator, measured.case, measured.replayed) == ("toy", "small", False)
    assert all(goal.achieved is not None and goal.achieved > 0 for goal in measured.goals)
    assert isinstance(measured.baselines["torch"], float)
    assert lines[1]["dropped"].startswith("benchmark toy, refused: toy: input is float32")
    assert lines[2]["dropped"] == "benchmark other, any: the library has no such operator"
    assert {name.split(",")[0].split(" of")[0] for name in lines[3]["ceilings"]} == {"copy", "bf16 matmul"}


NEED_A_GPU = ("FlashInfer", "torch flash", "torch cuDNN", "torch efficient", "torch int4")
"""Baselines that may say no on a CPU."""


@pytest.mark.parametrize(
    "benchmark", list(driver.all_benchmarks(tiny=True)), ids=lambda b: f"{b.operator}: {b.case}"
)
def test_every_case_is_taken_by_its_kernel(
    benchmark: Benchmark, emulated_library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In small: tensors and attributes are accepted, the call runs, and so do the baselines."""
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    bench = Bench(Library(emulated_library), CPU)
    prepared = benchmark.prepare(bench)
    for call in prepared.calls:
        call()
    assert prepared.bytes_moved > 0
    assert prepared.operations >= 0
    for name, make in prepared.baselines.items():
        with contextlib.suppress(*(ImportError, RuntimeError) if name in NEED_A_GPU else ()):
            for call in make():
                call()
