"""Export time and memory against other exporters: `python -m bench.export --optimum PYTHON`.

From a float32 checkpoint to the graph and its weights on the disk, nothing compared afterwards. Each export runs in a
process of its own; the exporters take turns, each round in another order. PYTHON is the interpreter of an environment
with optimum: `python3.11 -m venv DIR; DIR/bin/pip install torch==2.13.0 "optimum-onnx[onnxruntime]"`.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

from rich.progress import Progress

from bench.export_models import MODELS, Model
from bench.memory import MemoryWatch
from bench.table import report

RUN = Path(__file__).with_name("export_run.py")
ROOT = RUN.parent.parent
OURS, TORCH, OPTIMUM = "slipway", "torch.onnx", "optimum"
MEASURES = {"export": "s", "cpu": "CPU s", "anonymous": "GiB", "whole": "GiB"}
BEGIN, END = "<!-- python -m bench.export -->", "<!-- end -->"
"""Lines of a page that the table stands between."""


def measure(exporter: str, python: str, model: Model, checkpoint: Path) -> dict[str, float]:
    """Seconds of the export without imports, CPU seconds of the whole process, and its peak memory in GiB."""
    with tempfile.TemporaryDirectory(dir=checkpoint.parent) as folder:
        command = [python, "-P", str(RUN), exporter, str(checkpoint), folder, model.task]
        environment = {**os.environ, "PYTHONPATH": "" if exporter == OPTIMUM else str(ROOT)}
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )
        with MemoryWatch(process.pid) as watch:
            output, errors = process.communicate()
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if process.returncode:
        raise SystemExit(f"{exporter} ended with exit code {process.returncode}:\n{errors[-2000:]}")
    cpu = (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime)
    return {
        **json.loads(output.splitlines()[-1]),
        "cpu": cpu,
        "anonymous": max(sample.anonymous for sample in watch.samples) / 2**30,
        "whole": max(sample.whole for sample in watch.samples) / 2**30,
    }


def one_model(model: Model, checkpoint: Path, pythons: Mapping[str, str], rounds: int) -> dict[str, Any]:
    """Every round of every exporter, and how many times the faster of the others' median ours takes."""
    runs: dict[str, list[dict[str, float]]] = {exporter: [] for exporter in pythons}
    names = list(pythons)
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            runs[name].append(measure(name, pythons[name], model, checkpoint))
    others = [name for name in names if name != OURS]
    ratios = {
        key: median(run[key] for run in runs[OURS])
        / min(median(run[key] for run in runs[other]) for other in others)
        for key in MEASURES
    }
    return {"runs": runs, "ratio_to_the_best_of_the_others": ratios}


def rows_of(results: Mapping[str, Any]) -> list[list[str]]:
    """The table: a row a model and exporter."""
    rows = []
    for name, result in results.items():
        for exporter, runs in result["runs"].items():
            cells = [f"{median(run[key] for run in runs):.2f}" for key in MEASURES]
            if exporter == OURS:
                ratios = result["ratio_to_the_best_of_the_others"]
                cells = [f"{cell} ({ratios[key]:.2f}x)" for cell, key in zip(cells, MEASURES, strict=True)]
            rows.append([f"{name}, {exporter}", *cells])
    return rows


def write_table(results: Mapping[str, Any], page: Path) -> None:
    """Puts the table between the marks of a page. Raises ValueError when it has none."""
    before, mark, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not mark or not end:
        raise ValueError(f"{page} has no lines {BEGIN} and {END}")
    lines = [f"| model, exporter | {' | '.join(HEADINGS)} |", f"| --- |{' --- |' * len(HEADINGS)}"]
    lines += [f"| {' | '.join(row)} |" for row in rows_of(results)]
    page.write_text(f"{before}{mark}\n" + "\n".join(lines) + f"\n{end}{after}", encoding="utf-8")


HEADINGS = [f"{key}, {unit}" for key, unit in MEASURES.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--optimum", help="Python of an environment with optimum-onnx")
    parser.add_argument("--models", nargs="*", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path("build/bench"))
    parser.add_argument("--json", type=Path, default=Path("bench/results/export.json"))
    parser.add_argument("--page", type=Path, help="page of the documentation to put the table into")
    options = parser.parse_args()

    pythons = {OURS: sys.executable, TORCH: sys.executable}
    if options.optimum:
        pythons[OPTIMUM] = options.optimum
    results: dict[str, Any] = {}
    with Progress() as progress:
        task = progress.add_task("exporting", total=len(options.models))
        for name in options.models:
            checkpoint = MODELS[name].write(options.output / name.replace(" ", "-"))
            results[name] = one_model(MODELS[name], checkpoint, pythons, options.rounds)
            progress.advance(task)
    title = f"exports, median of {options.rounds}; in brackets: times the better of the others"
    report(title, ["", *HEADINGS], rows_of(results), results, options.json)
    if options.page:
        write_table(results, options.page)


if __name__ == "__main__":
    main()
