"""Runs one module of `plugins/checks/` on a device and reports case by case, as lines of JSON.

    python -m plugins.cuda.check_operator plugins.checks.kv_write --library LIBRARY --report FILE [--device cuda] ...

`plugins.cuda.check` starts one such process for each module: a kernel that takes the device down ends its own process
only. Lines: {"begin": index, "case": name}, {"report": a CaseReport}, {"dropped": words}, {"end": cases seen}.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

import torch

from model_repo.runtime.errors import SlipwayError

from .case import Case, Scale
from .company import Company
from .execution import MARGIN, REPETITIONS, SECONDS_A_CASE, CaseReport, DeviceLost, Execution
from .library import Library

REQUESTS = 256
"""Requests in company."""

DEVICE_LOST = 4
"""Exit code when the device failed; the case that was running is the last one begun."""


def work(module: Any, scale: Scale, seed: int, requests: int) -> Iterator[Case | Company]:
    """The cases of a module, then its companies (none where `requests` is 0)."""
    yield from module.cases(scale, seed)
    if requests and hasattr(module, "companies"):
        yield from module.companies(seed, requests)


def run(given: argparse.Namespace, report: TextIO) -> int:
    """Runs what is asked for. Returns the exit code."""

    def say(**line: object) -> None:
        report.write(json.dumps(line) + "\n")
        report.flush()

    device = torch.device(given.device)
    capability = int(os.environ.get("SLIPWAY_EMULATED_COMPUTE_CAPABILITY", "80"))
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        capability = 10 * major + minor
    torch.zeros(1, device=device)  # a device that does not work fails here, before any case begins
    execution = Execution(Library(given.library), device, given.margin)
    module = importlib.import_module(given.module)
    deadline = time.perf_counter() + given.seconds
    count = 0
    for index, item in enumerate(work(module, Scale(given.scale), given.seed, given.requests)):
        case = item.alone if isinstance(item, Company) else item
        count = index + 1
        if index < given.skip or (given.operators and case.operator not in given.operators):
            continue
        if case.least_compute_capability > capability:
            continue
        if time.perf_counter() > deadline:
            say(dropped=f"{given.module}: {item.name} and all after it, for time")
            break
        say(begin=index, case=item.name, operator=case.operator)
        try:
            if isinstance(item, Company):
                done = execution.check_company(item)
            else:
                done = execution.check(
                    item,
                    repetitions=given.repetitions,
                    seconds=given.seconds_a_case,
                    graph=given.repetitions > 0,
                )
        except DeviceLost as lost:
            words = (f"the device failed: {lost}",)
            say(report=asdict(CaseReport(case.operator, item.name, words)))
            return DEVICE_LOST
        say(report=asdict(done))
    say(end=count)
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(
        prog="python -m plugins.cuda.check_operator", description=__doc__.splitlines()[0]
    )
    result.add_argument("module")
    result.add_argument("--library", type=Path, required=True)
    result.add_argument("--report", type=Path, required=True)
    result.add_argument("--device", default="cuda")
    result.add_argument("--scale", choices=[scale.value for scale in Scale], default=Scale.FULL.value)
    result.add_argument("--seed", type=int, default=1)
    result.add_argument("--operators", nargs="*", help="only cases of these")
    result.add_argument("--requests", type=int, default=REQUESTS, help="in company; 0: no such cases")
    result.add_argument("--repetitions", type=int, default=REPETITIONS)
    result.add_argument("--seconds-a-case", type=float, default=SECONDS_A_CASE)
    result.add_argument("--seconds", type=float, default=1e9, help="no new case after so long")
    result.add_argument("--margin", type=int, default=MARGIN, help="guard bytes on each side of a buffer")
    result.add_argument("--skip", type=int, default=0, help="cases at the beginning to leave out")
    result.add_argument("--threads", type=int, default=2, help="of torch, for the references")
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry of `python -m plugins.cuda.check_operator`. Returns the exit code."""
    given = parser().parse_args(arguments)
    torch.set_num_threads(given.threads)
    try:
        with given.report.open("w", encoding="utf-8") as report:
            return run(given, report)
    except SlipwayError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
