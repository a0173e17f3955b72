"""The peers: llama.cpp's own benchmarks, transformers' `generate` and OpenVINO GenAI, on the same shape and threads.

Each function runs one measurement in a process of its own and returns tokens per second.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

_OPENVINO = Path(__file__).with_name("openvino_run.py")


class LlamaCpp(NamedTuple):
    """A llama.cpp build: `folder` holds llama-bench and llama-batched-bench; `model` is a GGUF file."""

    folder: Path
    model: Path
    threads: int

    def prefill(self, tokens: int) -> float:
        """Prompt tokens per second for one prompt of `tokens`."""
        rows = self._run("llama-bench", "-p", str(tokens), "-n", "0", "-r", "2", "-o", "json")
        return float(json.loads(rows)[0]["avg_ts"])

    def decode(self, streams: int, context: int, steps: int) -> float:
        """Generated tokens per second over all streams, each starting from `context` tokens."""
        room = str(streams * (context + steps) + 256)
        options = ["-npp", context, "-ntg", steps, "-npl", streams, "-c", room, "-b", 2048, "-ub", 512]
        rows = self._run("llama-batched-bench", *map(str, options), "--output-format", "jsonl")
        last = [json.loads(line) for line in rows.splitlines() if line.startswith("{")][-1]
        return float(last["speed_tg"])

    def _run(self, program: str, *options: str) -> str:
        command = [self.folder / program, "-m", self.model, "-t", str(self.threads), *options]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout


class Transformers(NamedTuple):
    """transformers' float32 `generate` on a checkpoint folder."""

    checkpoint: Path
    threads: int

    def prefill(self, tokens: int) -> float:
        """Prompt tokens per second for one prompt of `tokens`."""
        return self._run("prefill", 1, tokens, 0)

    def decode(self, streams: int, context: int, steps: int) -> float:
        """Generated tokens per second over all streams, each starting from `context` tokens."""
        return self._run("decode", streams, context, steps)

    def _run(self, kind: str, streams: int, context: int, steps: int) -> float:
        arguments = [kind, self.checkpoint, self.threads, streams, context, steps]
        command = [sys.executable, "-m", "bench.peers", *map(str, arguments)]
        return float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


class OpenVino(NamedTuple):
    """OpenVINO GenAI's continuous batching on a folder that `bench/openvino_run.py convert` made."""

    python: str
    """Of an environment with openvino-genai."""
    folder: Path
    threads: int

    @classmethod
    def converted(cls, python: str, checkpoint: Path, folder: Path, threads: int) -> OpenVino:
        """With int8 weights, made in `folder` from a checkpoint unless they are there."""
        if not folder.is_dir():
            partial = folder.with_name(f"{folder.name}.partial")
            subprocess.run([python, "-P", _OPENVINO, "convert", checkpoint, partial], check=True)
            partial.rename(folder)
        return cls(python, folder, threads)

    def prefill(self, tokens: int) -> float:
        """Prompt tokens per second for one prompt of `tokens`."""
        return self._run("prefill", 1, tokens, 0)

    def decode(self, streams: int, context: int, steps: int) -> float:
        """Generated tokens per second over all streams, each starting from `context` tokens."""
        return self._run("decode", streams, context, steps)

    def _run(self, kind: str, streams: int, context: int, steps: int) -> float:
        arguments = [kind, self.folder, self.threads, streams, context, steps]
        command = [self.python, "-P", _OPENVINO, *arguments]
        output = subprocess.run(list(map(str, command)), check=True, stdout=subprocess.PIPE, text=True).stdout
        return float(output.splitlines()[-1])


def _measure_transformers(
    kind: str, checkpoint: str, threads: int, streams: int, context: int, steps: int
) -> float:
    """Runs in a process of its own. Decode time is the difference of a long and a short generation."""
    import time

    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(threads)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    ids = torch.randint(
        1, model.config.vocab_size, (streams, context), generator=torch.Generator().manual_seed(0)
    )

    def seconds(new_tokens: int) -> float:
        start = time.perf_counter()
        model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            min_new_tokens=new_tokens,
            max_new_tokens=new_tokens,
            pad_token_id=0,
        )
        return time.perf_counter() - start

    with torch.inference_mode():
        seconds(2)
        if kind == "prefill":
            return context / min(seconds(1) for _ in range(2))
        return streams * steps / (seconds(steps + 1) - seconds(1))


if __name__ == "__main__":
    kind, checkpoint, *numbers = sys.argv[1:]
    threads, streams, context, steps = map(int, numbers)
    print(_measure_transformers(kind, checkpoint, threads, streams, context, steps))
