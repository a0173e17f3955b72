"""Build time and memory of TensorRT-RTX engines beside the bare builder: `python -m bench.rtx DIR [DIR ...]`.

DIR holds a build for target tensorrt-rtx. Its lowered graph is built again with its own profiles and compute
capabilities, by Slipway's stage (a process of its own, bars, the layer report read and checked) and by the builder
alone, in alternation. Each run is a process tree of its own; its CPU seconds and the largest resident set in it are
compared, and wall seconds, which other work on the machine changes. `stage` are Slipway's CPU seconds without the
imports that a build's earlier stages have made already, beside all of the bare builder's.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from bench.table import ratio_of_medians, report

OURS, BARE = "slipway", "bare builder"
MEASURES = {"wall": "s", "cpu": "CPU s", "stage": "CPU s", "resident": "MiB"}
PROGRAMS = {
    OURS: """
import os, sys
from pathlib import Path
from model_repo.runtime.manifest import Manifest
from pipeline.graph import load_graph
from pipeline.recipe import Recipe
from pipeline.targets import get_target
from pipeline.targets.tensorrt import builder, integers, limits, opsets, profiles, record
folder, engine = map(Path, sys.argv[1:3])
recipe = Recipe.load(folder / "recipe.yaml").target
spec = Manifest.read(folder / "engine.json").engine
before = sum(os.times()[:4])
get_target(recipe.name).compile(folder / f"lower.{recipe.name}.onnx", engine, recipe, spec)
print(sum(os.times()[:4]) - before)
""",
    BARE: """
import json, os, sys
from pathlib import Path
import tensorrt_rtx as trt
folder, engine = map(Path, sys.argv[1:3])
record = json.loads((folder / "layers.json").read_text())
logger = trt.Logger(trt.Logger.ERROR)
builder = trt.Builder(logger)
network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
parser = trt.OnnxParser(network, logger)
assert parser.parse_from_file(str(folder / f"lower.{record['target']}.onnx"))
config = builder.create_builder_config()
chips = record["compute_capabilities"]
if chips:
    config.num_compute_capabilities = len(chips)
for place, chip in enumerate(chips):
    config.set_compute_capability(getattr(trt.ComputeCapability, "SM" + chip.replace(".", "")), place)
for shapes in record["profiles"].values():
    profile = builder.create_optimization_profile()
    for name, three in shapes.items():
        profile.set_shape(name, *three)
    config.add_optimization_profile(profile)
engine.write_bytes(builder.build_serialized_network(network, config))
print(sum(os.times()[:4]))
""",
}


def measure(program: str, folder: Path) -> dict[str, float]:
    """Seconds, CPU seconds of the whole process tree, and the largest resident set of one of its processes in MiB."""
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        begin = time.perf_counter()
        command = [sys.executable, "-c", program, str(folder), f"{scratch}/engine.rtx"]
        with Path(f"{scratch}/stage").open("w+", encoding="utf-8") as said:
            process = subprocess.Popen(command, stdout=said)
            _, status, usage = os.wait4(process.pid, 0)
            said.seek(0)
            stage = said.read()
        wall = time.perf_counter() - begin
    if status:
        raise SystemExit(f"a build of {folder} ended with status {status}")
    cpu = usage.ru_utime + usage.ru_stime
    return {"wall": wall, "cpu": cpu, "stage": float(stage.split()[-1]), "resident": usage.ru_maxrss / 1024}


def one_build(folder: Path, rounds: int) -> dict[str, Any]:
    """Every run of both in alternation, each first in turn, and the ratios of their medians."""
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in PROGRAMS}
    for turn in range(rounds):
        for name in (OURS, BARE) if turn % 2 == 0 else (BARE, OURS):
            runs[name].append(measure(PROGRAMS[name], folder))
    ratios = {
        key: ratio_of_medians([run[key] for run in runs[OURS]], [run[key] for run in runs[BARE]])
        for key in MEASURES
    }
    return {"runs": runs, "ratios": ratios, "engine_bytes": (folder / "engine.rtx").stat().st_size}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path, metavar="DIR")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path("bench/results/rtx.json"))
    given = parser.parse_args()
    results = {folder.name: one_build(folder, given.rounds) for folder in given.folders}
    rows = [
        [f"{name}, {builder}", *(f"{median(run[key] for run in runs):.2f}" for key in MEASURES)]
        for name, result in results.items()
        for builder, runs in result["runs"].items()
    ]
    columns = ["build", *(f"{key} ({unit})" for key, unit in MEASURES.items())]
    report("TensorRT-RTX engines from one ONNX graph", columns, rows, results, given.output)


if __name__ == "__main__":
    main()
