"""Builds, checks and measures the kernels on the GPU that is here: `make gpu-check`, `python -m plugins.cuda.check`.

Then the runtime on that GPU, over graphs that are walked with torch, and where TensorRT is installed over its engine of
the demo (`check_engines.py`). Needs nvcc, and a Python with numpy and a CUDA build of torch; nothing else of ours. It
ends within its budget: what it had no time for is listed. Exit code 3 when a kernel or an engine is wrong, or a kernel
was not run. The results are a JSON file in plugins/bench/results/.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from model_repo.runtime.errors import BadInput, SlipwayError
from plugins.console import print_table

from . import results
from .build import LIBRARY_NAME, RECORD_NAME, build, print_build
from .case import Scale
from .check_engines import DESCRIBED, print_engines, tensorrt_demo, walk
from .check_processes import (
    ROOT,
    SANITIZERS,
    Run,
    check_module,
    end_all,
    finished,
    measure,
    modules_of_checks,
    sanitize,
)
from .library import Library
from .nvcc import machine_architecture, parse_architectures
from .results import Gpu, Results

BUDGET_SECONDS = 450.0
BENCHMARK_SECONDS = 130.0
"""What the benchmarks get of the budget, at least, when they are asked for."""

WALK_SECONDS = 90.0
"""What walked graphs get of the budget, at most."""

TENSORRT_SECONDS = 150.0
"""What the demo gets of the budget where TensorRT is installed, at most; elsewhere it takes a second."""


def gpu_here() -> Gpu:
    """The first GPU, as torch sees it. Raises BadInput when it sees none."""
    import torch

    if not torch.cuda.is_available():
        raise BadInput(
            f"torch {torch.__version__} of {sys.executable} sees no GPU; run this where there is one, with a CUDA "
            "build of torch (make gpu-check GPU_PYTHON=...)"
        )
    properties = torch.cuda.get_device_properties(0)
    program = shutil.which("nvidia-smi")
    query = [str(program), "--query-gpu=driver_version", "--format=csv,noheader"]
    code, driver = finished(query, 30) if program else (1, "")
    return Gpu(
        properties.name,
        properties.major * 10 + properties.minor,
        properties.multi_processor_count,
        properties.L2_cache_size,
        properties.total_memory,
        "unknown" if code else driver,
    )


def emulated_gpu() -> Gpu:
    """What stands for the chip when the emulated library runs on the CPU."""
    return Gpu("emulated", 80, 3, 0, 0, "none")


def commit_here() -> str:
    """The commit of this checkout, "+" after it when files differ; "unknown" outside a repository."""
    git = ["git", "-C", str(ROOT)]
    code, commit = finished([*git, "rev-parse", "--short=10", "HEAD"], 10) if shutil.which("git") else (1, "")
    if code:
        return "unknown"
    changed = finished([*git, "status", "--porcelain", "--untracked-files=no"], 30)[1]
    return commit + ("+" if changed else "")


def _library(given: argparse.Namespace, gpu: Gpu) -> tuple[Path, dict[str, Any]]:
    if given.library:
        record = given.library.parent / RECORD_NAME
        known = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}
        return given.library.resolve(), known
    chip = machine_architecture(*divmod(gpu.compute_capability, 10))
    asked = (chip,) if given.arch == "auto" else parse_architectures(given.arch)
    made = build(asked, jobs=given.jobs)
    print_build(made)
    return made.library, made.record()


def check(given: argparse.Namespace) -> Results:
    """Everything, in order. Raises BadInput when something that is needed is not there."""
    started = time.perf_counter()
    seconds: dict[str, float] = {}
    gpu = emulated_gpu() if given.device == "cpu" else gpu_here()
    library, record = _library(given, gpu)
    seconds["build"] = time.perf_counter() - started
    info = Library(library).info
    operators = tuple(given.operators.split(",")) if given.operators else None
    if unknown := set(operators or ()) - set(info["operators"]):
        raise BadInput(f"{LIBRARY_NAME} has no operators {sorted(unknown)}; it has {info['operators']}")
    modules = given.modules.split(",") if given.modules else modules_of_checks()
    with tempfile.TemporaryDirectory() as scratch:
        end = started + given.budget
        later = (0.0 if given.no_bench else BENCHMARK_SECONDS) + (0.0 if given.no_engines else WALK_SECONDS)
        checks_end = end - min(later, 0.6 * given.budget)
        run = Run(library, given.device, given.seed, checks_end, Path(scratch), operators)
        workers = given.jobs or max(1, min(8, (os.cpu_count() or 1) // 2))
        with ThreadPoolExecutor(max_workers=workers) as pool:
            jobs = [pool.submit(check_module, run, module, given.scale) for module in modules]
            program = None if given.no_sanitizer else shutil.which("compute-sanitizer")
            if program is not None:
                jobs += [pool.submit(sanitize, run, program, m, tool) for m in modules for tool in SANITIZERS]
            else:
                run.dropped.append(
                    "compute-sanitizer: " + ("not asked for" if given.no_sanitizer else "not here")
                )
            try:
                for job in jobs:
                    job.result()
            except BaseException:
                run.deadline = 0.0
                pool.shutdown(wait=False, cancel_futures=True)
                end_all()
                raise
        seconds["checks"] = time.perf_counter() - started - seconds["build"]
        run.deadline = end
        if not given.no_engines:
            walk(run, WALK_SECONDS, given.graph)
            tensorrt_demo(run, TENSORRT_SECONDS)
        seconds["engines"] = time.perf_counter() - started - sum(seconds.values())
        ceilings, measurements = ({}, []) if given.no_bench else measure(run)
        seconds["benchmarks"] = time.perf_counter() - started - sum(seconds.values())
    run.checks.sort(key=lambda entry: (entry["operator"], entry["case"]))
    ran = {entry["operator"] for entry in run.checks}
    missing = [operator for operator in operators or info["operators"] if operator not in ran]
    run.dropped += [f"{operator}: no case ran" for operator in missing]
    return Results(
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        commit=given.commit or commit_here(),
        gpu=gpu,
        versions={"slipway": info["version"], "python": sys.version.split()[0], **_torch_versions()},
        build=record,
        operators=tuple(info["operators"]),
        checks=tuple(run.checks),
        sanitizer=tuple(sorted(run.sanitizer, key=lambda report: (report.operator, report.tool))),
        ceilings=ceilings,
        measurements=tuple(measurements),
        dropped=tuple(run.dropped),
        seconds={name: round(value, 1) for name, value in seconds.items()},
        verdict=results.verdict(run.checks, run.sanitizer, run.engines, complete=not missing),
        engines=tuple(run.engines),
        loops=tuple(run.loops),
    )


def _torch_versions() -> dict[str, str]:
    import torch

    return {"torch": torch.__version__, "cuda": str(torch.version.cuda)}


def print_results(found: Results) -> None:
    """Tables: operators, what is wrong, benchmarks, what was left out. The short ones last."""
    rows = []
    for operator in found.operators:
        mine = [entry for entry in found.checks if entry["operator"] == operator]
        worst = max((e for entry in mine for e in entry["errors"].values() if e is not None), default=None)
        tools = {s.tool: s.verdict for s in found.sanitizer if s.operator == operator}
        wrong = sum(bool(entry["problems"]) for entry in mine)
        repeated = sum(entry["repetitions"] for entry in mine)
        rows.append(
            (operator, len(mine), wrong, worst, repeated, *(tools.get(tool, "") for tool in SANITIZERS))
        )
    columns = ("operator", "cases", "wrong", "largest error", "repetitions", *SANITIZERS)
    print_table(f"Checks on {found.gpu.name}", columns, rows)
    if found.measurements:
        print_measurements(found)
    print_engines(found.engines, found.loops)
    for words in found.dropped:
        print(f"left out: {words}")
    for entry in found.checks:
        for words in entry["problems"]:
            print(f"WRONG {entry['operator']}, {entry['case']}: {words}")
    for report in found.sanitizer:
        if report.verdict == "errors":
            print(f"WRONG {report.operator}, {report.tool}:\n{report.words}")
    spent = ", ".join(f"{name} {value:.0f} s" for name, value in found.seconds.items())
    print(f"{found.verdict}: {len(found.checks)} cases ({spent})")


def print_measurements(found: Results) -> None:
    """The benchmarks' tables: times with baselines, then goals."""
    names = list(dict.fromkeys(name for m in found.measurements for name in m.baselines))
    rows: list[tuple[object, ...]] = []
    for m in found.measurements:
        times = [_time(m.baselines.get(name)) for name in names]
        rate = m.operations / m.microseconds / 1e6
        rows.append((m.operator, m.case, m.microseconds, m.bytes_moved / m.microseconds / 1e3, rate, *times))
    print_table(
        "Benchmarks", ("operator", "case", "us", "GB/s", "TFLOP/s", *(f"{n}, us" for n in names)), rows
    )
    goals: list[tuple[object, ...]] = []
    for m in found.measurements:
        for goal in m.goals:
            bound = f"at {'most' if goal.at_most else 'least'} {goal.bound:g}"
            verdict = {None: "not measured", True: "reached", False: "MISSED"}[goal.reached]
            goals.append((m.operator, m.case, goal.achieved, bound, goal.unit, verdict))
    print_table("Goals", ("operator", "case", "achieved", "goal", "", ""), goals)
    print("ceilings: " + ", ".join(f"{name} {value:.4g}" for name, value in found.ceilings.items()))


