"""`bench`: how fast the engine loop of a build is, without a server.

Random token ids, greedy, end tokens ignored, prefixes not shared. Rates are tokens over the wall time of the
steps that made them: decode from steps in which every stream gives one token, prefill from one prompt that
nothing runs beside. Each figure is the median of the rounds.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from model_repo.runtime.contract import EngineSpec
from model_repo.runtime.encoder import EncoderEngine
from model_repo.runtime.engine import Engine
from model_repo.runtime.errors import BadInput
from model_repo.runtime.request import Request, SamplingParams
from model_repo.runtime.step_log import StepLog, StepRecord
from model_repo.runtime.tensors import TensorEngine

PREFILL_TOKENS = 512
DECODE_STREAMS = (1, 16)
DECODE_CONTEXT = 64
DECODE_STEPS = 64
TEXTS = 8
TEXT_TOKENS = 64
ROUNDS = 3
_SEED = 0


@dataclass(frozen=True)
class Rate:
    """One figure: `value` in `unit`; `loop_share` is the part of the time that was not spent in the engine."""

    what: str
    value: float
    unit: str
    loop_share: float | None = None


def bench(folder: Path, spec: EngineSpec, threads: int | None = None) -> list[Rate]:
    """Measures the engine in `folder`. `threads`: None for what was built in, 0 for all cores.

    Raises BadInput when the engine is damaged or too short for the shortest measurement.
    """
    if spec.kind == "encoder":
        return [_encoder(folder, spec, threads)]
    if spec.kind == "tensors":
        return [_tensors(folder, threads)]
    log = StepLog()
    engine = Engine.load(folder, threads=threads, share_prefixes=False, step_log=log)
    engine.warm_up()
    rates = [_prefill(engine, log)]
    rates += [
        _decode(engine, log, streams) for streams in DECODE_STREAMS if streams <= engine.limits.max_batch
    ]
    return rates


def _prefill(engine: Engine, log: StepLog) -> Rate:
    tokens = min(PREFILL_TOKENS, engine.limits.max_length - 2)
    records = [run_steps(engine, log, 1, tokens, 1) for _ in range(ROUNDS)]
    seconds = statistics.median(sum(step.seconds for step in steps) for steps in records)
    return Rate(f"prefill of {tokens}", tokens / seconds, "tokens/s", _loop_share(records))


def _decode(engine: Engine, log: StepLog, streams: int) -> Rate:
    limits = engine.limits
    room = min(limits.max_length, limits.num_blocks // streams * limits.block_size)
    context = min(DECODE_CONTEXT, room // 2)
    steps = min(DECODE_STEPS, room - context - 1)
    if context < 1 or steps < 1:
        raise BadInput(
            f"the pools hold {limits.num_blocks} blocks of {limits.block_size} tokens, too few to measure {streams} "
            "streams; build with a larger kv_cache_bytes"
        )
    rounds = []
    for _ in range(ROUNDS):
        records = run_steps(engine, log, streams, context, steps + 1)
        rounds.append([step for step in records if decodes(step, streams)])
    rate = statistics.median(
        streams * len(records) / sum(step.seconds for step in records) for records in rounds
    )
    return Rate(f"decode, {streams} streams from {context}", rate, "tokens/s", _loop_share(rounds))


def decodes(step: StepRecord, streams: int) -> bool:
    """Whether a step holds all streams, with one new token each."""
    return len(step.rows) == streams and all(row.num_new_tokens == 1 for row in step.rows)


def run_steps(engine: Engine, log: StepLog, streams: int, context: int, new_tokens: int) -> list[StepRecord]:
    """The steps of `streams` requests of `context` random tokens that generate `new_tokens` each."""
    generator = np.random.default_rng(_SEED)
    sampling = SamplingParams(max_tokens=new_tokens, temperature=0.0, ignore_eos=True)
    prompts = generator.integers(0, engine.spec.vocab_size, (streams, context)).tolist()
    log.steps.clear()
    engine.generate([Request(f"bench-{row}", tuple(ids), sampling) for row, ids in enumerate(prompts)])
    return list(log.steps)


def _loop_share(rounds: Sequence[Sequence[StepRecord]]) -> float:
    seconds = sum(step.seconds for steps in rounds for step in steps)
    return 1 - sum(step.executor_seconds for steps in rounds for step in steps) / seconds


def _encoder(folder: Path, spec: EngineSpec, threads: int | None) -> Rate:
    engine = EncoderEngine.load(folder, threads=threads)
    generator = np.random.default_rng(_SEED)
    length = min(TEXT_TOKENS, spec.max_length)
    texts = generator.integers(0, spec.vocab_size, (TEXTS, length)).tolist()
    compute = engine.embed if spec.head.kind == "embedding" else engine.logits
    compute(texts)
    seconds = []
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        compute(texts)
        seconds.append(time.perf_counter() - begin)
    return Rate(f"{TEXTS} texts of {length} tokens", TEXTS / statistics.median(seconds), "texts/s")


def _tensors(folder: Path, threads: int | None) -> Rate:
    """Runs of the inputs that the engine was tried on when it was built."""
    engine = TensorEngine.load(folder, threads=threads)
    example = engine.example()
    engine.run(example)
    seconds = []
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        engine.run(example)
        seconds.append(time.perf_counter() - begin)
    shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in example.items())
    return Rate(f"the example: {shapes}", 1 / statistics.median(seconds), "runs/s")
