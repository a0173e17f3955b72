"""Builds, checks and measures the kernels on the GPU that is here: `make gpu-check`, `python -m plugins.cuda.check`.

Needs nvcc, and a Python with numpy and a CUDA build of torch; nothing else of ours. It ends within its budget: what it
had no time for is listed. Exit code 3 when a kernel is wrong, or was not run. The results are a JSON file in
plugins/bench/results/.
"""

from __future__ import annotations

import argparse
import json
import os
import pkgutil
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import plugins.checks
from model_repo.runtime.errors import BadInput, SlipwayError
from plugins.console import print_table

from . import results
from .build import LIBRARY_NAME, RECORD_NAME, build, print_build
from .case import Scale
from .check_operator import DEVICE_LOST
from .library import Library
from .nvcc import machine_architecture, parse_architectures
from .results import Gpu, Measurement, Results, SanitizerReport

ROOT = Path(plugins.__path__[0]).parent
BUDGET_SECONDS = 450.0
BENCHMARK_SECONDS = 150.0
"""What the benchmarks get of the budget, at least, when they are asked for."""

MOST_RESTARTS = 3
"""How often a module is taken up again after the case that took the device down."""

OUT_OF_TIME = -1
SANITIZER_ERRORS = 86
SANITIZER_SECONDS = 120.0
SANITIZERS = ("memcheck", "racecheck")


