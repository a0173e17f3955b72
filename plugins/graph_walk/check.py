"""Checks and measures the runtime over walked graphs: `python -m plugins.graph_walk.check --library FILE`.

The engine loop, the paged executor, our kernels and CUDA graphs on a GPU, with torch and nothing else. Its tokens are
judged by the same graph in float32 on the CPU. `make gpu-check` runs this and puts the lines of JSON into its results.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from model_repo.runtime.contract import Limits
from model_repo.runtime.errors import SlipwayError
from plugins.cuda.check_engines import print_engines
from plugins.cuda.results import EngineReport, LoopMeasurement

from . import description
from .description import Graph
from .invented import SMOLLM2_135M, TINY, Decoder, invented
from .loop import Loop, random_prompts
from .peer import generate_rates
from .spec import decoder_spec
from .teacher import Teacher

Say = Callable[[dict[str, object]], None]

MOST_REGRET = 0.1
"""A token may be less likely than the likeliest one by so many deviations of its row's logits: 16-bit types round."""


@dataclass(frozen=True)
class Scale:
    """What is run. lengths: of the prompts that are judged; streams: numbers that are measured, each with `prompt`
    tokens and `new_tokens` more. workers: blocks that attention runs as."""

    model: Decoder
    name: str
    lengths: tuple[int, ...]
    judged_tokens: int
    judged: Limits
    streams: tuple[int, ...]
    prompt: int
    new_tokens: int
    measured: Limits
    workers: int = 376


FULL = Scale(
    SMOLLM2_135M,
    "SmolLM2-135M, random weights",
    lengths=(5, 300, 33, 128, 1, 77),
    judged_tokens=48,
    judged=Limits(max_batch=8, token_budget=64, max_length=512, block_size=16, num_blocks=256),
    streams=(1, 16, 64, 256),
    prompt=128,
    new_tokens=128,
    measured=Limits(max_batch=256, token_budget=2048, max_length=512, block_size=16, num_blocks=4608),
)
SMALL = Scale(
    TINY,
    "tiny, random weights",
    lengths=(5, 21, 8, 1),
    judged_tokens=3,
    judged=Limits(max_batch=4, token_budget=12, max_length=64, block_size=16, num_blocks=32),
    streams=(1, 2),
    prompt=4,
    new_tokens=3,
    measured=Limits(max_batch=2, token_budget=16, max_length=64, block_size=16, num_blocks=16),
    workers=4,
)


class _Run:
    """One run of this program. deadline: of time.perf_counter, after which nothing is begun."""

    def __init__(
        self, scale: Scale, device: torch.device, library: Path | None, deadline: float, say: Say
    ) -> None:
        self._scale = scale
        self._device = device
        self._library = library
        self._deadline = deadline
        self._say = say

    def judge(self, graph: Graph, name: str) -> None:
        """Says whether the loop's tokens are right: with captured decode steps, and without."""
        spec = decoder_spec(graph, self._scale.judged)
        longest = spec.max_length - self._scale.judged_tokens
        lengths = [min(length, longest) for length in self._scale.lengths]
        prompts = random_prompts(lengths, spec.vocab_size, seed=1)
        teacher = Teacher(graph)
        ways = (("CUDA graphs", True), ("no CUDA graphs", False))
        for way, captures in ways if self._device.type == "cuda" else (("on the CPU", True),):
            engine = f"{name}, {way}"
            if self._late(engine):
                continue
            try:
                loop = Loop(graph, self._scale.judged, self._device, self._library, captures)
                tokens = loop.tokens(prompts, self._scale.judged_tokens)
                loop.close()
            except (SlipwayError, RuntimeError) as error:
                self._say({"engine": asdict(EngineReport(engine, "wrong", str(error)))})
                continue
            worst = max(map(teacher.regret, prompts, tokens))
            verdict = "right" if worst <= MOST_REGRET else "wrong"
            words = (
                f"{sum(map(len, tokens))} tokens of {len(prompts)} prompts lie at most {worst:.2g} deviations "
                f"below float32's likeliest ones (allowed: {MOST_REGRET})"
            )
            self._say({"engine": asdict(EngineReport(engine, verdict, words))})

    def measure(self, graph: Graph, model: Decoder, name: str) -> None:
        """Says tokens a second of each number of streams, beside transformers."""
        scale = self._scale
        if self._late(f"{name}: tokens a second"):
            return
        loop = Loop(graph, scale.measured, self._device, self._library)
        loop.warm_up()
        vocab = loop.spec.vocab_size
        loop.timed(random_prompts([scale.prompt] * scale.streams[-1], vocab, seed=9), 4)
        timed = {}
        for streams in scale.streams:
            if not self._late(f"{name}: {streams} streams"):
                prompts = random_prompts([scale.prompt] * streams, vocab, seed=streams)
                timed[streams] = loop.timed(prompts, scale.new_tokens)
        loop.close()
        peers = generate_rates(model, tuple(timed), scale.prompt, scale.new_tokens, self._device)
        for one in timed.values():
            peer: float | str = "no time was left"
            if time.perf_counter() < self._deadline:
                _, peer = next(peers)
            host = None if one.host_seconds is None else one.host_seconds * 1e6
            rate = one.tokens / one.seconds
            found = LoopMeasurement(name, one.streams, rate, one.step_seconds * 1e6, host, peer)
            self._say({"loop": asdict(found)})

    def _late(self, what: str) -> bool:
        late = time.perf_counter() > self._deadline
        if late:
            self._say({"dropped": f"{what}, for time"})
        return late


def run(given: argparse.Namespace, say: Say) -> None:
    """Everything that is asked for. Raises SlipwayError, and RuntimeError of torch."""
    scale, device = SMALL if given.tiny else FULL, torch.device(given.device)
    deadline = time.perf_counter() + given.seconds
    work = _Run(scale, device, given.library, deadline, say)
    graph = invented(scale.model, workers=scale.workers)
    work.judge(graph, scale.name)
    if given.graph is not None:
        work.judge(description.read(given.graph), given.graph.name)
    work.measure(graph, scale.model, scale.name)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry of `python -m plugins.graph_walk.check`. Returns the exit code: 3 when tokens are wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m plugins.graph_walk.check", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--library", type=Path, help="the kernels; not needed on the CPU")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--graph", type=Path, help="a described graph that is judged too (onnx_file.py)")
    parser.add_argument("--seconds", type=float, default=1e9, help="nothing is begun after so long")
    parser.add_argument("--tiny", action="store_true", help="a model and numbers that an emulator runs")
    parser.add_argument("--report", type=Path, help="file for lines of JSON; default: tables on the terminal")
    given = parser.parse_args(arguments)
    engines: list[EngineReport] = []
    loops: list[LoopMeasurement] = []

    def say(line: dict[str, object]) -> None:
        if isinstance(report := line.get("engine"), dict):
            engines.append(EngineReport(**report))
        elif isinstance(report := line.get("loop"), dict):
            loops.append(LoopMeasurement(**report))
        if given.report is not None:
            with given.report.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        elif "dropped" in line:
            print(f"left out: {line['dropped']}")

    try:
        run(given, say)
    except SlipwayError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    if given.report is None:
        print_engines(engines, loops)
    return 3 if any(report.verdict == "wrong" for report in engines) else 0


if __name__ == "__main__":
    sys.exit(main())
