"""The parity inputs as a graph takes them: one set of arrays by input name for each run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Literal

import numpy.typing as npt

from model_repo.runtime.contract import KVSpec

from .decoder import BLOCK_SIZE, block_tables, schedule, step_tensors, zeroed_pools
from .encoder import padded

Feeds = dict[str, npt.NDArray[Any]]


def graph_feeds(
    kind: Literal["decoder", "encoder", "tensors"],
    kv: Sequence[KVSpec],
    inputs: Sequence[Any],
    block_size: int = BLOCK_SIZE,
) -> list[Feeds]:
    """What each run of a graph of this kind takes; `inputs` as `BuildContext.parity_inputs` gives them.

    A decoder's runs are the steps of `decoder.schedule`, in order, on pools (of blocks of `block_size` tokens) that
    all of them share; they are new ones at every call. An encoder's: all texts padded, then each alone. Named tensors'
    are `inputs`.
    """
    if kind == "decoder":
        return _steps(kv, inputs, block_size)
    if kind == "encoder":
        return [dict(padded(texts)) for texts in (inputs, *([text] for text in inputs))]
    return [dict(feeds) for feeds in inputs]


def _steps(kv: Sequence[KVSpec], prompts: Sequence[Sequence[int]], block_size: int) -> list[Feeds]:
    lengths = [len(prompt) for prompt in prompts]
    tables = block_tables(lengths, block_size)
    pools = zeroed_pools(kv, int(tables.max()) + 1, block_size=block_size)
    return [
        {**asdict(step_tensors(parts, prompts, tables, block_size)), **pools} for parts in schedule(lengths)
    ]
