"""The engine loop by itself, measured in a process of its own: `python -m bench.loop ENGINE KIND ...` prints JSON."""

from __future__ import annotations

import argparse
import json
import os
import resource
from pathlib import Path
from typing import Any

from model_repo.runtime.engine import Engine
from model_repo.runtime.step_log import StepLog
from pipeline.bench import decodes, run_steps


def measure_decode(engine: Engine, log: StepLog, streams: int, context: int, steps: int) -> dict[str, float]:
    """Steps in which every stream got one token: tokens per second, and the share of time outside the engine."""
    full = [step for step in run_steps(engine, log, streams, context, steps + 1) if decodes(step, streams)]
    seconds = sum(step.seconds for step in full)
    inside = sum(step.executor_seconds for step in full)
    return {"tokens_per_second": streams * len(full) / seconds, "python_share": 1 - inside / seconds}


def measure_prefill(engine: Engine, log: StepLog, tokens: int) -> dict[str, float]:
    """One prompt, all of its steps; the better of two."""
    seconds = min(sum(step.seconds for step in run_steps(engine, log, 1, tokens, 1)) for _ in range(2))
    return {"tokens_per_second": tokens / seconds}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("engine", type=Path)
    parser.add_argument("kind", choices=["decode", "prefill"])
    parser.add_argument("--streams", type=int, default=1)
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--steps", type=int, default=64)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--num-blocks", type=int)
    options = parser.parse_args()
    log = StepLog()
    engine = Engine.load(
        options.engine,
        threads=options.threads,
        num_blocks=options.num_blocks,
        share_prefixes=False,
        verify=False,
        step_log=log,
    )
    engine.warm_up()
    if options.kind == "decode":
        figures: dict[str, Any] = measure_decode(engine, log, options.streams, options.context, options.steps)
    else:
        figures = measure_prefill(engine, log, options.context)
    used_blocks = options.streams * -(-(options.context + options.steps + 1) // engine.limits.block_size)
    figures["peak_megabytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    figures["pool_megabytes"] = (
        used_blocks * engine.limits.block_size * engine.spec.kv_bytes_per_token / 2**20
    )
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
