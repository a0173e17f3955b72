"""Encoder-decoders in comparisons: what their encoders are given, and the blocks that their decoders then attend to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from model_repo.runtime.contract import (
    CROSS,
    CrossStepTensors,
    EncoderSpec,
    KVSpec,
    StepTensors,
    key_cache,
    value_cache,
)
from model_repo.runtime.cross_attention import cross_key, cross_value

Array = npt.NDArray[Any]
Source = Mapping[str, Array]
"""What an encoder's graph gave for one input: output name -> [1, positions, kv_heads, size]."""

LENGTHS = (21, 8)
"""Tokens of the texts; prompts attend to them in turn."""

_SEED = 20_11


def encoder_beside(graph: Path) -> Path:
    """Where the encoder's graph lies when the decoder's is `graph`: fuse.onnx, fuse.encoder.onnx."""
    return graph.with_name(f"{graph.name.removesuffix('.onnx')}.encoder.onnx")


def encoder_arrays(encoder: EncoderSpec, vocab_size: int) -> list[Array]:
    """Inputs of the encoder, from a fixed seed: token ids, or as much sound as it takes, of normal numbers."""
    random = np.random.default_rng(_SEED)
    arrays: list[Array] = []
    for length in LENGTHS:
        shape = [
            size if isinstance(size, int) else min(length, encoder.max_positions)
            for size in encoder.input.shape
        ]
        if encoder.input.dtype.startswith("float"):
            arrays.append(random.standard_normal(shape).astype(encoder.input.dtype))
        else:
            arrays.append(random.integers(0, vocab_size, shape).astype(encoder.input.dtype))
    return arrays


def run_encoder_graph(session: ort.InferenceSession, encoder: EncoderSpec, vocab_size: int) -> list[Source]:
    """What the encoder's graph gives for each of `encoder_arrays`."""
    names = [value.name for value in session.get_outputs()]
    return [
        dict(zip(names, session.run(names, {encoder.input.name: array}), strict=True))
        for array in encoder_arrays(encoder, vocab_size)
    ]


class SourceBlocks:
    """The sources one after another in blocks of the group CROSS; prompt p attends to source p modulo their number."""

    def __init__(self, sources: Sequence[Source], block_size: int) -> None:
        self._sources = sources
        self._size = block_size
        self._lengths = [next(iter(source.values())).shape[1] for source in sources]
        counts = [-(-length // block_size) for length in self._lengths]
        self.num_blocks = sum(counts)
        self._tables = np.full((len(sources), max(counts)), -1, np.int32)
        first = 0
        for row, count in enumerate(counts):
            self._tables[row, :count] = np.arange(first, first + count)
            first += count

    def write(self, kv: Sequence[KVSpec], pools: Mapping[str, npt.NDArray[Any]]) -> None:
        """Every source's keys and values into the pools [num_blocks, block_size, kv_heads, size]."""
        for row, source in enumerate(self._sources):
            positions = np.arange(self._lengths[row])
            blocks = self._tables[row, positions // self._size]
            for layer, spec in enumerate(kv):
                if spec.group == CROSS:
                    pools[key_cache(layer)][blocks, positions % self._size] = source[cross_key(layer)][0]
                    pools[value_cache(layer)][blocks, positions % self._size] = source[cross_value(layer)][0]

    def with_sources(self, step: StepTensors, prompts: Sequence[int]) -> CrossStepTensors:
        """The step with `contract.CROSS_INPUTS`; `prompts`: the number of each sequence's prompt."""
        tokens = len(step.input_ids)
        rows = np.repeat(np.array(prompts) % len(self._sources), np.diff(step.cu_seqlens))
        return CrossStepTensors(
            **vars(step),
            cu_seqlens_1=np.arange(tokens + 1, dtype=np.int32),
            past_lens_1=np.array(self._lengths, np.int32)[rows] - 1,
            block_table_1=np.ascontiguousarray(self._tables[rows]),
            slot_mapping_1=np.full(tokens, -1, np.int32),
        )
