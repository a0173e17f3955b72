"""Runs a decoder's graph on prompts as the runtime would: packed, prefill in chunks, then decode steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from model_repo.runtime.contract import (
    CROSS,
    LOGITS,
    KVSpec,
    StepTensors,
    key_cache,
    value_cache,
)
from model_repo.runtime.onnxruntime_executor import pool_values
from model_repo.runtime.prompt_embeds import PromptEmbeds

from .cross import Source, SourceBlocks
from .embeds import embed_arrays

BLOCK_SIZE = 8
"""Tokens: small, so that prompts span several blocks."""

CHUNK = 24
"""Tokens of a prompt that one step takes at most."""

DECODED = 4
"""Last tokens of each prompt, which come one a step."""


class Part(NamedTuple):
    """Tokens [start, stop) of prompt `sequence`."""

    sequence: int
    start: int
    stop: int


def run_decoder(
    session: ort.InferenceSession,
    kv: Sequence[KVSpec],
    prompts: Sequence[Sequence[int]],
    sources: Sequence[Source] = (),
    embeds: Sequence[PromptEmbeds] = (),
) -> list[npt.NDArray[np.float32]]:
    """Logits of every token of every prompt: one float32 [len(prompt), vocab] each.

    `sources`: what the encoder gave, for a decoder with cross-attention; prompts attend to them in turn. `embeds`: the
    images of each prompt, for a decoder whose prompts may hold any.

    The graph writes to its pools in place. All prompts are in flight from the first step on; as their lengths
    differ, later steps mix prefill chunks with single tokens.
    """
    tables = block_tables([len(prompt) for prompt in prompts])
    blocks = SourceBlocks(sources, BLOCK_SIZE) if sources else None
    zeroed = zeroed_pools(kv, int(tables.max()) + 1, blocks.num_blocks if blocks else 0)
    if blocks is not None:
        blocks.write(kv, zeroed)
    pools = pool_values(kv, zeroed)
    results: list[list[npt.NDArray[np.float32]]] = [[] for _ in prompts]
    for parts in schedule([len(prompt) for prompt in prompts]):
        step = step_tensors(parts, prompts, tables)
        if blocks is not None:
            step = blocks.with_sources(step, [part.sequence for part in parts])
        binding = session.io_binding()
        images = embed_arrays(embeds, parts, step) if embeds else {}
        for name, array in {**asdict(step), **images}.items():
            binding.bind_cpu_input(name, array)
        for name, pool in pools.items():
            binding.bind_ortvalue_input(name, pool)
        binding.bind_output(LOGITS.name, "cpu")
        session.run_with_iobinding(binding)
        logits = binding.get_outputs()[0].numpy()
        for part, rows in zip(parts, np.split(logits, step.cu_seqlens[1:-1]), strict=True):
            results[part.sequence].append(rows)
    return [np.concatenate(rows) for rows in results]


def schedule(lengths: Sequence[int]) -> Iterator[list[Part]]:
    """The parts of each step until all prompts are through: chunks, then the last tokens one by one."""
    done = [0] * len(lengths)
    while any(start < length for start, length in zip(done, lengths, strict=True)):
        parts = []
        for sequence, length in enumerate(lengths):
            start = done[sequence]
            if start == length:
                continue
            prefill_end = max(1, length - DECODED)
            stop = min(start + CHUNK, prefill_end) if start < prefill_end else start + 1
            parts.append(Part(sequence, start, stop))
            done[sequence] = stop
        yield parts


def block_tables(lengths: Sequence[int], block_size: int = BLOCK_SIZE) -> npt.NDArray[np.int32]:
    """int32 [prompts, most blocks], -1 beyond a prompt's end: blocks dealt out in turn, none contiguous."""
    needed = [-(-length // block_size) for length in lengths]
    tables = np.full((len(lengths), max(needed)), -1, np.int32)
    block = 0
    for column in range(max(needed)):
        for row, count in enumerate(needed):
            if column < count:
                tables[row, column] = block
                block += 1
    return tables


def step_tensors(
    parts: Sequence[Part],
    prompts: Sequence[Sequence[int]],
    tables: npt.NDArray[np.int32],
    block_size: int = BLOCK_SIZE,
) -> StepTensors:
    """The contract's inputs for one step; logits of every row are wanted."""
    ids = [token for part in parts for token in prompts[part.sequence][part.start : part.stop]]
    positions = [position for part in parts for position in range(part.start, part.stop)]
    owners = [part.sequence for part in parts for _ in range(part.start, part.stop)]
    slots = [
        int(tables[owner, position // block_size]) * block_size + position % block_size
        for owner, position in zip(owners, positions, strict=True)
    ]
    return StepTensors(
        input_ids=np.array(ids, np.int32),
        position_ids=np.array(positions, np.int32),
        cu_seqlens=np.cumsum([0, *(part.stop - part.start for part in parts)], dtype=np.int32),
        past_lens=np.array([part.start for part in parts], np.int32),
        block_table=np.ascontiguousarray(tables[[part.sequence for part in parts]]),
        slot_mapping=np.array(slots, np.int32),
        logits_indices=np.arange(len(ids), dtype=np.int32),
    )


def zeroed_pools(
    kv: Sequence[KVSpec], num_blocks: int, num_cross_blocks: int = 0, block_size: int = BLOCK_SIZE
) -> dict[str, npt.NDArray[np.generic]]:
    """Pools by input name, [num_blocks, block_size, kv_heads, dim]; the graph writes to them."""
    pools = {}
    for layer, spec in enumerate(kv):
        blocks = num_cross_blocks if spec.group == CROSS else num_blocks
        for name, dim in ((key_cache(layer), spec.key_dim), (value_cache(layer), spec.value_dim)):
            dtype = np.dtype("float8_e4m3fn" if spec.dtype == "fp8" else spec.dtype)
            pools[name] = np.zeros((blocks, block_size, spec.kv_heads, dim), dtype)
    return pools
