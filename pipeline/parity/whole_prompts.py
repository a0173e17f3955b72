"""What decoders' graphs take to be walked through beside each other, whatever their caches: whole prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import numpy as np
import onnx_ir as ir

from model_repo.runtime.contract import KVSpec
from pipeline.fuse.matching import dims

from .decoder import Part, block_tables, step_tensors, zeroed_pools
from .feeds import Feeds

_PAST = "past_lens"


def whole_prompts(
    model: ir.Model, kv: Sequence[KVSpec], prompts: Sequence[Sequence[int]], linear: bool
) -> list[Feeds]:
    """One run a prompt, all of it in one step: on pools that are new at every call, or in one slot of linear caches."""
    if not linear:
        lengths = [len(prompt) for prompt in prompts]
        tables = block_tables(lengths)
        zeroed = zeroed_pools(kv, int(tables.max()) + 1)
        # Types that numpy lacks go between slices of a graph as float32 (`calibration.slices`).
        pools = {
            name: pool if pool.dtype.kind in "iuf" else pool.astype(np.float32)
            for name, pool in zeroed.items()
        }
        steps = [[Part(place, 0, length)] for place, length in enumerate(lengths)]
        return [{**asdict(step_tensors(parts, prompts, tables)), **pools} for parts in steps]
    caches = {
        value.name or "": np.zeros((1, *map(int, (dims(value) or ())[1:])), _numpy(value.dtype))
        for value in model.graph.inputs
        if (value.name or "").startswith(("key_cache_", "value_cache_"))
    }
    return [
        {
            "input_ids": np.array([prompt], np.int32),
            _PAST: np.zeros(1, np.int32),
            "logits_indices": np.arange(len(prompt), dtype=np.int32),
            **caches,
        }
        for prompt in prompts
    ]


def _numpy(dtype: ir.DataType | None) -> np.dtype[np.generic]:
    return np.dtype(np.float16 if dtype == ir.DataType.FLOAT16 else np.float32)
