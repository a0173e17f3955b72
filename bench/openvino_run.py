"""OpenVINO GenAI's continuous batching on a checkpoint, measured: runs in an environment of its own, without Slipway.

    python bench/openvino_run.py convert CHECKPOINT FOLDER
    python bench/openvino_run.py prefill|decode FOLDER THREADS STREAMS CONTEXT STEPS

`convert` writes OpenVINO's model with int8 weights (optimum-intel's load_in_8bit) to FOLDER. The others print tokens
per second; everything that is not said here is OpenVINO's default.
"""

from __future__ import annotations

import random
import sys
import time

CACHE_GIB = 1
"""Room for keys and values, GiB."""


def convert(checkpoint: str, folder: str) -> None:
    """From a float32 checkpoint to OpenVINO's files. What is measured takes tokens, so no tokenizer goes with them."""
    from optimum.intel import OVModelForCausalLM

    model = OVModelForCausalLM.from_pretrained(checkpoint, export=True, load_in_8bit=True, compile=False)
    model.save_pretrained(folder)


def measure(kind: str, folder: str, threads: int, streams: int, context: int, steps: int) -> float:
    """Tokens per second. Decode time is the difference of a long and a short generation."""
    import numpy as np
    import openvino
    import openvino_genai

    scheduler = openvino_genai.SchedulerConfig()
    scheduler.cache_size = CACHE_GIB
    scheduler.enable_prefix_caching = False
    pipeline = openvino_genai.ContinuousBatchingPipeline(
        folder, scheduler, "CPU", {"INFERENCE_NUM_THREADS": threads}
    )
    draw = random.Random(0)
    prompts = [
        openvino.Tensor(np.array([[draw.randrange(1, 40000) for _ in range(context)]], np.int64))
        for _ in range(streams)
    ]

    def seconds(new_tokens: int) -> float:
        settings = openvino_genai.GenerationConfig()
        settings.max_new_tokens = settings.min_new_tokens = new_tokens
        settings.ignore_eos = True
        settings.do_sample = False
        begin = time.perf_counter()
        pipeline.generate(prompts, [settings] * streams)
        return time.perf_counter() - begin

    seconds(2)
    if kind == "prefill":
        return context / min(seconds(1) for _ in range(2))
    return streams * steps / (seconds(steps + 1) - seconds(1))


def main() -> None:
    kind, *rest = sys.argv[1:]
    if kind == "convert":
        convert(*rest)
    else:
        folder, *numbers = rest
        threads, streams, context, steps = map(int, numbers)
        print(measure(kind, folder, threads, streams, context, steps))


if __name__ == "__main__":
    main()
