"""The fake model with an encoder: its next token depends on every number of the encoder's input as well."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from model_repo.runtime.contract import (
    CROSS,
    CrossStepTensors,
    EncoderSpec,
    EngineSpec,
    KVSpec,
    StepTensors,
    TensorSpec,
)
from model_repo.runtime.cross_attention import POSITIONS
from tests.runtime.fake_executor import NEVER_WRITTEN, VOCAB_SIZE, FakeExecutor, fake_spec, logits_after

MAX_POSITIONS = 19
Encoder = Callable[[npt.NDArray[Any]], None]


def cross_spec(num_cross_blocks: int = 32, **limits: int) -> EngineSpec:
    """An encoder-decoder's spec with small limits; the encoder takes token ids."""
    spec = fake_spec(**limits)
    assert spec.limits is not None
    return dataclasses.replace(
        spec,
        kv=(*spec.kv, KVSpec(CROSS, 1, 1, 1, 0, "float32")),
        limits=dataclasses.replace(spec.limits, num_cross_blocks=num_cross_blocks),
        encoder=EncoderSpec(
            "encoder.onnx", TensorSpec("input_ids", "int64", (1, POSITIONS)), MAX_POSITIONS, prompt_ids=(1,)
        ),
    )


def expected_tokens(source: Sequence[int], prompt: Sequence[int], count: int) -> list[int]:
    """The fake model's own greedy continuation, computed without any engine."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int((logits_after(tokens) + _shift(np.asarray(source, np.int64))).argmax()))
    return tokens[len(prompt) :]


class FakeCrossExecutor(FakeExecutor):
    """Keeps the encoder's inputs in a pool of their own. `before_encode` gets each input and may raise."""

    def __init__(self, spec: EngineSpec, before_encode: Encoder | None = None) -> None:
        super().__init__(spec)
        self.encoded: list[list[int]] = []
        self._before_encode = before_encode
        slots = spec.decoder_limits.num_cross_blocks * spec.decoder_limits.block_size
        self._cross_pool = np.full(slots, NEVER_WRITTEN, np.int64)

    def encode(self, source: npt.NDArray[Any], block_ids: Sequence[int]) -> None:
        self.encoded.append(source[0].tolist())
        if self._before_encode is not None:
            self._before_encode(source)
        size = self._limits.block_size
        assert len(block_ids) == -(-source.shape[1] // size)
        for place, number in enumerate(source[0]):
            self._cross_pool[block_ids[place // size] * size + place % size] = number

    def run(self, step: StepTensors) -> npt.NDArray[np.float32]:
        assert isinstance(step, CrossStepTensors)
        self._check_cross(step)
        return super().run(step)

    def _row(self, step: StepTensors, row: int) -> npt.NDArray[np.float32]:
        """Logits of the row's tokens so far, shifted by what the row attends to in the cross pool."""
        assert isinstance(step, CrossStepTensors)
        size = self._limits.block_size
        positions = np.arange(int(step.past_lens_1[row]) + 1)
        slots = step.block_table_1[row, positions // size].astype(np.int64) * size + positions % size
        return super()._row(step, row) + _shift(self._cross_pool[slots])

    def _check_cross(self, step: CrossStepTensors) -> None:
        tokens, used = len(step.input_ids), int(step.cu_seqlens[-1])
        assert step.cu_seqlens_1.tolist() == [*range(used + 1), *[used] * (tokens - used)]
        assert step.past_lens_1.shape == step.slot_mapping_1.shape == (tokens,)
        assert step.block_table_1.shape[0] == tokens
        assert (step.slot_mapping_1 == -1).all()
        held = -(-(step.past_lens_1[:used] + 1) // self._limits.block_size)
        for row in range(used):
            assert (step.block_table_1[row, : held[row]] >= 0).all()
            assert (step.block_table_1[row, held[row] :] == -1).all()


def _shift(source: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    digest = zlib.crc32(np.ascontiguousarray(source).tobytes())
    return np.random.default_rng(digest).normal(0.0, 2.0, VOCAB_SIZE).astype(np.float32)
