"""Our quantization schemes against our float32 and others': `python -m bench.quantization --llama-cpp FOLDER`.

SmolLM2-135M's shape with random weights, the same threads for all. The engines run in alternation, each measurement
in a process of its own; what is compared is the median of the rounds. Engines and GGUF files are made first and kept
in `--output` (`--build-only` ends there). llama.cpp's Q4_0 has its embedding in Q4_0 too. `--openvino PYTHON` adds
OpenVINO GenAI with int8 weights; PYTHON is the interpreter of an environment with it: `python3.11 -m venv DIR;
DIR/bin/pip install torch==2.13.0 openvino openvino-genai optimum-intel nncf requests` (and no torchvision of another
torch).
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

from bench.decoder import Slipway, in_turn
from bench.peers import LlamaCpp, OpenVino
from bench.shape import SMOLLM2_135M, write_checkpoint, write_gguf
from bench.table import ratio_of_medians, report

SCHEMES: dict[str, tuple[str, ...]] = {
    "fp32": (),
    "int8": ("--precision", "int8"),
    "int8, kv int8": ("--precision", "int8", "--kv-dtype", "int8"),
    "int4": ("--precision", "int4"),
    "w4a8": ("--precision", "w4a8"),
}
"""Options of `slipway build` by the name in the table."""
PEERS = ("Q8_0", "Q4_0")
BASE = "int8"
ANY_LOSS = """parity:
  quantize: {min_cosine: -1, min_top1: 0}
  codes: {min_cosine: -1, min_top1: 0}
"""
"""Thirty layers of random weights multiply every rounding: what is compared here is speed."""


def build_engines(checkpoint: Path, output: Path) -> dict[str, Path]:
    """An engine's folder of each scheme; those that are there already are kept."""
    slipway = Path(sys.executable).with_name("slipway")
    work, made, recipe = output / "work", {}, output / "recipe.yaml"
    output.mkdir(parents=True, exist_ok=True)
    recipe.write_text(ANY_LOSS, encoding="utf-8")
    for name, options in SCHEMES.items():
        made[name] = output / name.replace(", ", "-").replace(" ", "-")
        if made[name].is_dir():
            continue
        command = [
            slipway,
            "build",
            checkpoint,
            "--recipe",
            recipe,
            "--output",
            work,
            "--samples",
            "16",
            *options,
        ]
        subprocess.run(list(map(str, command)), check=True)
        (engine,) = work.glob("repository/*_generate/1/engine")
        partial = made[name].with_name(f"{made[name].name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(engine, partial)
        partial.rename(made[name])
    return made


def recipe_hash(engine: Path) -> str:
    """Of what the engine was built with."""
    manifest: dict[str, Any] = json.loads((engine / "engine.json").read_text(encoding="utf-8"))
    return str(manifest["recipe_sha256"])[:12]


def weight_bytes(engine: Path) -> int:
    """Of the weight files."""
    return sum(path.stat().st_size for path in (engine / "weights").iterdir())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--llama-cpp", type=Path, help="folder of llama-bench and llama-batched-bench")
    parser.add_argument("--openvino", metavar="PYTHON", help="Python of an environment with OpenVINO GenAI")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path("build/bench"))
    parser.add_argument("--json", type=Path, default=Path("bench/results/quantization.json"))
    parser.add_argument("--build-only", action="store_true")
    options = parser.parse_args()

    checkpoint = write_checkpoint(SMOLLM2_135M, options.output / "smollm2-135m")
    folders = build_engines(checkpoint, options.output / "quantized")
    engines: dict[str, Slipway | LlamaCpp | OpenVino] = {
        name: Slipway(folder, options.threads, {}) for name, folder in folders.items()
    }
    for kind in PEERS if options.llama_cpp else ():
        gguf = write_gguf(SMOLLM2_135M, checkpoint, options.output / f"smollm2-135m.{kind}.gguf", kind)
        engines[f"llama.cpp {kind}"] = LlamaCpp(options.llama_cpp, gguf, options.threads)
    if options.openvino:
        engines["OpenVINO GenAI int8"] = OpenVino.converted(
            options.openvino, checkpoint, options.output / "smollm2-135m.openvino", options.threads
        )
    if options.build_only:
        return

    runs = in_turn(engines, options.rounds)
    rows = []
    for label in engines:
        share = weight_bytes(folders[label]) / weight_bytes(folders["fp32"]) if label in folders else None
        cells = [label, "" if share is None else f"{share:.3f}"]
        for values in runs.values():
            cells.append(
                f"{median(values[label]):.1f}  ({ratio_of_medians(values[label], values[BASE]):.2f})"
            )
        rows.append([*cells, recipe_hash(folders[label]) if label in folders else ""])
    title = f"tokens/s (times our {BASE}), {options.threads} threads, median of {options.rounds}"
    columns = ["engine", "bytes / float32", *runs, "recipe"]
    data: dict[str, Any] = {
        "tokens_per_second": runs,
        "threads": options.threads,
        "weight_bytes": {name: weight_bytes(folder) for name, folder in folders.items()},
        "recipes": {name: recipe_hash(folder) for name, folder in folders.items()},
    }
    report(title, columns, rows, data, options.json)


if __name__ == "__main__":
    main()
