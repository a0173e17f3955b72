"""The engines of `make gpu-check` without a GPU: walked graphs on the CPU, and a TensorRT that is pretended."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from plugins.cuda import check_engines, check_processes, results
from plugins.cuda.check_engines import TENSORRT, print_engines, tensorrt_demo, walk
from plugins.cuda.check_processes import Run
from plugins.cuda.results import EngineReport, LoopMeasurement
from plugins.graph_walk import check as walk_check
from plugins.graph_walk.invented import TINY, invented
from plugins.graph_walk.teacher import Teacher

PROMPT = [5, 17, 9]


@pytest.fixture(name="run")
def run_of_a_minute(tmp_path: Path) -> Run:
    return Run(tmp_path / "library.so", "cpu", 1, time.perf_counter() + 60, tmp_path, None)


def test_a_dry_run_on_the_cpu(emulated_library: Path, tmp_path: Path) -> None:
    """The whole program, with one operator's quick cases: kernels, the loop over a walked graph, tokens a second."""
    command = [
        sys.executable,
        "-m",
        "plugins.cuda.check",
        "--library",
        str(emulated_library),
        "--device",
        "cpu",
    ]
    command += ["--modules", "plugins.checks.block_copy", "--operators", "block_copy", "--scale", "quick"]
    command += ["--no-bench", "--no-sanitizer", "--jobs", "1", "--output", str(tmp_path), "--commit", "abc"]
    environment = {**os.environ, "SLIPWAY_EMULATED_COMPUTE_CAPABILITY": "89", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=check_processes.ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (found,) = results.read_all(tmp_path)
    assert found.verdict == "right"
    walked, tensorrt = found.engines
    assert (walked.engine, walked.verdict) == ("tiny, random weights, on the CPU", "right")
    assert walked.words.startswith("12 tokens of 4 prompts lie at most ")
    assert (tensorrt.engine, tensorrt.verdict) == (TENSORRT, "not run")
    assert [(loop.streams, loop.host_microseconds) for loop in found.loops] == [(1, None), (2, None)]
    assert all(loop.tokens_per_second > 0 for loop in found.loops)
    assert {type(loop.peer) for loop in found.loops} == {float}  # transformers is here
    assert "Engine loop" in done.stdout


def test_a_walk_that_dies_is_wrong(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def child(command: Sequence[str], seconds: float) -> tuple[int, str]:
        report = Path(command[command.index("--report") + 1])
        line = {"engine": {"engine": "first", "verdict": "right", "words": ""}}
        report.write_text(json.dumps(line) + '\n{"engine": {"eng')
        assert command[command.index("--graph") + 1] == "described"
        return -11, "Segmentation fault"

    monkeypatch.setattr(check_engines, "finished", child)
    walk(run, 90, Path("described"))
    assert run.engines == [
        EngineReport("first", "right"),
        EngineReport("walked graphs", "wrong", "code -11: Segmentation fault"),
    ]
    assert results.verdict([], [], run.engines, complete=True) == "wrong"


def test_no_time_is_said(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run.deadline = time.perf_counter() + 5
    walk(run, 90, None)
    assert run.dropped == ["walked graphs: all of them, for time"]
    monkeypatch.setattr(check_engines, "tensorrt_python", lambda: "python")
    tensorrt_demo(run, 90)
    assert run.engines == [EngineReport(TENSORRT, "not run", "no time was left for: build")]
    assert results.verdict([], [], run.engines, complete=True) == "right"


class PretendedTensorRT:
    """Processes of a machine with TensorRT: what they were asked, and tokens that `generate` prints."""

    def __init__(self, tokens: Sequence[int], fails: str = "") -> None:
        self.tokens = list(tokens)
        self.fails = fails
        self.commands: list[list[str]] = []

    def __call__(self, command: Sequence[str], seconds: float) -> tuple[int, str]:
        self.commands.append(list(command))
        arguments = [word for word in command[1:] if word not in ("-c", "-m", check_engines.SLIPWAY)]
        if arguments[0] == self.fails:
            return 2, "error: what it said"
        if arguments[0] == "generate":
            printed = {"prompt_ids": PROMPT, "token_ids": self.tokens, "text": " sails"}
            return 0, f"a warning\n{json.dumps(printed)}"
        if arguments[0] == "plugins.graph_walk.onnx_file":
            invented(TINY).write(Path(arguments[2]))
        return 0, ""


def greedy_tokens(count: int) -> list[int]:
    teacher = Teacher(invented(TINY))
    tokens: list[int] = []
    for _ in range(count):
        tokens.append(int(teacher.logits([*PROMPT, *tokens], 1).argmax()))
    return tokens


def test_tensorrts_demo_is_built_served_and_judged(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = PretendedTensorRT(greedy_tokens(4))
    monkeypatch.setattr(check_engines, "finished", machine)
    tensorrt_demo(run, 90)
    (report,) = run.engines
    assert (report.engine, report.verdict) == (TENSORRT, "right")
    assert report.words == (
        "4 tokens lie at most 0 deviations below float32's likeliest ones (allowed: 0.1): The ship sails"
    )
    looked, build, generate, described = machine.commands
    assert "import tensorrt" in looked[-1]
    folder = str(run.scratch / "demo")
    assert build[3:] == ["build", "demo", "--target", "tensorrt", "--output", folder]
    assert generate[3:7] == ["generate", folder, "--prompt", "The ship"]
    assert described[3] == f"{folder}/lower.tensorrt.onnx"


@pytest.mark.parametrize(
    ("machine", "words"),
    [
        (PretendedTensorRT([1, 2, 3]), r"3 tokens lie at most [1-9].* \(allowed: 0.1\)"),
        (PretendedTensorRT([], "build"), "build ended with code 2: error: what it said"),
        (PretendedTensorRT([], "generate"), "generate ended with code 2: error: what it said"),
    ],
    ids=["other tokens", "no build", "no tokens"],
)
def test_what_is_wrong_with_tensorrts_demo_is_said(
    run: Run, machine: PretendedTensorRT, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check_engines, "finished", machine)
    tensorrt_demo(run, 90)
    (report,) = run.engines
    assert report.verdict == "wrong"
    assert re.match(words, report.words)


def test_without_tensorrt_that_is_said(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_engines, "finished", lambda command, seconds: (1, "ModuleNotFoundError"))
    tensorrt_demo(run, 90)
    (report,) = run.engines
    assert report == EngineReport(
        TENSORRT, "not run", "no Python here (.venv, or the one that runs this) imports tensorrt and slipway"
    )


def test_wrong_tokens_of_a_walk_end_it_with_code_3(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Teacher, "regret", lambda self, prompt, chosen: 2.5)
    monkeypatch.setattr(walk_check, "generate_rates", lambda *_: iter([(1, "none"), (2, "none")]))
    assert walk_check.main(["--device", "cpu", "--tiny"]) == 3
    assert "2.5 deviations below" in capsys.readouterr().out


def test_a_walk_without_time_begins_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert walk_check.main(["--device", "cpu", "--tiny", "--seconds", "0"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "left out: tiny, random weights, on the CPU, for time",
        "left out: tiny, random weights: tokens a second, for time",
    ]


def test_engines_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    engines = [
        EngineReport("walk, CUDA graphs", "right", "all of it"),
        EngineReport(TENSORRT, "not run", "why"),
    ]
    loops = [
        LoopMeasurement("walk", 1, 500.0, 2000.0, 150.0, 40.0),
        LoopMeasurement("walk", 256, 40000.0, 5000.0, 800.0, "transformers is not installed"),
    ]
    print_engines(engines, loops)
    rows = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "walk, CUDA graphs right all of it" in rows
    assert "walk 1 500 2000 150 40" in rows
    assert "walk 256 4e+04 5000 800 transformers is not installed" in rows
