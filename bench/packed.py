"""MiniLM with packed texts beside the same graph with padded ones: `python -m bench.packed`.

Two engines of the same export, which differ by the fusion rule `packed_texts` alone, run in alternation; what is
compared is the median over rounds of the ratio of neighbouring runs. Below 1: packed texts take less time.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import numpy as np

from bench.table import report
from model_repo.runtime.onnxruntime_executor import session
from pipeline.export import export
from pipeline.fuse import fuse
from pipeline.graph import load_graph, save_graph
from pipeline.parity.encoder import padded
from pipeline.recipe import ExportRecipe, FuseRecipe, SourceRecipe, TargetRecipe
from pipeline.sources import open_source
from pipeline.targets import get_target
from plugins.cpu.build import library_path

RAGGED = (5, 9, 12, 16, 19, 24, 28, 33, 40, 47, 58, 66, 81, 103, 140, 190)
LOADS = {
    "16 texts of 5 to 190 tokens": RAGGED,
    "16 texts of 20 to 40 tokens": tuple(range(20, 41))[:16],
    "16 texts of 64 tokens": (64,) * 16,
    "16 texts of 8 tokens": (8,) * 16,
    "1 text of 16 tokens": (16,),
    "1 text of 128 tokens": (128,),
}


def engine(folder: Path, name: str, disable: tuple[str, ...], threads: int) -> Any:
    """A session as the runtime makes it, of the export in `folder` without some fusion rules."""
    graph = load_graph(folder / "export.onnx")
    fuse(graph, FuseRecipe(disable=disable), max_length=None)
    target = get_target("onnxruntime")
    target.lower(graph, "encoder")
    save_graph(graph, folder / f"{name}.lower.onnx")
    target.compile(folder / f"{name}.lower.onnx", folder / f"{name}.onnx", TargetRecipe())
    return session(folder / f"{name}.onnx", library_path(), threads)


def ratios(packed: Any, other: Any, lengths: tuple[int, ...], rounds: int) -> list[float]:
    """Time of `packed` over that of `other`, round by round, each first in turn."""
    numbers = np.random.default_rng(0)
    feeds: dict[str, Any] = dict(padded([numbers.integers(5, 20000, length).tolist() for length in lengths]))
    feeds = {value.name: feeds[value.name] for value in other.get_inputs()}
    (mine,), (theirs,) = packed.run(None, feeds), other.run(None, feeds)
    far = float(np.abs(mine - theirs).max())
    if not far < 1e-5:
        raise SystemExit(f"the engines differ by {far:.1e}")
    found = []
    for turn in range(rounds):
        seconds = {}
        for each in (packed, other) if turn % 2 else (other, packed):
            begin = time.perf_counter()
            each.run(None, feeds)
            seconds[id(each)] = time.perf_counter() - begin
        found.append(seconds[id(packed)] / seconds[id(other)])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=101)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, default=Path("bench/results/packed.json"))
    options = parser.parse_args()
    before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        exported = export(open_source("minilm", SourceRecipe("minilm")), ExportRecipe())
        save_graph(exported.model, folder / "export.onnx")
        packed = engine(folder, "packed", (), options.threads)
        other = engine(folder, "padded", ("packed_texts",), options.threads)
        results: dict[str, Any] = {}
        for load, lengths in LOADS.items():
            found = ratios(packed, other, lengths, options.rounds)
            results[load] = {
                "tokens": sum(lengths),
                "places": len(lengths) * max(lengths),
                "ratio": median(found),
                "quartiles": quantiles(found, n=4)[::2],
                "ratios": found,
            }
    rows = [
        [
            load,
            str(result["tokens"]),
            str(result["places"]),
            f"{result['ratio']:.2f}",
            " to ".join(f"{q:.2f}" for q in result["quartiles"]),
        ]
        for load, result in results.items()
    ]
    title = (
        f"time packed / padded, MiniLM, {options.threads} threads, {options.rounds} rounds, load {before:.1f}"
    )
    results["load_average"] = [before, os.getloadavg()[0]]
    report(title, ["", "tokens", "places of the batch", "median", "quartiles"], rows, results, options.json)


if __name__ == "__main__":
    main()
