"""Fusion against other optimizers on ten models: `python -m bench.fusion --onnxslim FOLDER`.

Kernels are the nodes left after the session's own optimization (level ALL). Times are of all variants in
alternation, each round in another order; what is compared is the median over rounds of the ratio to ours.
onnxslim is no dependency: `pip install --target FOLDER --no-deps onnxslim`, then give FOLDER.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from bench.fusion_models import LAYERS, MODELS, Feeds, export
from bench.optimizers import ONNXSLIM, OPTIMIZERS, OURS, Prepared, has_onnxslim, prepare
from bench.table import report

BEGIN, END = "<!-- python -m bench.fusion -->", "<!-- end -->"
"""Lines of a page that the table stands between."""

TOLERANCE = 1e-3
"""Of the largest output: a variant that is further from the unoptimized graph is wrong, and is not measured."""


def measure(variants: dict[str, Prepared], feeds: Feeds, rounds: int) -> dict[str, list[float]]:
    """Seconds of each round by variant, after one run of each that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    names = list(variants)
    for turn in range(rounds + 1):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            copies = {key: array.copy() for key, array in feeds.items()}
            begin = time.perf_counter()
            variants[name].run(copies)
            if turn:
                seconds[name].append(time.perf_counter() - begin)
    return seconds


def wrong(variant: Prepared, wanted: list[Any], feeds: Feeds) -> str | None:
    """How a variant's numbers differ from the unoptimized graph's; None when they do not. What a graph gives for
    padding says nothing."""
    found = variant.run({key: array.copy() for key, array in feeds.items()})
    for expected, array in zip(wanted, found, strict=True):
        if "attention_mask" in feeds and expected.shape[:2] == feeds["attention_mask"].shape:
            live = feeds["attention_mask"].astype(bool)
            expected, array = expected[live], array[live]
        far = float(np.abs(array - expected).max()) / max(1.0, float(np.abs(expected).max()))
        if not far <= TOLERANCE:
            return f"wrong numbers: {far:.1e} of the largest"
    return None


def one_model(name: str, folder: Path, rounds: int, threads: int, names: list[str]) -> dict[str, Any]:
    """Kernels and seconds of every optimizer on one model."""
    graph = export(name, folder)
    variants: dict[str, Prepared] = {}
    refused: dict[str, str] = {}
    for optimizer in names:
        prepared = prepare(optimizer, graph, MODELS[name], folder, threads)
        if isinstance(prepared, str):
            refused[optimizer] = prepared
        else:
            variants[optimizer] = prepared
    plain = variants["ONNX Runtime alone"]
    wanted = plain.run({key: array.copy() for key, array in graph.feeds.items()})
    for optimizer, variant in list(variants.items()):
        problem = wrong(variant, wanted, graph.feeds)
        if problem is not None:
            refused[optimizer] = problem
            del variants[optimizer]
    seconds = measure(variants, graph.feeds, rounds)
    ratios = {
        optimizer: [theirs / mine for theirs, mine in zip(times, seconds[OURS], strict=True)]
        for optimizer, times in seconds.items()
    }
    return {
        "kernels": {optimizer: variant.kernels for optimizer, variant in variants.items()},
        "ratios": ratios,  # by round; above 1: slower than ours
        "ratio": {optimizer: median(values) for optimizer, values in ratios.items()},
        "refused": refused,
    }


def table(results: Mapping[str, Any]) -> str:
    """The table of docs/fusion.md, of results of `one_model` by model."""
    lines = ["| model | " + " | ".join(OPTIMIZERS) + " |", "| --- |" + " --- |" * len(OPTIMIZERS)]
    for name, result in results.items():
        cells = [
            f"{result['kernels'][optimizer]} / {result['ratio'][optimizer]:.2f}"
            if optimizer in result["kernels"]
            else ("refuses it" if optimizer in result["refused"] else "not run")
            for optimizer in OPTIMIZERS
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def write_table(results: Mapping[str, Any], page: Path) -> None:
    """Puts the table between the marks of a page. Raises ValueError when it has none."""
    before, mark, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not mark or not end:
        raise ValueError(f"{page} has no lines {BEGIN} and {END}")
    page.write_text(f"{before}{mark}\n{table(results)}{end}{after}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="*", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--onnxslim", type=Path, help="folder that onnxslim was installed to")
    parser.add_argument("--json", type=Path, default=Path("bench/results/fusion.json"))
    parser.add_argument("--page", type=Path, help="page of the documentation to put the table into")
    options = parser.parse_args()
    logging.disable(logging.WARNING)

    slim = has_onnxslim(options.onnxslim)
    names = [name for name in OPTIMIZERS if name != ONNXSLIM or slim]
    results = {}
    for name in options.models:
        with tempfile.TemporaryDirectory() as folder:
            results[name] = one_model(name, Path(folder), options.rounds, options.threads, names)
        print(name, {key: results[name][key] for key in ("kernels", "ratio", "refused")}, flush=True)
    rows = []
    for name, result in results.items():
        cells = [name]
        for optimizer in names:
            if optimizer in result["refused"]:
                cells.append("-")
            else:
                cells.append(f"{result['kernels'][optimizer]} / {result['ratio'][optimizer]:.2f}")
        rows.append(cells)
    title = f"kernels / time relative to slipway, {LAYERS} layers, {options.threads} threads"
    report(title, ["", *names], rows, results, options.json)
    if options.page:
        write_table(results, options.page)


if __name__ == "__main__":
    main()
