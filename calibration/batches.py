"""Calibration data as a model's graph takes it: packed steps, texts of one length, or named tensors.

No row is padding, so that nothing is observed which no request would bring: a decoder's sequences lie packed,
an encoder's texts come in groups of one length, and named tensors one sample a row.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from model_repo.runtime.contract import (
    KVSpec,
    StepTensors,
    TensorSpec,
    has_cross_attention,
    key_cache,
    value_cache,
)
from model_repo.runtime.errors import BadInput

Array = npt.NDArray[Any]
Feeds = dict[str, Array]

TOKENS = 512
"""Tokens of a batch; a longer sequence is a batch by itself. Bounds what one run keeps of its activations."""
BLOCK_SIZE = 16


class Model(Protocol):
    """What is known of a model: an `EngineSpec` or what the export recorded."""

    @property
    def kind(self) -> Literal["decoder", "encoder", "tensors"]: ...

    @property
    def kv(self) -> Sequence[KVSpec]: ...

    @property
    def inputs(self) -> Sequence[TensorSpec]: ...

    @property
    def batched(self) -> bool: ...


class Batch(NamedTuple):
    """One run of a graph: `feeds` by input name, and how many of `samples` are in it, by their places.

    A decoder's pools are in `feeds` too; the graph writes to them, and the next batch uses the same arrays.
    """

    feeds: Feeds
    samples: tuple[int, ...]
    tokens: int  # rows of samples, where samples have no tokens


class Batches:
    """All samples as batches, in the same order at every iteration.

    `samples`: token ids of each (decoder, encoder), or an array for each input (named tensors). A decoder is asked
    for the logits of every `logit_stride`-th token of a batch.
    """

    def __init__(
        self, model: Model, samples: Sequence[Any], *, tokens: int = TOKENS, logit_stride: int = 1
    ) -> None:
        """Raises BadInput for a decoder that attends to an encoder: what that reads is in no sample."""
        refuse_cross_attention(model.kv)
        self.model = model
        self.samples = samples
        self.logit_stride = logit_stride
        self._groups = list(_groups(model, samples, tokens))

    def __len__(self) -> int:
        """Batches of one iteration."""
        return len(self._groups)

    def __iter__(self) -> Iterator[Batch]:
        """The batches. A decoder's pools are new at every iteration."""
        if self.model.kind == "decoder":
            yield from self._steps()
        elif self.model.kind == "encoder":
            for group in self._groups:
                texts = [self.samples[place] for place in group]
                yield Batch(texts_of_one_length(texts), tuple(group), sum(map(len, texts)))
        else:
            for group in self._groups:
                feeds = _joined([self.samples[place] for place in group])
                yield Batch(feeds, tuple(group), len(group))

    def _steps(self) -> Iterator[Batch]:
        blocks = max(sum(_blocks(self.samples[place]) for place in group) for group in self._groups)
        pools = zeroed_pools(self.model.kv, blocks, BLOCK_SIZE)
        for group in self._groups:
            step = packed_step([self.samples[place] for place in group], self.logit_stride)
            yield Batch({**asdict(step), **pools}, tuple(group), len(step.input_ids))


def refuse_cross_attention(kv: Sequence[KVSpec]) -> None:
    """Raises BadInput when a layer attends to an encoder's output."""
    if has_cross_attention(kv):
        raise BadInput(
            "models with an encoder and a decoder are neither calibrated nor evaluated in this version: samples are "
            "texts of one side; quantize their weights alone (precision int8-weights or int4)"
        )


def packed_step(sequences: Sequence[Sequence[int]], logit_stride: int = 1) -> StepTensors:
    """Whole sequences as one step of the decoder contract, in blocks of BLOCK_SIZE one after the other."""
    lengths = np.array([len(ids) for ids in sequences], np.int32)
    blocks = -(-lengths // BLOCK_SIZE)
    first = np.cumsum(blocks) - blocks
    tables = np.full((len(sequences), int(blocks.max())), -1, np.int32)
    for row, (start, count) in enumerate(zip(first, blocks, strict=True)):
        tables[row, :count] = np.arange(start, start + count)
    positions = np.concatenate([np.arange(length, dtype=np.int32) for length in lengths])
    tokens = int(lengths.sum())
    return StepTensors(
        input_ids=np.fromiter(itertools.chain.from_iterable(sequences), np.int32, tokens),
        position_ids=positions,
        cu_seqlens=np.concatenate(([0], np.cumsum(lengths))).astype(np.int32),
        past_lens=np.zeros(len(sequences), np.int32),
        block_table=tables,
        slot_mapping=(np.repeat(first * BLOCK_SIZE, lengths) + positions).astype(np.int32),
        logits_indices=np.arange(0, tokens, logit_stride, dtype=np.int32),
    )


def zeroed_pools(kv: Sequence[KVSpec], num_blocks: int, block_size: int) -> Feeds:
    """Pools by input name, [num_blocks, block_size, kv_heads, dim] each."""
    pools: Feeds = {}
    for layer, spec in enumerate(kv):
        for name, dim in ((key_cache(layer), spec.key_dim), (value_cache(layer), spec.value_dim)):
            dtype = np.dtype("float8_e4m3fn" if spec.dtype == "fp8" else spec.dtype)
            pools[name] = np.zeros((num_blocks, block_size, spec.kv_heads, dim), dtype)
    return pools


def texts_of_one_length(texts: Sequence[Sequence[int]]) -> Feeds:
    """int64 [texts, length] each: ids, a mask of ones, and token types of zero."""
    ids = np.array(texts, np.int64)
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}


def _joined(samples: Sequence[Mapping[str, Array]]) -> Feeds:
    """One sample as it is, several joined along axis 0."""
    if len(samples) == 1:
        return dict(samples[0])
    return {name: np.concatenate([sample[name] for sample in samples]) for name in samples[0]}


def _groups(model: Model, samples: Sequence[Any], tokens: int) -> Iterator[list[int]]:
    """Places of the samples of each batch."""
    if model.kind == "tensors":
        size = tokens // 32 if model.batched else 1
        yield from (
            list(range(start, min(start + size, len(samples)))) for start in range(0, len(samples), size)
        )
        return
    places: Sequence[int] = range(len(samples))
    if model.kind == "encoder":
        places = sorted(places, key=lambda place: len(samples[place]))
    group: list[int] = []
    held = 0
    for place in places:
        length = len(samples[place])
        other_length = model.kind == "encoder" and group and len(samples[group[0]]) != length
        if group and (held + length > tokens or other_length):
            yield group
            group, held = [], 0
        group.append(place)
        held += length
    if group:
        yield group


def _blocks(ids: Sequence[int]) -> int:
    return -(-len(ids) // BLOCK_SIZE)
