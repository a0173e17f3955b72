"""The processes of a check on a GPU: the cases of a module, compute-sanitizer, the benchmarks.

Each is a process of its own, since a kernel that takes the device down takes its process with it.
"""

from __future__ import annotations

import json
import os
import pkgutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import plugins.checks

from .case import Scale
from .check_operator import DEVICE_LOST
from .results import EngineReport, LoopMeasurement, Measurement, SanitizerReport

ROOT = Path(plugins.__path__[0]).parent
MOST_RESTARTS = 3
"""How often a module is taken up again after the case that took the device down."""

OUT_OF_TIME = -1
SANITIZER_ERRORS = 86
SANITIZER_SECONDS = 120.0
SANITIZERS = ("memcheck", "racecheck")

_running: set[int] = set()
"""Process groups that `finished` waits for."""
_starting = threading.Lock()


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
    engines: list[EngineReport] = field(default_factory=list)
    loops: list[LoopMeasurement] = field(default_factory=list)

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
        code, words = finished(command, seconds + 30)
        lines = lines_of(report)
        run.checks += [line["report"] for line in lines if "report" in line]
        run.dropped += [line["dropped"] for line in lines if "dropped" in line]
        if code == 0:
            return
        begun = [line for line in lines if "begin" in line]
        reported = sum("report" in line for line in lines)
        if not begun:
            run.checks.append(problem(module, "all cases", f"ended with code {code} before any: {words}"))
            return
        if reported < len(begun):  # the process ended inside a case
            last = begun[-1]
            where = f"the process ended with code {code}: {words}"
            run.checks.append(problem(last["operator"], last["case"], where))
        elif code == OUT_OF_TIME:
            run.dropped.append(f"{module}: all after {begun[-1]['case']}, for time")
            return
        elif code != DEVICE_LOST:
            # The next case could not be made: taking the module up again would end in the same place.
            run.checks.append(problem(module, f"after {begun[-1]['case']}", f"code {code}: {words}"))
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
    code, words = finished(command, seconds, environment)
    lines = lines_of(report)
    operators = sorted({line["operator"] for line in lines if "operator" in line}) or [name]
    # Where the tool does not work (another kind of virtual machine, say), no call reaches the device: no case begins.
    if code == SANITIZER_ERRORS and any("begin" in line for line in lines):
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
    code, words = finished(command, seconds + 20)
    lines = lines_of(report)
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


def finished(
    command: Sequence[str], seconds: float, environment: Mapping[str, str] | None = None
) -> tuple[int, str]:
    """Exit code of a process, and the end of what it printed; OUT_OF_TIME when it did not end in time.

    In the end all that it started is ended too: what compute-sanitizer runs must not go on beside the benchmarks.
    """
    with tempfile.TemporaryFile("w+", errors="replace") as printed:
        with _starting:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=environment,
                stdout=printed,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            _running.add(process.pid)
        try:
            process.wait(max(1.0, seconds))
        except subprocess.TimeoutExpired:
            return OUT_OF_TIME, f"no end within {seconds:.0f} s"
        finally:
            _end_group(process.pid)
            process.wait()
            _running.discard(process.pid)
        printed.seek(0)
        words = [line for line in printed.read().splitlines() if line.strip()]
    return process.returncode, "\n".join(words[-15:])


def end_all() -> None:
    """Ends every process that `finished` waits for: Ctrl-C does not reach them."""
    with _starting:
        for group in list(_running):
            _end_group(group)


def _end_group(group: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


def lines_of(report: Path) -> list[dict[str, Any]]:
    """The whole lines of a report; one that a dying process left half is left out."""
    if not report.is_file():
        return []
    text = report.read_text(encoding="utf-8")
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def problem(operator: str, case: str, words: str) -> dict[str, Any]:
    """What a report says of a case that did not come to its end."""
    return {
        "operator": operator,
        "case": case,
        "problems": [words],
        "errors": {},
        "repetitions": 0,
        "left_out": [],
        "seconds": 0.0,
    }
