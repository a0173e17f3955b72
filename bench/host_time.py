"""Host time of a decode step, outside the device: `python -m bench.host_time`.

The whole loop runs over `PagedExecutor` on a device whose engine and kernels do nothing. In: taking news, planning, the
step's tensors, sampling parameters, binding, staging memory, the launch of captured work, reading the sampled tokens,
the commit, the step's record. Out: what a GPU's driver takes for its calls (here: a copy in memory, an event), and
delivery, which is a column of its own: tokens to the requests' sinks, and the same with text of a tokenizer.
Medians over steps in which every sequence gets one token and the step before is in flight.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import tokenizers

from bench.table import report
from model_repo.runtime.contract import (
    LOGITS,
    STEP_INPUTS,
    EngineSpec,
    KVSpec,
    Limits,
    key_cache,
    value_cache,
)
from model_repo.runtime.device_engine import DeviceTensor
from model_repo.runtime.engine import Engine
from model_repo.runtime.host_device import HostDevice
from model_repo.runtime.kernel_library import Enqueued, KernelTensor
from model_repo.runtime.paged_executor import PagedExecutor
from model_repo.runtime.request import Request, SamplingParams
from model_repo.runtime.tokenizer import Tokenizer

GOALS = {1: 150, 64: 400, 256: 1200}
"""Microseconds by sequences of a step, on an idle core."""
CONTEXT, VOCAB, LAYERS = 1000, 32_000, 32
PHASES = {
    "plan": "plan",
    "tensors": "tensors",
    "wanted": "rows",
    "launch": "bind + launch",
    "commit": "commit",
    "deliver": "delivery",
}
REST = "rest"
"""News, the carried tokens' places, reading what was sampled, the record."""


class ZeroedDevice(HostDevice):
    """Memory that nothing computes in gives token 0."""

    def allocate(self, count: int) -> int:
        address = super().allocate(count)
        self.zero(address, count)
        return address


class NoEngine:
    """A `DeviceEngine` of the paged contract that computes nothing."""

    def __init__(self, spec: EngineSpec) -> None:
        pools = [name(layer) for layer in range(len(spec.kv)) for name in (key_cache, value_cache)]
        inputs = [*(DeviceTensor(one.name, "input", one.dtype, (None,)) for one in STEP_INPUTS)]
        inputs += [DeviceTensor(name, "input", "int8", (None,) * 4) for name in pools]
        logits = DeviceTensor(LOGITS.name, "output", LOGITS.dtype, (None, spec.vocab_size))
        self.tensors: Mapping[str, DeviceTensor] = {tensor.name: tensor for tensor in (*inputs, logits)}
        self.profiles = ("decode", "prefill", "mixed")
        self.workspace_bytes = 0

    def use_profile(self, name: str, stream: int) -> None:
        """Nothing to switch."""

    def set_shape(self, name: str, shape: tuple[int, ...]) -> None:
        """Any shape is right."""

    def set_address(self, name: str, address: int) -> None:
        """Nothing is read or written."""

    def enqueue(self, stream: int) -> None:
        """Computes nothing."""


class NoKernels:
    """`Kernels` that compute nothing."""

    def workspace_bytes(
        self, operator: str, tensors: Mapping[str, KernelTensor], attributes: Mapping[str, float]
    ) -> int:
        return 0

    def call(
        self,
        operator: str,
        tensors: Mapping[str, KernelTensor],
        attributes: Mapping[str, float] | None = None,
        *,
        workspace: int = 0,
        workspace_bytes: int = 0,
    ) -> Enqueued:
        return self

    def enqueue(self, stream: int) -> None:
        """Computes nothing."""


