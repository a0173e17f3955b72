"""`fake_executor`'s model as an engine on a `HostDevice`: it finds everything by the addresses that it was given."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from model_repo.runtime.contract import LOGITS, STEP_INPUTS, EngineSpec
from model_repo.runtime.device_engine import DeviceTensor
from model_repo.runtime.errors import BadInput
from model_repo.runtime.host_device import HostDevice

from .fake_executor import logits_after

PROFILES = ("decode", "prefill", "mixed")


class FakeDeviceEngine:
    """Keeps token ids in the key pool and positions in the value pool. `before` may raise; it sees the step's inputs.

    Where padding was computed as if it were a sequence, or the wrong slot written, tokens differ.
    """

    def __init__(
        self,
        device: HostDevice,
        spec: EngineSpec,
        before: Callable[[Mapping[str, npt.NDArray[np.int32]]], None] | None = None,
    ) -> None:
        self._device = device
        self._vocab = spec.vocab_size
        self._block_size = spec.decoder_limits.block_size
        self._before = before
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._profile = ""
        self.enqueued: Counter[tuple[str, int]] = Counter()  # by profile and tokens
        self.tensors: dict[str, DeviceTensor] = {}
        self.inputs = [spec.name for spec in STEP_INPUTS]
        for name in self.inputs:
            self.tensors[name] = DeviceTensor(name, "input", "int32", (None,))
        for name in ("key_cache_0", "value_cache_0"):
            shape = (None, self._block_size, 1, 1)
            self.tensors[name] = DeviceTensor(name, "input", "float32", shape)
            out = name.replace("cache", "cache_out")
            self.tensors[out] = DeviceTensor(out, "output", "float32", shape)
        self.tensors[LOGITS.name] = DeviceTensor(LOGITS.name, "output", "float32", (None, self._vocab))

    @property
    def profiles(self) -> tuple[str, ...]:
        return PROFILES

    @property
    def workspace_bytes(self) -> int:
        return 3 << 20

    def use_profile(self, name: str, stream: int) -> None:
        assert name in PROFILES
        self._profile = name
        self._shapes.clear()

    def set_shape(self, name: str, shape: tuple[int, ...]) -> None:
        assert self.tensors[name].role == "input"
        if min(shape) < 1:
            raise BadInput(f"{name} is {shape}")
        self._shapes[name] = shape

    def set_address(self, name: str, address: int) -> None:
        assert name in self.tensors
        assert address % 256 == 0
        self._addresses[name] = address

    def enqueue(self, stream: int) -> None:
        assert stream == self._device.stream
        shapes, addresses = dict(self._shapes), dict(self._addresses)
        assert shapes.keys() == {name for name, tensor in self.tensors.items() if tensor.role == "input"}
        assert addresses.keys() == self.tensors.keys()
        for name in ("key_cache_0", "value_cache_0"):
            assert addresses[name] == addresses[name.replace("cache", "cache_out")]
        tokens, batch = shapes["input_ids"][0], shapes["past_lens"][0]
        assert self._profile == ("decode" if tokens == batch else "prefill" if batch == 1 else "mixed")
        self.enqueued[self._profile, tokens] += 1
        self._device.queue(lambda: self._compute(shapes, addresses))

    def _compute(self, shapes: Mapping[str, tuple[int, ...]], addresses: Mapping[str, int]) -> None:
        step = {name: self._device.view(addresses[name], shapes[name], np.int32) for name in self.inputs}
        keys, values = (
            self._device.view(addresses[name], shapes[name], np.float32).reshape(-1)
            for name in ("key_cache_0", "value_cache_0")
        )
        if self._before is not None:
            self._before(step)
        slots = step["slot_mapping"]
        written = slots >= 0
        assert not written[step["cu_seqlens"][-1] :].any()
        keys[slots[written]] = step["input_ids"][written]
        values[slots[written]] = step["position_ids"][written]
        rows = step["logits_indices"]
        logits = self._device.view(addresses[LOGITS.name], (len(rows), self._vocab), np.float32)
        for place, row in enumerate(rows):
            logits[place] = self._row(step, keys, values, int(row))

    def _row(
        self,
        step: Mapping[str, npt.NDArray[np.int32]],
        keys: npt.NDArray[np.float32],
        values: npt.NDArray[np.float32],
        row: int,
    ) -> npt.NDArray[np.float32]:
        cu = step["cu_seqlens"]
        sequence = int(np.searchsorted(cu, row, side="right")) - 1
        if row >= cu[-1]:
            return np.full(self._vocab, np.nan, np.float32)  # padding, whose logits nobody reads
        positions = np.arange(int(step["past_lens"][sequence]) + row - int(cu[sequence]) + 1)
        table = step["block_table"][sequence].astype(np.int64)
        slots = table[positions // self._block_size] * self._block_size + positions % self._block_size
        assert (values[slots] == positions).all(), f"the cache holds positions {values[slots]}"
        return logits_after(keys[slots].tolist(), self._vocab)
