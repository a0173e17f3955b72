"""Whole engines on the GPU that is here: graphs that are walked with torch, and TensorRT's where it is installed."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from plugins.console import print_table

from .check_processes import ROOT, Run, finished, lines_of
from .results import EngineReport, LoopMeasurement

DESCRIBED = ROOT / "build" / "walk"
"""Where a described graph is looked for: that of `python -m plugins.graph_walk.onnx_file GRAPH.onnx build/walk`."""

SLIPWAY = "from pipeline.cli import main; main()"
PROMPT, NEW_TOKENS = "The ship", 32
LEAST_SECONDS = 10.0
TENSORRT = "TensorRT, demo"


def walk(run: Run, seconds: float, graph: Path | None) -> None:
    """The runtime over walked graphs, judged and measured, in a process of its own. graph: a described one, or None."""
    if min(seconds, run.remaining()) < LEAST_SECONDS:
        run.dropped.append("walked graphs: all of them, for time")
        return
    seconds = min(seconds, run.remaining())
    report = run.scratch / "walk.jsonl"
    command = [
        sys.executable,
        "-m",
        "plugins.graph_walk.check",
        "--device",
        run.device,
        "--library",
        str(run.library),
    ]
    command += ["--seconds", f"{seconds - 5:.0f}", "--report", str(report)]
    command += ["--graph", str(graph)] if graph is not None else []
    command += ["--tiny"] if run.device == "cpu" else []
    code, words = finished(command, seconds + 20)
    lines = lines_of(report)
    run.engines += [EngineReport(**line["engine"]) for line in lines if "engine" in line]
    run.loops += [LoopMeasurement(**line["loop"]) for line in lines if "loop" in line]
    run.dropped += [line["dropped"] for line in lines if "dropped" in line]
    if code != 0 and not any(report.verdict == "wrong" for report in run.engines):
        # A device that fails takes the process with it: that is a fault of what ran.
        run.engines.append(EngineReport("walked graphs", "wrong", f"code {code}: {words}"))


def tensorrt_demo(run: Run, seconds: float) -> None:
    """Builds the demo for TensorRT and completes a prompt with it, where a Python has TensorRT and what a build needs.

    The tokens are judged by the lowered graph in float32 on the CPU.
    """
    python = tensorrt_python()
    if python is None:
        words = "no Python here (.venv, or the one that runs this) imports tensorrt and slipway"
        run.engines.append(EngineReport(TENSORRT, "not run", words))
        return
    folder, described = run.scratch / "demo", run.scratch / "demo-walk"
    completed: list[str] = []
    for what, arguments in (
        ("build", ["-c", SLIPWAY, "build", "demo", "--target", "tensorrt", "--output", str(folder)]),
        (
            "generate",
            [
                *("-c", SLIPWAY, "generate", str(folder), "--prompt", PROMPT),
                *("--max-tokens", str(NEW_TOKENS), "--ignore-eos", "--json"),
            ],
        ),
        (
            "description",
            ["-m", "plugins.graph_walk.onnx_file", str(folder / "lower.tensorrt.onnx"), str(described)],
        ),
    ):
        left = min(seconds, run.remaining())
        if left < LEAST_SECONDS:
            run.engines.append(EngineReport(TENSORRT, "not run", f"no time was left for: {what}"))
            return
        code, words = finished([python, *arguments], left)
        if code != 0:
            run.engines.append(EngineReport(TENSORRT, "wrong", f"{what} ended with code {code}: {words}"))
            return
        completed.append(words)
    run.engines.append(_judged(completed[1], described))


def tensorrt_python() -> str | None:
    """A Python that imports tensorrt and the command line: the compile side's environment, else the one that runs."""
    for python in (ROOT / ".venv" / "bin" / "python", Path(sys.executable)):
        if (
            python.is_file()
            and finished([str(python), "-c", "import tensorrt, pipeline.cli, onnx_ir"], 60)[0] == 0
        ):
            return str(python)
    return None


def _judged(words: str, described: Path) -> EngineReport:
    """The verdict on what `generate --json` printed."""
    from plugins.graph_walk import description
    from plugins.graph_walk.check import MOST_REGRET
    from plugins.graph_walk.teacher import Teacher

    printed = [line for line in words.splitlines() if line.startswith("{") and '"token_ids"' in line]
    if not printed:
        return EngineReport(TENSORRT, "wrong", f"generate printed no tokens: {words}")
    completion = json.loads(printed[-1])
    worst = Teacher(description.read(described)).regret(completion["prompt_ids"], completion["token_ids"])
    said = (
        f"{len(completion['token_ids'])} tokens lie at most {worst:.2g} deviations below float32's likeliest ones "
        f"(allowed: {MOST_REGRET}): {PROMPT}{completion['text']}"
    )
    return EngineReport(TENSORRT, "right" if worst <= MOST_REGRET else "wrong", said)


def print_engines(engines: Sequence[EngineReport], loops: Sequence[LoopMeasurement]) -> None:
    """Two tables: whether engines are right, and how fast loops are."""
    if engines:
        print_table(
            "Engines",
            ("engine", "verdict", "what was seen"),
            [(e.engine, e.verdict, e.words) for e in engines],
        )
    if loops:
        columns = ("engine", "streams", "tokens/s", "step, us", "of it host, us", "transformers, tokens/s")
        rows = [
            (m.engine, m.streams, m.tokens_per_second, m.step_microseconds, m.host_microseconds, m.peer)
            for m in loops
        ]
        print_table("Engine loop", columns, rows)
