"""From a plan to the contract's step tensors."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .contract import CrossStepTensors, EmbedStepTensors, Int32Array, StepTensors
from .prompt_embeds import PromptEmbeds
from .scheduler import PlannedSequence, StepPlan
from .sequence import Sequence

BLOCK_TABLE_MULTIPLE = 8
"""The block table's width is rounded up to this, so that steps of like lengths share their shapes."""


def step_tensors(
    plan: StepPlan, block_size: int, min_tokens: int = 1, token_multiple: int = 1
) -> StepTensors:
    """The tensors of one step, int32, as in `contract.STEP_INPUTS`; `CrossStepTensors` of sequences with an encoder.

    Rows are padded to at least `min_tokens` and up to a multiple of `token_multiple`: token 0, position 0,
    slot -1. A step whose sequences want no logits asks for row 0, because a graph must have one.
    """
    entries = plan.entries
    batch = len(entries)
    counts = np.fromiter((entry.num_new_tokens for entry in entries), np.int32, batch)
    past = np.fromiter((entry.sequence.num_computed_tokens for entry in entries), np.int32, batch)
    cu_seqlens = np.zeros(batch + 1, np.int32)
    np.cumsum(counts, out=cu_seqlens[1:])
    used = int(cu_seqlens[-1])
    tokens = max(-(-used // token_multiple) * token_multiple, min_tokens)

    widest = max(len(entry.sequence.block_ids) for entry in entries)
    block_table = np.full((batch, _table_width(widest)), -1, np.int32)
    input_ids = np.zeros(tokens, np.int32)
    for row, (sequence, count, _) in enumerate(entries):
        start, done = cu_seqlens[row], sequence.num_computed_tokens
        input_ids[start : start + count] = sequence.token_ids[done : done + count]
        block_table[row, : len(sequence.block_ids)] = sequence.block_ids

    position_ids = np.zeros(tokens, np.int32)
    slot_mapping = np.full(tokens, -1, np.int32)
    rows = np.repeat(np.arange(batch, dtype=np.int32), counts)
    position_ids[:used] = np.arange(used, dtype=np.int32) - np.repeat(cu_seqlens[:-1] - past, counts)
    positions = position_ids[:used]
    slot_mapping[:used] = block_table[rows, positions // block_size] * block_size + positions % block_size

    wanted = np.fromiter((entry.num_logit_rows > 0 for entry in entries), np.bool_, batch)
    last_rows = (cu_seqlens[1:] - 1)[wanted]
    step = StepTensors(
        input_ids=input_ids,
        position_ids=position_ids,
        cu_seqlens=cu_seqlens,
        past_lens=past,
        block_table=block_table,
        slot_mapping=slot_mapping,
        logits_indices=last_rows if last_rows.size else np.zeros(1, np.int32),
    )
    if entries[0].sequence.num_source_positions:
        return _with_sources(step, entries, counts)
    return step


def with_embeds(
    step: StepTensors, plan: StepPlan, embeds: Callable[[Sequence], PromptEmbeds | None], hidden_size: int
) -> EmbedStepTensors:
    """`step` with `prompt_embeds.embed_inputs`: of each prompt those rows whose tokens are computed now.

    A row lies where its token does. Steps without any have a single row of zeros, so that there are two shapes only.
    """
    tokens = len(step.input_ids)
    rows = np.zeros((1, hidden_size), np.float32)
    index = np.full(tokens, -1, np.int32)
    for start, (sequence, count, _) in zip(step.cu_seqlens.tolist(), plan.entries, strict=False):
        given = embeds(sequence)
        if given is None:
            continue
        done = sequence.num_computed_tokens
        wanted = given.row_of[done : done + count]
        places = np.flatnonzero(wanted >= 0)
        if not places.size:
            continue
        if len(rows) < tokens:
            rows = np.zeros((tokens, hidden_size), np.float32)
        rows[start + places] = given.rows[wanted[places]]
        index[start + places] = start + places
    return EmbedStepTensors(**vars(step), prompt_embeds=rows, embed_index=index)


def _table_width(blocks: int) -> int:
    return -(-blocks // BLOCK_TABLE_MULTIPLE) * BLOCK_TABLE_MULTIPLE


def _with_sources(
    step: StepTensors, entries: tuple[PlannedSequence, ...], counts: Int32Array
) -> CrossStepTensors:
    """`step` with `contract.CROSS_INPUTS`: every token is a sequence of its own, whose blocks are its request's."""
    tokens, used = len(step.input_ids), int(step.cu_seqlens[-1])
    sources = [entry.sequence.source_block_ids for entry in entries]
    tables = np.full((len(entries), _table_width(max(map(len, sources)))), -1, np.int32)
    for row, block_ids in enumerate(sources):
        tables[row, : len(block_ids)] = block_ids
    positions = np.fromiter(
        (entry.sequence.num_source_positions for entry in entries), np.int32, len(entries)
    )
    past_lens = np.zeros(tokens, np.int32)
    past_lens[:used] = np.repeat(positions - 1, counts)
    block_table = np.full((tokens, tables.shape[1]), -1, np.int32)
    block_table[:used] = np.repeat(tables, counts, axis=0)
    return CrossStepTensors(
        **vars(step),
        cu_seqlens_1=np.minimum(np.arange(tokens + 1, dtype=np.int32), np.int32(used)),
        past_lens_1=past_lens,
        block_table_1=block_table,
        slot_mapping_1=np.full(tokens, -1, np.int32),
    )
