"""Runs the benchmarks: `python -m plugins.bench.cuda [--operators ...] [--library FILE] [--report FILE]`.

Without a report it prints tables. Modules are the `bench_*` files of this folder; each has `benchmarks(tiny)`.
"""

from __future__ import annotations

import argparse
import importlib
import json
import pkgutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import torch

import plugins.bench.cuda
from model_repo.runtime.errors import SlipwayError
from plugins.console import print_table
from plugins.cuda.library import Library
from plugins.torch_cuda import library

from .benchmark import Bench, Benchmark

FIRST = ("flash_attention", "paged_attention", "kv_write", "sampling", "weight_only_gemm")
"""Operators whose cases come first, should time run out."""


def all_benchmarks(tiny: bool = False) -> Iterator[Benchmark]:
    """Cases of all modules, those of `FIRST` first. tiny: shapes that an emulator runs."""
    names = [entry.name for entry in pkgutil.iter_modules(plugins.bench.cuda.__path__)]
    listed = [
        benchmark
        for name in names
        if name.startswith("bench_")
        for benchmark in importlib.import_module(f"plugins.bench.cuda.{name}").benchmarks(tiny)
    ]
    order = {name: place for place, name in enumerate(FIRST)}
    yield from sorted(listed, key=lambda benchmark: order.get(benchmark.operator, len(FIRST)))


def run(
    bench: Bench, wanted: Sequence[Benchmark], seconds: float, say: Callable[[dict[str, object]], None]
) -> None:
    """Measures, and says each measurement as a line, with the ceilings so far; what cannot run is said too."""
    deadline = time.perf_counter() + seconds
    present = set(bench.library.info["operators"])
    for benchmark in wanted:
        where = f"benchmark {benchmark.operator}, {benchmark.case}"
        if benchmark.operator not in present:
            say({"dropped": f"{where}: the library has no such operator"})
        elif time.perf_counter() > deadline:
            say({"dropped": f"{where}: for time"})
        else:
            try:
                measured = asdict(bench.measure(benchmark))
                say({"measurement": measured, "ceilings": bench.ceilings.measured()})
            except (SlipwayError, torch.OutOfMemoryError) as error:
                say({"dropped": f"{where}: {str(error).splitlines()[0]}"})
        if bench.device.type == "cuda":
            torch.cuda.empty_cache()
    say({"ceilings": bench.ceilings.measured()})


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry of `python -m plugins.bench.cuda`. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m plugins.bench.cuda", description=__doc__.splitlines()[0])
    parser.add_argument("--library", type=Path, help="default: the one that `make plugins` built")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--operators", nargs="*", help="only these")
    parser.add_argument("--seconds", type=float, default=1e9, help="no new case after so long")
    parser.add_argument("--report", type=Path, help="file for lines of JSON; default: tables on the terminal")
    parser.add_argument("--tiny", action="store_true", help="shapes that an emulator runs")
    given = parser.parse_args(arguments)
    lines: list[dict[str, object]] = []
    try:
        bench = Bench(Library(given.library) if given.library else library(), torch.device(given.device))
        wanted = [
            b for b in all_benchmarks(given.tiny) if not given.operators or b.operator in given.operators
        ]
        if given.report is None:
            run(bench, wanted, given.seconds, lines.append)
        else:
            with given.report.open("w", encoding="utf-8") as report:

                def say(line: dict[str, object]) -> None:
                    report.write(json.dumps(line) + "\n")
                    report.flush()

                run(bench, wanted, given.seconds, say)
    except SlipwayError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    rows: list[tuple[object, ...]] = []
    for line in lines:
        measured = line.get("measurement")
        if isinstance(measured, dict):
            goals = "; ".join(_words(goal) for goal in measured["goals"])
            rows.append((measured["operator"], measured["case"], measured["microseconds"], goals))
        elif "dropped" in line:
            print(f"left out: {line['dropped']}")
    if rows:
        print_table("Benchmarks", ("operator", "case", "us", "goals"), rows)
    return 0


def _words(goal: dict[str, object]) -> str:
    achieved = goal["achieved"]
    text = "not measured" if achieved is None else f"{achieved:.3g}"
    return f"{text} {goal['unit']} (at {'most' if goal['at_most'] else 'least'} {goal['bound']:g})"


if __name__ == "__main__":
    sys.exit(main())
