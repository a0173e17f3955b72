"""An engine of plain Python whose next token depends on every token it finds in the cache.

It stores token ids and positions in pools through `slot_mapping`, and reads them back through the block table:
a wrong block, slot, position or boundary changes the tokens of a request. It also checks the contract.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from model_repo.runtime.contract import EngineSpec, Int32Array, KVSpec, Limits, StepTensors
from model_repo.runtime.executor import BucketRule

VOCAB_SIZE = 64
NEVER_WRITTEN = -7


def fake_spec(
    max_batch: int = 4,
    token_budget: int = 16,
    max_length: int = 64,
    block_size: int = 4,
    num_blocks: int = 64,
    vocab_size: int = VOCAB_SIZE,
    end_token_ids: tuple[int, ...] = (),
) -> EngineSpec:
    """A decoder's spec with small limits."""
    return EngineSpec(
        kind="decoder",
        name="fake",
        target="onnxruntime",
        precision="fp32",
        graph="engine.onnx",
        plugin=None,
        vocab_size=vocab_size,
        max_length=max_length,
        end_token_ids=end_token_ids,
        kv=(KVSpec(0, 1, 1, 1, 0, "float32"),),
        limits=Limits(max_batch, token_budget, max_length, block_size, num_blocks),
    )


def logits_after(token_ids: Sequence[int], vocab_size: int = VOCAB_SIZE) -> npt.NDArray[np.float32]:
    """What the fake model says after `token_ids`: logits float32 [vocab], pseudo-random in all of them."""
    seen = np.stack([np.asarray(token_ids, np.int64), np.arange(len(token_ids), dtype=np.int64)])
    return _logits(seen, vocab_size)


def greedy_completion(prompt: Sequence[int], count: int, vocab_size: int = VOCAB_SIZE) -> list[int]:
    """The fake model's own greedy continuation, computed without any engine."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(logits_after(tokens, vocab_size).argmax()))
    return tokens[len(prompt) :]


class FakeExecutor:
    """Pools of `num_blocks` blocks. `before_run` is called with each step's tensors and may raise."""

    def __init__(
        self,
        spec: EngineSpec,
        num_blocks: int | None = None,
        bucket_rule: BucketRule | None = None,
        before_run: Callable[[StepTensors], None] | None = None,
    ) -> None:
        limits = spec.decoder_limits
        self._limits = limits
        self._vocab_size = spec.vocab_size
        self._rule = bucket_rule or BucketRule()
        self._before_run = before_run
        slots = (num_blocks or limits.num_blocks) * limits.block_size
        self._pool = np.full((2, slots), NEVER_WRITTEN, np.int64)  # token ids, positions
        self.num_steps = 0
        self.num_tokens = 0

    @property
    def bucket_rule(self) -> BucketRule:
        return self._rule

    def run(self, step: StepTensors) -> npt.NDArray[np.float32]:
        if self._before_run is not None:
            self._before_run(step)
        check_contract(step, self._limits, self._pool.shape[1], self._vocab_size, self._rule)
        self.num_steps += 1
        self.num_tokens += int(step.cu_seqlens[-1])
        written = step.slot_mapping >= 0
        self._pool[0, step.slot_mapping[written]] = step.input_ids[written]
        self._pool[1, step.slot_mapping[written]] = step.position_ids[written]
        return np.stack([self._row(step, int(row)) for row in step.logits_indices])

    def _row(self, step: StepTensors, row: int) -> npt.NDArray[np.float32]:
        sequence = int(np.searchsorted(step.cu_seqlens, row, side="right")) - 1
        if sequence >= len(step.past_lens):
            return np.full(self._vocab_size, np.nan, np.float32)  # a padding row: nobody may read it
        length = int(step.past_lens[sequence]) + row - int(step.cu_seqlens[sequence]) + 1
        positions = np.arange(length)
        size = self._limits.block_size
        slots = step.block_table[sequence, positions // size].astype(np.int64) * size + positions % size
        seen = self._pool[:, slots]
        assert (seen[1] == positions).all(), f"the cache of sequence {sequence} holds positions {seen[1]}"
        return _logits(seen, self._vocab_size)


def check_contract(
    step: StepTensors, limits: Limits, num_slots: int, vocab_size: int, rule: BucketRule
) -> None:
    """AssertionError where a step breaks the contract of `contract.STEP_INPUTS`."""
    for name, array in vars(step).items():
        assert array.dtype == np.int32, f"{name} is {array.dtype}"
    tokens, batch = len(step.input_ids), len(step.past_lens)
    cu = step.cu_seqlens
    used = int(cu[-1])
    assert 1 <= batch <= limits.max_batch
    assert tokens >= rule.min_tokens
    assert tokens % rule.token_multiple == 0 or tokens == rule.min_tokens
    assert cu.shape == (batch + 1,)
    assert cu[0] == 0
    assert (np.diff(cu) >= 1).all(), "a sequence without tokens"
    assert used <= limits.token_budget
    assert used <= tokens
    assert step.position_ids.shape == step.slot_mapping.shape == (tokens,)
    assert ((step.input_ids >= 0) & (step.input_ids < vocab_size)).all()
    _check_padding(step, used)
    writes = step.slot_mapping[:used]
    assert (writes >= 0).all()
    assert (writes < num_slots).all()
    assert len(np.unique(writes)) == used, "a slot is written twice"
    for row in range(batch):
        _check_sequence(step, row, limits)
    wanted = step.logits_indices
    assert len(wanted) >= 1
    assert (np.diff(wanted) > 0).all()
    assert ((wanted >= 0) & (wanted < used)).all(), "logits of a row that is no token"


def _check_padding(step: StepTensors, used: int) -> None:
    assert (step.slot_mapping[used:] == -1).all(), "a padding row would be written"
    assert (step.input_ids[used:] == 0).all()
    assert (step.position_ids[used:] == 0).all()


def _check_sequence(step: StepTensors, row: int, limits: Limits) -> None:
    start, end, past = int(step.cu_seqlens[row]), int(step.cu_seqlens[row + 1]), int(step.past_lens[row])
    length = past + end - start
    assert past >= 0
    assert length <= limits.max_length
    positions: Int32Array = step.position_ids[start:end]
    assert positions.tolist() == list(range(past, length))
    held = -(-length // limits.block_size)
    table = step.block_table[row]
    assert (table[:held] >= 0).all(), "a block is missing"
    assert (table[held:] == -1).all(), "the block table goes on beyond the sequence's end"
    assert len(set(table[:held].tolist())) == held, "a block is listed twice"
    blocks, offsets = positions // limits.block_size, positions % limits.block_size
    assert (step.slot_mapping[start:end] == table[blocks] * limits.block_size + offsets).all()


def _logits(seen: npt.NDArray[np.int64], vocab_size: int) -> npt.NDArray[np.float32]:
    digest = zlib.crc32(np.ascontiguousarray(seen).tobytes())
    return np.random.default_rng(digest).normal(0.0, 2.0, vocab_size).astype(np.float32)
