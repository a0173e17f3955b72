"""A graph whose accuracy is asked for: an engine as it is served, or the float32 graph that it was made of."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from calibration.batches import BLOCK_SIZE, packed_step, zeroed_pools
from model_repo.runtime.contract import LOGITS, KVSpec, StepTensors
from model_repo.runtime.onnxruntime_executor import pool_values

Array = npt.NDArray[Any]


@dataclass
class Subject:
    """`kv`: what a decoder's layers keep. `bytes`: of the graph and its weights. Counts what it computes and how long
    that takes."""

    name: str
    session: ort.InferenceSession
    bytes: int
    kv: Sequence[KVSpec] = ()
    tokens: int = 0
    seconds: float = 0.0
    _inputs: set[str] = field(init=False)

    def __post_init__(self) -> None:
        self._inputs = {value.name for value in self.session.get_inputs()}

    @property
    def tokens_per_second(self) -> float:
        """Over all runs so far; 0 before the first one."""
        return self.tokens / self.seconds if self.seconds else 0.0

    def run(self, feeds: Mapping[str, Array | ort.OrtValue], tokens: int) -> dict[str, Array]:
        """Outputs by name; inputs that the graph does not take are left out. `tokens` of work are counted."""
        given = {name: array for name, array in feeds.items() if name in self._inputs}
        names = [value.name for value in self.session.get_outputs()]
        begin = time.perf_counter()
        results = self.session.run(names, given)
        self.seconds += time.perf_counter() - begin
        self.tokens += tokens
        return dict(zip(names, results, strict=True))

    def pools(self, num_blocks: int) -> dict[str, ort.OrtValue]:
        """New pools for so many blocks."""
        return pool_values(self.kv, zeroed_pools(self.kv, num_blocks, BLOCK_SIZE))

    def logits(self, step: StepTensors, pools: Mapping[str, ort.OrtValue]) -> npt.NDArray[np.float32]:
        """Logits of a step, [selected, vocab]; its keys and values go to `pools`."""
        feeds: dict[str, Array | ort.OrtValue] = {**asdict(step), **pools}
        found: npt.NDArray[np.float32] = self.run(feeds, len(step.input_ids))[LOGITS.name]
        return found


def greedy(subject: Subject, prompts: Sequence[Sequence[int]], new_tokens: int) -> list[list[int]]:
    """The likeliest next token, `new_tokens` times, for all prompts together: one prefill, then decode steps."""
    longest = max(len(prompt) for prompt in prompts) + new_tokens
    blocks = -(-longest // BLOCK_SIZE)
    tables = np.arange(len(prompts) * blocks, dtype=np.int32).reshape(len(prompts), blocks)
    pools = subject.pools(len(prompts) * blocks)
    lengths = np.array([len(prompt) for prompt in prompts], np.int32)
    step = packed_step(prompts)
    owners = np.repeat(np.arange(len(prompts)), lengths)
    step = StepTensors(
        **{
            **asdict(step),
            "block_table": tables,
            "slot_mapping": _slots(tables, owners, step.position_ids),
            "logits_indices": step.cu_seqlens[1:] - 1,
        }
    )
    chosen = [subject.logits(step, pools).argmax(axis=1).astype(np.int32)]
    rows = np.arange(len(prompts), dtype=np.int32)
    for place in range(new_tokens - 1):
        positions = lengths + np.int32(place)
        step = StepTensors(
            input_ids=chosen[-1],
            position_ids=positions,
            cu_seqlens=np.arange(len(prompts) + 1, dtype=np.int32),
            past_lens=positions,
            block_table=tables,
            slot_mapping=_slots(tables, rows, positions),
            logits_indices=rows,
        )
        chosen.append(subject.logits(step, pools).argmax(axis=1).astype(np.int32))
    tokens: list[list[int]] = np.stack(chosen, axis=1).tolist()
    return tokens


def _slots(tables: Array, owners: Array, positions: Array) -> npt.NDArray[np.int32]:
    """Where each token's key and value go."""
    slots: npt.NDArray[np.int32] = (
        tables[owners, positions // BLOCK_SIZE] * BLOCK_SIZE + positions % BLOCK_SIZE
    )
    return slots.astype(np.int32)
