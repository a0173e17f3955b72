"""Through tritonserver and the ensemble against the bare engine loop: `python -m bench.server`.

Both on the same cores, in alternation: the server is started anew for each round, so that its engine does not wait
beside the loop's. The client is a process of its own on the same machine; its processor time is reported.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import median

import numpy as np
import tokenizers

from bench.decoder import Slipway, build_engine
from bench.shape import SMOLLM2_135M, write_checkpoint
from bench.table import ratio_of_medians, report
from pipeline.serve import server


def write_prompts(tokenizer: Path, streams: int, tokens: int, path: Path) -> None:
    """Texts of exactly `tokens` tokens each, drawn at random from the one-byte letters of the vocabulary."""
    encoder = tokenizers.Tokenizer.from_file(str(tokenizer))
    random = np.random.default_rng(5)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    texts = ["".join(random.choice(letters, tokens)) for _ in range(streams)]
    assert all(len(encoder.encode(text).ids) == tokens for text in texts)
    path.write_text(json.dumps(texts), encoding="utf-8")


def measure_server(repository: Path, model: str, streams: int, steps: int, prompts: Path) -> dict[str, float]:
    """One round: a server, a warm-up request, the measured streams."""
    with server(repository) as running:
        command = [sys.executable, "-m", "bench.client", running.grpc, model, "--prompts", str(prompts)]
        subprocess.run(
            [*command, "--streams", "1", "--new-tokens", "8"], check=True, stdout=subprocess.DEVNULL
        )
        command += ["--streams", str(streams), "--new-tokens", str(steps + 1)]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    figures: dict[str, float] = json.loads(output)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--steps", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path("build/bench"))
    parser.add_argument("--json", type=Path, default=Path("bench/results/server.json"))
    options = parser.parse_args()
    checkpoint = write_checkpoint(SMOLLM2_135M, options.output / "smollm2-135m")
    build_engine(checkpoint, options.output / "engine")
    prompts = options.output / "prompts.json"
    write_prompts(checkpoint / "tokenizer.json", options.streams, options.context, prompts)

    loop = Slipway(options.output / "engine", options.threads, {})
    repository = options.output / "engine" / "repository"
    bare: list[float] = []
    served: list[dict[str, float]] = []
    for _ in range(options.rounds):
        bare.append(loop.decode(options.streams, options.context, options.steps))
        served.append(measure_server(repository, checkpoint.name, options.streams, options.steps, prompts))
    through = [figures["tokens_per_second"] for figures in served]
    client = median(figures["client_cpu_seconds"] / figures["seconds"] for figures in served)
    rows = [
        ["bare engine loop", f"{median(bare):.1f}", "1.00", ""],
        [
            "tritonserver, ensemble",
            f"{median(through):.1f}",
            f"{ratio_of_medians(through, bare):.2f}",
            f"{client:.0%}",
        ],
    ]
    title = f"{options.streams} streams, decode, tokens/s; median of {options.rounds}"
    columns = ["", "tokens/s", "ratio", "client's share of one core"]
    report(title, columns, rows, {"loop": bare, "server": served}, options.json)


if __name__ == "__main__":
    main()