def _time(baseline: float | str | None) -> float | str | None:
    return "none" if isinstance(baseline, str) else baseline


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry of `python -m plugins.cuda.check`. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m plugins.cuda.check", description=__doc__.splitlines()[0])
    parser.add_argument("--arch", default="auto", help="default: the chip's; else as for plugins.cuda.build")
    parser.add_argument("--operators", help="only these, separated by commas")
    parser.add_argument("--modules", help="modules with cases, separated by commas; default: plugins/checks")
    parser.add_argument("--no-bench", action="store_true", help="no benchmarks")
    parser.add_argument("--no-engines", action="store_true", help="no walked graphs, and no TensorRT")
    parser.add_argument(
        "--graph",
        type=Path,
        default=DESCRIBED if DESCRIBED.is_dir() else None,
        help="a described graph that is walked too (plugins.graph_walk.onnx_file); default: build/walk, if there",
    )
    parser.add_argument("--no-sanitizer", action="store_true", help="no compute-sanitizer")
    parser.add_argument("--budget", type=float, default=BUDGET_SECONDS, help="seconds; default: %(default)g")
    parser.add_argument("--scale", choices=[s.value for s in Scale], default=Scale.FULL.value)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, help="processes side by side; default: by the number of cores")
    parser.add_argument("--library", type=Path, help="check this library; default: build it")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: an emulated library")
    parser.add_argument("--output", type=Path, default=results.FOLDER, help="folder of the results")
    parser.add_argument("--commit", help="name of what is checked; default: git's")
    given = parser.parse_args(arguments)
    try:
        found = check(given)
        path = found.write(given.output)
    except SlipwayError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print_results(found)
    print(path)
    return 0 if found.verdict == "right" else 3


if __name__ == "__main__":
    sys.exit(main())