class Timed:
    """Seconds of each call of functions, by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}

    def around(self, owner: Any, name: str) -> None:
        """Replaces the method `name` of `owner` by one that is timed."""
        inner: Callable[..., Any] = getattr(owner, name)
        kept = self.seconds.setdefault(name, [])

        def timed(*given: Any) -> Any:
            begin = time.perf_counter()
            result = inner(*given)
            kept.append(time.perf_counter() - begin)
            return result

        setattr(owner, name, timed)


def spec_of(batch: int, steps: int) -> EngineSpec:
    """A decoder of 32 layers, whose heads have one element so that its pools are small."""
    length = CONTEXT + 4 * steps
    limits = Limits(batch, 4096, length, 16, batch * -(-length // 16) + 1)
    return EngineSpec(
        kind="decoder",
        name="nothing",
        target="tensorrt",
        precision="fp16",
        graph="",
        plugin=None,
        vocab_size=VOCAB,
        max_length=length,
        kv=(KVSpec(0, 1, 1, 1, 0, "int8"),) * LAYERS,
        limits=limits,
    )


def words() -> Tokenizer:
    """A tokenizer whose tokens are words with a space before them."""
    tokens = {f"\u2581w{token}": token for token in range(VOCAB)}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(tokens, unk_token="\u2581w0"))
    made.decoder = tokenizers.decoders.Metaspace()
    return Tokenizer(made)


def measure(batch: int, steps: int, sampling: SamplingParams, text: bool) -> dict[str, float]:
    """Median microseconds of `steps` decode steps of `batch` sequences: the step without delivery, and its phases."""
    spec = spec_of(batch, steps)
    device = ZeroedDevice()
    executor = PagedExecutor(device, NoEngine(spec), spec, kernels=NoKernels())
    executor.warm_up()
    engine = Engine(executor, spec, words() if text else None, max_queue=batch)
    generator = np.random.default_rng(1)
    for index in range(batch):
        prompt = tuple(generator.integers(0, VOCAB, CONTEXT).tolist())
        engine.submit(Request(str(index), prompt, sampling), lambda output: None)
    scheduler = engine._scheduler
    while (
        scheduler.waiting
        or engine._intake.has_submitted
        or any(not sequence.num_completion_tokens for sequence in scheduler.running)
    ):
        engine.step()
    timed = Timed()
    for name in PHASES:
        timed.around(executor if name == "launch" else engine._steps._work, name)
    totals = []
    for _ in range(steps):
        begin = time.perf_counter()
        engine.step()
        totals.append(time.perf_counter() - begin)
    assert len(scheduler.running) == batch
    executor.close()
    device.close()
    phases = {title: median(timed.seconds[name]) * 1e6 for name, title in PHASES.items()}
    outside = [total - part for total, part in zip(totals, timed.seconds["deliver"], strict=True)]
    inside = sum(value for title, value in phases.items() if title != "delivery")
    step = median(outside) * 1e6
    return {"step": step, **phases, REST: step - inside, "whole": median(totals) * 1e6}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=3, help="the median of their medians is given")
    parser.add_argument("--output", type=Path, default=Path("bench/results/host_time.json"))
    given = parser.parse_args()
    samplings = {
        "greedy": SamplingParams(max_tokens=4 * given.steps - 1, temperature=0.0, ignore_eos=True),
        "top-p": SamplingParams(max_tokens=4 * given.steps - 1, top_p=0.9, seed=1, ignore_eos=True),
    }
    shown = [title for title in PHASES.values() if title != "delivery"]
    shown += [REST, "delivery", "delivery with text"]
    results, rows = [], []
    for batch, goal in GOALS.items():
        for kind, sampling in samplings.items():
            rounds = [measure(batch, given.steps, sampling, text=False) for _ in range(given.rounds)]
            with_text = measure(batch, given.steps, sampling, text=True)
            figures = {name: median(one[name] for one in rounds) for name in rounds[0]}
            figures["delivery with text"] = with_text["delivery"]
            results.append(
                {"batch": batch, "sampling": kind, "goal": goal, "microseconds": figures, "rounds": rounds}
            )
            cells = [figures[name] for name in ("step", *shown)]
            rows.append([f"{batch}, {kind}", str(goal), *(f"{value:.0f}" for value in cells)])
    load = os.getloadavg()[0]
    columns = ["sequences", "goal", "step without delivery", *shown]
    report(
        f"Host time of a decode step, microseconds (medians; load of the machine {load:.1f})",
        columns,
        rows,
        {"load_average": load, "steps": results},
        given.output,
    )


if __name__ == "__main__":
    main()
