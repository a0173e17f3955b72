"""Memory and time of every stage for models that are large for the machine: `python -m bench.scale`.

A random Llama of TinyLlama-1.1B's shape, stored in bfloat16, is built and asked for tokens; memory of the whole
process tree is sampled. Then Llama-2-7B's width with 1, 2 and 3 layers: what a layer adds. 'Weights' are the model's in
float32, which is what is exported and served; the checkpoint on disk has half their bytes.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.progress import Progress

from bench.memory import MemoryWatch, Sample
from bench.scale_picture import draw
from bench.shape import Shape
from bench.sharded import LLAMA_2_7B, TINYLLAMA, parameters, write_sharded
from bench.table import report

GIB = 2**30
FLOAT32_BYTES = 4
TOKENS = 16
PROMPT = "the quick brown fox"
GENERATE = "generate"
COLUMNS = ("", "seconds", "anonymous GiB", "whole GiB", "whole / float32 weights")
MODELS = {
    "TinyLlama-1.1B": TINYLLAMA,
    "Llama-2-7B, 1 layer": LLAMA_2_7B._replace(layers=1),
    "Llama-2-7B, 2 layers": LLAMA_2_7B._replace(layers=2),
    "Llama-2-7B, 3 layers": LLAMA_2_7B._replace(layers=3),
}


def measure(shape: Shape, folder: Path) -> dict[str, Any]:
    """Builds a checkpoint of `shape` in `folder`, generates, and gives what each stage took; the folder is emptied."""
    checkpoint = write_sharded(shape, folder / "checkpoint")
    engine = folder / "engine"
    shutil.rmtree(engine, ignore_errors=True)
    stages, samples = _build(checkpoint, engine)
    generated, more = _generate(engine)
    shutil.rmtree(folder)
    weights = parameters(shape) * FLOAT32_BYTES
    return {
        "parameters": parameters(shape),
        "weight_bytes": weights,
        "stages": [*stages, generated],
        "times_weights": max(stage["whole"] for stage in [*stages, generated]) / weights,
        "seconds": sum(stage["seconds"] for stage in [*stages, generated]),
        "samples": [*_thinned(samples), *_thinned(more)],
    }


def _build(checkpoint: Path, engine: Path) -> tuple[list[dict[str, Any]], list[Sample]]:
    command = [sys.executable, "-m", "bench.scale_build", str(checkpoint), str(engine)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    with MemoryWatch(process.pid) as watch:
        output, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"the build of {checkpoint} ended with exit code {process.returncode}")
    stages = []
    for line in output.splitlines():
        row = json.loads(line)
        stages.append(_figures(row["stage"], row["begin"], row["end"], watch, row["parity"]))
    return stages, watch.samples


def _generate(engine: Path) -> tuple[dict[str, Any], list[Sample]]:
    """`slipway generate` on the engine, with its own process's beginning."""
    slipway = Path(sys.executable).with_name("slipway")
    command = [
        slipway,
        "generate",
        engine,
        "--prompt",
        PROMPT,
        "--max-tokens",
        str(TOKENS),
        "--temperature",
        "0",
    ]
    begin = time.monotonic()
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL)
    with MemoryWatch(process.pid) as watch:
        code = process.wait()
    if code:
        raise SystemExit(f"slipway generate ended with exit code {code}")
    return _figures(GENERATE, begin, time.monotonic(), watch, f"{TOKENS} tokens"), watch.samples


def _figures(stage: str, begin: float, end: float, watch: MemoryWatch, parity: Any) -> dict[str, Any]:
    samples = watch.between(begin, end)
    return {
        "stage": stage,
        "begin": begin,
        "end": end,
        "seconds": end - begin,
        "anonymous": max((sample.anonymous for sample in samples), default=0),
        "whole": max((sample.whole for sample in samples), default=0),
        "parity": parity,
    }


def _thinned(samples: list[Sample], most: int = 400) -> list[Sample]:
    """At most about `most` samples, of each run of samples the one with the most anonymous memory."""
    width = max(1, -(-len(samples) // most))
    runs = [samples[start : start + width] for start in range(0, len(samples), width)]
    return [max(run, key=lambda sample: sample.anonymous) for run in runs]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="*", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--output", type=Path, default=Path("build/scale"))
    parser.add_argument("--json", type=Path, default=Path("bench/results/scale.json"))
    parser.add_argument("--picture", type=Path, default=Path("docs/scale.svg"))
    options = parser.parse_args()

    results = _measured(options.json)
    with Progress() as progress:
        task = progress.add_task("building", total=len(options.models))
        for name in options.models:
            results[name] = measure(MODELS[name], options.output / name.replace(" ", "").replace(",", "-"))
            results = {model: results[model] for model in MODELS if model in results}
            report("peak memory by stage", COLUMNS, _rows(results), results, options.json)
            draw(results, options.picture)
            progress.advance(task)


def _measured(path: Path) -> dict[str, Any]:
    """What earlier runs left in `path`: models that are not measured again keep their figures."""
    if not path.is_file():
        return {}
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["results"]
    return found


def _rows(results: Mapping[str, Any]) -> list[list[str]]:
    return [
        [
            f"{name}, {stage['stage']}",
            f"{stage['seconds']:.1f}",
            f"{stage['anonymous'] / GIB:.2f}",
            f"{stage['whole'] / GIB:.2f}",
            f"{stage['whole'] / result['weight_bytes']:.2f}",
        ]
        for name, result in results.items()
        for stage in result["stages"]
    ]


if __name__ == "__main__":
    main()
