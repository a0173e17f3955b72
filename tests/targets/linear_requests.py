"""Drives a graph of the linear contract: prompts one slot at a time, then all slots a token at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from model_repo.runtime.contract import LOGITS

Run = Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]
"""Inputs by name to outputs by name."""

PADDED = 3
"""Prompts are padded up to a multiple of this many tokens, as a prefill profile would have it."""


def greedy_in_slots(
    model: ir.Model, run: Run, prompts: Sequence[Sequence[int]], new_tokens: int
) -> list[list[int]]:
    """Greedy tokens of all prompts. Caches begin full of rubbish: what is not masked shows."""
    cache_values = [value for value in model.graph.inputs if "cache" in (value.name or "")]
    numbers = np.random.default_rng(3)
    caches = {
        value.name: numbers.normal(0, 5, (len(prompts), *value.shape[1:])).astype(value.dtype.numpy())
        for value in cache_values
    }
    tokens: list[list[int]] = []
    for slot, prompt in enumerate(prompts):
        rows = -(-len(prompt) // PADDED) * PADDED
        ids = np.full((1, rows), 1, np.int32)
        ids[0, : len(prompt)] = prompt
        logits, written = _step(
            run, ids, [0], [len(prompt) - 1], {n: c[slot : slot + 1] for n, c in caches.items()}
        )
        for name, cache in written.items():
            caches[name][slot] = cache[0]
        tokens.append([int(logits[0].argmax())])
    for _ in range(new_tokens - 1):
        ids = np.array([[made[-1]] for made in tokens], np.int32)
        past = [len(prompt) + len(made) - 1 for prompt, made in zip(prompts, tokens, strict=True)]
        logits, caches = _step(run, ids, past, range(len(prompts)), caches)
        for made, row in zip(tokens, logits, strict=True):
            made.append(int(row.argmax()))
    return tokens


def _step(
    run: Run, ids: np.ndarray, past: Sequence[int], rows: Sequence[int], caches: dict[str, np.ndarray]
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """One step; logits of `rows`, and the caches with the new keys and values."""
    feed = {
        "input_ids": ids,
        "past_lens": np.array(past, np.int32),
        "logits_indices": np.array(rows, np.int32),
    }
    outputs = run({**feed, **caches})
    return outputs[LOGITS.name], {name: outputs[name.replace("cache_", "cache_out_")] for name in caches}
