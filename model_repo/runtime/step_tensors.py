"""From a plan to the contract's step tensors."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .block_tables import BlockTables, table_width
from .contract import CrossStepTensors, EmbedStepTensors, Int32Array, StepTensors
from .prompt_embeds import PromptEmbeds
from .sequence import Sequence
from .step_plan import NOT_CARRIED, PlannedSequence, StepPlan


def step_tensors(
    plan: StepPlan, tables: BlockTables, min_tokens: int = 1, token_multiple: int = 1
) -> StepTensors:
    """The tensors of one step, int32, as in `contract.STEP_INPUTS`; `CrossStepTensors` of sequences with an encoder.

    Rows are padded to at least `min_tokens` and up to a multiple of `token_multiple`: token 0, position 0,
    slot -1. A step whose sequences want no logits asks for row 0, because a graph must have one. Tokens that are
    carried (see `carried_rows`) are 0.
    """
    entries = plan.entries
    batch = len(entries)
    sequences, num_new_tokens, num_logit_rows, num_cached_tokens, _ = zip(*entries, strict=True)
    counts = np.array(num_new_tokens, np.int32)
    past = np.array(num_cached_tokens, np.int32)
    cu_seqlens = np.zeros(batch + 1, np.int32)
    np.cumsum(counts, out=cu_seqlens[1:])
    used = int(cu_seqlens[-1])
    tokens = max(-(-used // token_multiple) * token_multiple, min_tokens)

    input_ids = np.zeros(tokens, np.int32)
    input_ids[:used] = _token_ids(entries)
    block_table = tables.of(sequences)
    position_ids = np.zeros(tokens, np.int32)
    slot_mapping = np.full(tokens, -1, np.int32)
    rows = np.repeat(np.arange(batch, dtype=np.int32), counts)
    position_ids[:used] = np.arange(used, dtype=np.int32) - np.repeat(cu_seqlens[:-1] - past, counts)
    blocks, offsets = np.divmod(position_ids[:used], np.int32(tables.block_size))
    slot_mapping[:used] = block_table[rows, blocks] * np.int32(tables.block_size) + offsets

    last_rows = (cu_seqlens[1:] - 1)[np.array(num_logit_rows, np.bool_)]
    step = StepTensors(
        input_ids=input_ids,
        position_ids=position_ids,
        cu_seqlens=cu_seqlens,
        past_lens=past,
        block_table=block_table,
        slot_mapping=slot_mapping,
        logits_indices=last_rows if last_rows.size else np.zeros(1, np.int32),
    )
    if sequences[0].num_source_positions:
        return _with_sources(step, entries, counts)
    return step


def carried_rows(plan: StepPlan, step: StepTensors) -> Int32Array | None:
    """What `LaunchingExecutor.launch` wants to know of tokens that are not known yet: int32 [tokens], or None."""
    rows = np.array([entry.carried_row for entry in plan.entries], np.int32)
    if (rows == NOT_CARRIED).all():
        return None
    carried = np.full(len(step.input_ids), NOT_CARRIED, np.int32)
    carried[step.cu_seqlens[:-1]] = rows  # whose token is carried has no other
    return carried


def with_embeds(
    step: StepTensors, plan: StepPlan, embeds: Callable[[Sequence], PromptEmbeds | None], hidden_size: int
) -> EmbedStepTensors:
    """`step` with `prompt_embeds.embed_inputs`: of each prompt those rows whose tokens are computed now.

    A row lies where its token does. Steps without any have a single row of zeros, so that there are two shapes only.
    """
    tokens = len(step.input_ids)
    rows = np.zeros((1, hidden_size), np.float32)
    index = np.full(tokens, -1, np.int32)
    for start, (sequence, count, _, done, _) in zip(step.cu_seqlens.tolist(), plan.entries, strict=False):
        given = embeds(sequence)
        if given is None:
            continue
        wanted = given.row_of[done : done + count]
        places = np.flatnonzero(wanted >= 0)
        if not places.size:
            continue
        if len(rows) < tokens:
            rows = np.zeros((tokens, hidden_size), np.float32)
        rows[start + places] = given.rows[wanted[places]]
        index[start + places] = start + places
    return EmbedStepTensors(**vars(step), prompt_embeds=rows, embed_index=index)


def _token_ids(entries: tuple[PlannedSequence, ...]) -> list[int]:
    """The step's tokens, sequence after sequence; 0 for those that are carried."""
    token_ids: list[int] = []
    for sequence, count, _, done, carried_row in entries:
        if carried_row != NOT_CARRIED:
            token_ids.append(0)
        elif count == 1:
            token_ids.append(sequence.token_ids[done])
        else:
            token_ids += sequence.token_ids[done : done + count]
    return token_ids


def _with_sources(
    step: StepTensors, entries: tuple[PlannedSequence, ...], counts: Int32Array
) -> CrossStepTensors:
    """`step` with `contract.CROSS_INPUTS`: every token is a sequence of its own, whose blocks are its request's."""
    tokens, used = len(step.input_ids), int(step.cu_seqlens[-1])
    sources = [entry.sequence.source_block_ids for entry in entries]
    tables = np.full((len(entries), table_width(max(map(len, sources)))), -1, np.int32)
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