@dataclass
class Run:
    """What one run is about, and what it has seen so far."""

    library: Path
    device: str
    seed: int
    deadline: float
    scratch: Path
    operators: tuple[str, ...] | None
    checks: list[dict[str, Any]] = field(default_factory=list)
    sanitizer: list[SanitizerReport] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)

    def remaining(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - time.perf_counter()


def modules_of_checks() -> list[str]:
    """Modules of plugins/checks that hold cases."""
    path = plugins.checks.__path__
    return [f"plugins.checks.{entry.name}" for entry in pkgutil.iter_modules(path) if entry.name[0] != "_"]


def check_module(run: Run, module: str, scale: str) -> None:
    """Runs a module's cases in a process of its own, anew after a case that took the device down."""
    skip = 0
    for attempt in range(MOST_RESTARTS + 1):
        report = run.scratch / f"{module}-{attempt}.jsonl"
        seconds = run.remaining()
        if seconds <= 0:
            run.dropped.append(f"{module}: all of it, for time")
            return
        command = _child(run, module, report, scale, "--skip", str(skip), "--seconds", f"{seconds:.0f}")
        code, words = _finished(command, seconds + 30)
        lines = _lines(report)
        run.checks += [line["report"] for line in lines if "report" in line]
        run.dropped += [line["dropped"] for line in lines if "dropped" in line]
        if code == 0:
            return
        begun = [line for line in lines if "begin" in line]
        reported = sum("report" in line for line in lines)
        if not begun:
            run.checks.append(_problem(module, "all cases", f"ended with code {code} before any: {words}"))
            return
        if reported < len(begun):  # the process ended inside a case
            last = begun[-1]
            where = f"the process ended with code {code}: {words}"
            run.checks.append(_problem(last["operator"], last["case"], where))
        elif code == OUT_OF_TIME:
            run.dropped.append(f"{module}: all after {begun[-1]['case']}, for time")
            return
        elif code != DEVICE_LOST:
            # The next case could not be made: taking the module up again would end in the same place.
            run.checks.append(_problem(module, f"after {begun[-1]['case']}", f"code {code}: {words}"))
            return
        skip = begun[-1]["begin"] + 1
    run.dropped.append(f"{module}: all after {skip} cases: the device failed {MOST_RESTARTS + 1} times")


def sanitize(run: Run, program: str, module: str, tool: str) -> None:
    """The quick cases of a module under compute-sanitizer: every buffer an allocation of its own, no guards."""
    name = module.split(".")[-1]
    seconds = min(run.remaining(), SANITIZER_SECONDS)
    if seconds < 10:
        run.sanitizer.append(SanitizerReport(name, tool, "not run", "no time was left"))
        return
    report = run.scratch / f"{module}-{tool}.jsonl"
    quiet = ["--repetitions", "0", "--requests", "0", "--margin", "0", "--seconds", f"{seconds - 5:.0f}"]
    command = [
        program,
        f"--tool={tool}",
        f"--error-exitcode={SANITIZER_ERRORS}",
        "--kernel-name=kernel_substring=slipway",
        "--report-api-errors=no",
        "--print-limit=20",
        *_child(run, module, report, Scale.QUICK.value, *quiet),
    ]
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    code, words = _finished(command, seconds, environment)
    lines = _lines(report)
    operators = sorted({line["operator"] for line in lines if "operator" in line}) or [name]
    if code == SANITIZER_ERRORS:
        verdict = "errors"
    elif code == 0 and any("end" in line for line in lines):
        verdict, words = "clean", ""
    else:
        verdict = "not run"
        words = f"code {code}: {words}"
    run.sanitizer += [SanitizerReport(operator, tool, verdict, words) for operator in operators]


def measure(run: Run) -> tuple[dict[str, float], list[Measurement]]:
    """The benchmarks, in a process of their own: ceilings and measurements."""
    report = run.scratch / "benchmarks.jsonl"
    seconds = run.remaining()
    if seconds < 10:
        run.dropped.append("benchmarks: all of them, for time")
        return {}, []
    command = [sys.executable, "-m", "plugins.bench.cuda", "--library", str(run.library)]
    command += ["--device", run.device, "--report", str(report), "--seconds", f"{seconds - 5:.0f}"]
    if run.device == "cpu":
        command.append("--tiny")
    if run.operators:
        command += ["--operators", *run.operators]
    code, words = _finished(command, seconds + 20)
    lines = _lines(report)
    ceilings = {name: value for line in lines for name, value in line.get("ceilings", {}).items()}
    run.dropped += [line["dropped"] for line in lines if "dropped" in line]
    if code != 0:
        run.dropped.append(f"benchmarks after {len(lines)} lines: code {code}: {words}")
    return ceilings, [Measurement.from_record(line["measurement"]) for line in lines if "measurement" in line]


def _child(run: Run, module: str, report: Path, scale: str, *more: str) -> list[str]:
    command = [sys.executable, "-m", "plugins.cuda.check_operator", module]
    command += ["--library", str(run.library), "--device", run.device, "--report", str(report)]
    # The references are computed on the CPU; two modules take most of the time, and get most of the cores at the end.
    threads = max(2, (os.cpu_count() or 1) // 4)
    command += ["--scale", scale, "--seed", str(run.seed), "--threads", str(threads), *more]
    return [*command, "--operators", *run.operators] if run.operators else command


def _finished(
    command: Sequence[str], seconds: float, environment: Mapping[str, str] | None = None
) -> tuple[int, str]:
    """Exit code of a process, and the end of what it printed; OUT_OF_TIME when it did not end in time."""
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=max(1.0, seconds),
            check=False,
        )
    except subprocess.TimeoutExpired:
        return OUT_OF_TIME, f"no end within {seconds:.0f} s"
    words = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    return done.returncode, "\n".join(words[-15:])


def _lines(report: Path) -> list[dict[str, Any]]:
    """The whole lines of a report; one that a dying process left half is left out."""
    if not report.is_file():
        return []
    text = report.read_text(encoding="utf-8")
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def _problem(operator: str, case: str, words: str) -> dict[str, Any]:
    return {
        "operator": operator,
        "case": case,
        "problems": [words],
        "errors": {},
        "repetitions": 0,
        "left_out": [],
        "seconds": 0.0,
    }


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
    driver = _finished(query, 30)[1].splitlines()[0] if program else "unknown"
    return Gpu(
        properties.name,
        properties.major * 10 + properties.minor,
        properties.multi_processor_count,
        properties.L2_cache_size,
        properties.total_memory,
        driver,
    )


def emulated_gpu() -> Gpu:
    """What stands for the chip when the emulated library runs on the CPU."""
    return Gpu("emulated", 80, 3, 0, 0, "none")


def commit_here() -> str:
    """The commit of this checkout, "+" after it when files differ; "unknown" outside a repository."""
    git = ["git", "-C", str(ROOT)]
    code, commit = (
        _finished([*git, "rev-parse", "--short=10", "HEAD"], 10) if shutil.which("git") else (1, "")
    )
    if code:
        return "unknown"
    changed = _finished([*git, "status", "--porcelain", "--untracked-files=no"], 30)[1]
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
        checks_end = end if given.no_bench else end - BENCHMARK_SECONDS
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
            for job in jobs:
                job.result()
        seconds["checks"] = time.perf_counter() - started - seconds["build"]
        run.deadline = end
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
        verdict=results.verdict(run.checks, run.sanitizer, complete=not missing),
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
