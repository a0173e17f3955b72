"""Steps under the linear contract: a sequence owns a slot of each cache, and a call of the engine takes one token of
each of the first slots, or many tokens of one.

A planned step may mix both, and its sequences may lie in any slots. It is computed as one prefill call for each
sequence with several new tokens, then one decode call over all slots up to the last one that decodes. Slots in between
that have nothing to decode compute a token that nobody asked for, at the position that the slot's next token is written
to: it is overwritten before any mask shows it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .contract import KV_DTYPE_BYTES, LOGITS, EngineSpec, Int32Array, StepTensors
from .device import ALIGNMENT, CapturedWork, Device, OutOfMemory
from .device_engine import DeviceEngine, decode_profile
from .errors import BadInput, SlipwayError
from .executor import BucketRule
from .linear_cache import check_slots, linear_caches
from .logs import log_event

_INPUTS = ("input_ids", "past_lens", "logits_indices")


class _Cache(NamedTuple):
    """One cache: where it lies, and the bytes of a slot in it."""

    name: str
    name_out: str
    slot_shape: tuple[int, ...]
    slot_bytes: int
    address: int


class _Token(NamedTuple):
    """A slot's one new token: its id, its position, and the row of the step's logits that it gives, or -1."""

    token_id: int
    position: int
    row: int


class _Call(NamedTuple):
    """One call of the engine. `first`, `slots`: the slots that it computes. `rows`: for each row of its logits the row
    of the step's logits that it is, or -1."""

    profile: str
    first: int
    slots: int
    ids: Int32Array  # [slots, length]
    past: Int32Array  # [slots]
    wanted: Int32Array  # rows of slots * length
    rows: tuple[int, ...]


