"""Slipway's engine loop against llama.cpp and transformers: `python -m bench.decoder --llama-cpp FOLDER`.

SmolLM2-135M's shape with random weights, float32, the same threads for all. The engines run in alternation, each
measurement in a process of its own; what is compared is the median of the rounds.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from rich.progress import Progress

from bench.peers import LlamaCpp, OpenVino, Transformers
from bench.shape import SMOLLM2_135M, write_checkpoint, write_gguf
from bench.table import ratio_of_medians, report

CONTEXT = 128
STEPS = 96
PREFILL = 512


class Slipway(NamedTuple):
    """A compiled engine's folder. Keeps the memory figures of its last run."""

    engine: Path
    threads: int
    memory: dict[str, dict[str, float]]

    def prefill(self, tokens: int) -> float:
        """Prompt tokens per second for one prompt of `tokens`."""
        return self._run("prefill", "--context", tokens)

    def decode(self, streams: int, context: int, steps: int) -> float:
        """Generated tokens per second over all streams, each starting from `context` tokens."""
        return self._run("decode", "--streams", streams, "--context", context, "--steps", steps)

    def _run(self, kind: str, *options: str | int) -> float:
        command = [sys.executable, "-m", "bench.loop", self.engine, kind, "--threads", self.threads, *options]
        output = subprocess.run(list(map(str, command)), check=True, stdout=subprocess.PIPE, text=True).stdout
        figures = json.loads(output)
        self.memory[" ".join(map(str, (kind, *options)))] = figures
        return float(figures["tokens_per_second"])


Peer = Slipway | LlamaCpp | Transformers | OpenVino
"""What can be measured beside each other."""


def workloads(engine: Peer) -> dict[str, Callable[[], float]]:
    """What is measured, by its name in the table."""
    return {
        "16 streams, decode from 128 tokens": lambda: engine.decode(16, CONTEXT, STEPS),
        "1 stream, decode from 128 tokens": lambda: engine.decode(1, CONTEXT, STEPS),
        "prefill of 512 tokens": lambda: engine.prefill(PREFILL),
    }


def in_turn(engines: Mapping[str, Peer], rounds: int) -> dict[str, dict[str, list[float]]]:
    """Tokens per second of every round, by workload and engine; the engines take turns."""
    names = list(workloads(next(iter(engines.values()))))
    runs: dict[str, dict[str, list[float]]] = {name: {engine: [] for engine in engines} for name in names}
    with Progress() as progress:
        task = progress.add_task("measuring", total=rounds * len(names) * len(engines))
        for name in names:
            for _ in range(rounds):
                for label, engine in engines.items():
                    runs[name][label].append(workloads(engine)[name]())
                    progress.advance(task)
    return runs


def build_engine(checkpoint: Path, folder: Path) -> None:
    """Builds the engine in a process of its own, as a user would."""
    slipway = Path(sys.executable).with_name("slipway")
    subprocess.run([slipway, "build", checkpoint, "--output", folder], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--llama-cpp", type=Path, help="folder of llama-bench and llama-batched-bench")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path("build/bench"))
    parser.add_argument("--json", type=Path, default=Path("bench/results/decoder.json"))
    parser.add_argument("--skip-transformers", action="store_true")
    options = parser.parse_args()

    checkpoint = write_checkpoint(SMOLLM2_135M, options.output / "smollm2-135m")
    build_engine(checkpoint, options.output / "engine")
    ours = Slipway(options.output / "engine", options.threads, {})
    engines: dict[str, Slipway | LlamaCpp | Transformers] = {"slipway": ours}
    if options.llama_cpp:
        gguf = write_gguf(SMOLLM2_135M, checkpoint, options.output / "smollm2-135m.gguf")
        engines["llama.cpp F32"] = LlamaCpp(options.llama_cpp, gguf, options.threads)
    if not options.skip_transformers:
        engines["transformers"] = Transformers(checkpoint, options.threads)

    runs = in_turn(engines, options.rounds)
    rows = []
    for name, found in runs.items():
        cells = [name]
        for label, values in found.items():
            ratio = "" if label == "slipway" else f"  ({ratio_of_medians(found['slipway'], values):.2f}x)"
            cells.append(f"{median(values):.1f}{ratio}")
        rows.append(cells)
    title = f"tokens/s (how many times slower than slipway), {options.threads} threads, median of {options.rounds}"
    data: dict[str, Any] = {"tokens_per_second": runs, "slipway": ours.memory, "threads": options.threads}
    report(title, ["", *engines], rows, data, options.json)


if __name__ == "__main__":
    main()