class LinearExecutor:
    """An engine of the linear contract with its caches on a device. One slot is one block of the block manager."""

    def __init__(self, device: Device, engine: DeviceEngine, spec: EngineSpec, num_slots: int) -> None:
        """Raises BadInput when the caches do not fit the device, with how many slots do, and for slots whose addresses
        no engine takes."""
        limits = spec.decoder_limits
        self._device, self._engine, self._slots = device, engine, num_slots
        self._max_length, self._vocab = limits.max_length, spec.vocab_size
        self._past = np.zeros(num_slots, np.int32)
        """Positions of each slot that hold tokens, as far as was computed."""
        self._caches = _allocated(device, spec, num_slots)
        ids = max(limits.token_budget, num_slots)
        self._int_bytes = sum(map(_aligned, (4 * ids, 4 * num_slots, 4 * num_slots)))
        self._row_bytes = 4 * spec.vocab_size
        calls = num_slots + 1  # prefill of each slot, and one decode
        self._inputs = device.allocate(calls * self._int_bytes)
        self._logits = device.allocate(
            _aligned(num_slots * self._row_bytes) + num_slots * _aligned(self._row_bytes)
        )
        self._staged = device.staging(calls * self._int_bytes)
        self._results = device.staging((num_slots + num_slots) * self._row_bytes).view(np.float32)
        self._answer = np.empty((num_slots, spec.vocab_size), np.float32)
        self._captured: dict[int, CapturedWork] = {}
        self._captures = True

    @property
    def bucket_rule(self) -> BucketRule:
        """Rows are not padded: what is padded are slots."""
        return BucketRule()

    def run(self, step: StepTensors) -> npt.NDArray[np.float32]:
        """See `Executor.run`."""
        downloads: list[tuple[_Call, int]] = []
        place = _aligned(self._slots * self._row_bytes)
        for number, call in enumerate(self._calls(step)):
            start = 0
            if call.profile == "prefill":
                start, place = place, place + _aligned(self._row_bytes)
            self._compute(call, number if call.profile == "prefill" else self._slots, start)
            if max(call.rows, default=-1) >= 0:
                downloads.append((call, start))
        return self._fetched(downloads, len(step.logits_indices))

    def encode(self, source: npt.NDArray[Any], block_ids: Sequence[int]) -> None:
        """Never asked for: engines of the linear contract have no encoder."""
        raise BadInput("an engine of the linear contract has no encoder")

    def _calls(self, step: StepTensors) -> list[_Call]:
        """The calls of a step, prefills first; remembers how far its slots are filled."""
        row_of = {int(row): place for place, row in enumerate(step.logits_indices)}
        starts, slots = step.cu_seqlens.tolist(), step.block_table[:, 0].tolist()
        calls: list[_Call] = []
        decoding: dict[int, _Token] = {}
        for entry, slot in enumerate(slots):
            start, stop, past = starts[entry], starts[entry + 1], int(step.past_lens[entry])
            if not past:
                self._clear(slot)
            if stop - start == 1:
                decoding[slot] = _Token(int(step.input_ids[start]), past, row_of.get(start, -1))
            else:
                places = [row for row in range(start, stop) if row in row_of]
                wanted = places[-1] if places else start
                calls.append(
                    _Call(
                        "prefill",
                        slot,
                        1,
                        step.input_ids[None, start:stop],
                        np.array([past], np.int32),
                        np.array([wanted - start], np.int32),
                        (row_of.get(wanted, -1),),
                    )
                )
            self._past[slot] = past + stop - start
        if decoding:
            calls.append(self._decode(decoding))
        return calls

    def _decode(self, decoding: Mapping[int, _Token]) -> _Call:
        """One token of each slot up to the last one that decodes."""
        count = max(decoding) + 1
        ids, rows = np.zeros((count, 1), np.int32), [-1] * count
        past = np.minimum(self._past[:count], self._max_length - 1)
        for slot, token in decoding.items():
            ids[slot], past[slot], rows[slot] = token
        return _Call("decode", 0, count, ids, past, np.arange(count, dtype=np.int32), tuple(rows))

    def _clear(self, slot: int) -> None:
        """Zeros for what the slot held: hidden numbers count as nothing, but not when they are NaN."""
        for cache in self._caches:
            self._device.zero(cache.address + slot * cache.slot_bytes, cache.slot_bytes)

    def _compute(self, call: _Call, number: int, logits: int) -> None:
        """Queues one call, whose inputs go to place `number` and whose logits to so many bytes behind their start."""
        device, base = self._device, number * self._int_bytes
        places: dict[str, int] = {}
        end = base
        for name, array in zip(_INPUTS, (call.ids, call.past, call.wanted), strict=True):
            self._staged[end : end + array.nbytes].view(np.int32)[:] = array.reshape(-1)
            places[name] = self._inputs + end
            end += _aligned(array.nbytes)
        device.upload(self._inputs + base, self._staged[base:end])
        captured = self._captured.get(call.slots) if call.profile == "decode" else None
        if captured is not None:
            captured.launch()
            return
        self._bind(call, places, self._logits + logits)
        self._engine.enqueue(device.stream)
        if call.profile == "decode" and self._captures:
            self._capture(call.slots)

    def _capture(self, slots: int) -> None:
        """Keeps the call that was just queued for the next step of as many slots.

        Engines make themselves ready for a shape as they first compute it, which cannot be captured.
        """
        try:
            self._captured[slots] = self._device.capture(lambda: self._engine.enqueue(self._device.stream))
        except SlipwayError as error:
            self._captures = False
            log_event(logging.WARNING, "decode steps are not captured", error=str(error))

    def _bind(self, call: _Call, places: dict[str, int], logits: int) -> None:
        """Shapes and addresses of one call."""
        engine = self._engine
        profile = call.profile if call.profile == "prefill" else decode_profile(engine.profiles, call.slots)
        engine.use_profile(profile, self._device.stream)
        for name, shape in zip(_INPUTS, (call.ids.shape, call.past.shape, call.wanted.shape), strict=True):
            engine.set_shape(name, shape)
            engine.set_address(name, places[name])
        for cache in self._caches:
            engine.set_shape(cache.name, (call.slots, *cache.slot_shape))
            address = cache.address + call.first * cache.slot_bytes
            engine.set_address(cache.name, address)
            engine.set_address(cache.name_out, address)
        engine.set_address(LOGITS.name, logits)

    def _fetched(self, downloads: list[tuple[_Call, int]], count: int) -> npt.NDArray[np.float32]:
        """Waits for the step; its logits [count, vocab]."""
        begin, found = 0, []
        for call, start in downloads:
            rows = self._results[begin * self._vocab : (begin + len(call.rows)) * self._vocab]
            self._device.download(rows, self._logits + start)
            found.append(rows.reshape(-1, self._vocab))
            begin += len(call.rows)
        self._device.record().wait()
        answer = self._answer[:count]
        for (call, _), rows in zip(downloads, found, strict=True):
            for place, row in enumerate(call.rows):
                if row >= 0:
                    answer[row] = rows[place]
        return answer


def _allocated(device: Device, spec: EngineSpec, slots: int) -> list[_Cache]:
    """All caches, zeroed. Raises BadInput where they do not fit, with how many slots do."""
    check_slots(spec)
    length, caches = spec.decoder_limits.max_length, []
    free = device.memory.free
    a_slot = length * spec.kv_bytes_per_token
    try:
        for given, out in linear_caches(spec.kv, length):
            shape = tuple(int(size) for size in given.shape[1:])
            size = int(np.prod(shape)) * KV_DTYPE_BYTES[given.dtype]
            address = device.allocate(slots * size)
            device.zero(address, slots * size)
            caches.append(_Cache(given.name, out.name, shape, size, address))
    except OutOfMemory as error:
        for cache in caches:
            device.free(cache.address)
        fit = free // a_slot
        answer = f"{fit} slots fit: load it with num_blocks={fit}" if fit else "not even one fits"
        raise BadInput(
            f"{slots} slots of {a_slot} bytes take {slots * a_slot} bytes of device memory, of which {free} are free; "
            f"{answer}, or build with a smaller --max-length"
        ) from error
    return caches


def _aligned(count: int) -> int:
    return -(-count // ALIGNMENT) * ALIGNMENT
