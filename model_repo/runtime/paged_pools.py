"""The pools of a paged decoder on a device: allocated once, each bound to one address as input and as output."""

from __future__ import annotations

import math
from typing import NamedTuple

from .contract import (
    KV_DTYPE_BYTES,
    LOGITS,
    STEP_INPUTS,
    EngineSpec,
    key_cache,
    key_cache_out,
    value_cache,
    value_cache_out,
)
from .device import Device, OutOfMemory
from .device_engine import DeviceEngine
from .errors import BadInput


class PagedPools:
    """Pools of `num_blocks` blocks, zeroed. Raises OutOfMemory, and keeps nothing then."""

    def __init__(self, device: Device, engine: DeviceEngine, spec: EngineSpec, num_blocks: int) -> None:
        block_size = spec.decoder_limits.block_size
        self._device = device
        self._addresses: list[int] = []
        self._shapes: dict[str, tuple[int, ...]] = {}
        wanted: list[tuple[str, str, int]] = []
        for layer, kv in enumerate(spec.kv):
            for name, out, size in (
                (key_cache(layer), key_cache_out(layer), kv.key_dim),
                (value_cache(layer), value_cache_out(layer), kv.value_dim),
            ):
                self._shapes[name] = (num_blocks, block_size, kv.kv_heads, size)
                wanted.append((name, out, math.prod(self._shapes[name]) * KV_DTYPE_BYTES[kv.dtype]))
        try:
            for name, out, count in wanted:
                address = device.allocate(count)
                self._addresses.append(address)
                device.zero(address, count)
                for tensor in (name, out):
                    if tensor in engine.tensors:
                        engine.set_address(tensor, address)
        except OutOfMemory:
            self.close()
            raise

    def set_shapes(self, engine: DeviceEngine) -> None:
        """The pools' shapes, which a change of the profile forgets."""
        for name, shape in self._shapes.items():
            engine.set_shape(name, shape)

    def close(self) -> None:
        """Gives the pools back."""
        while self._addresses:
            self._device.free(self._addresses.pop())


def check_engine(engine: DeviceEngine, spec: EngineSpec) -> None:
    """Raises BadInput for an engine that `PagedExecutor` cannot feed."""
    for what, there in (("an encoder", spec.encoder), ("images in its prompts", spec.image_encoder)):
        if there is not None:
            raise BadInput(
                f"engine {spec.name!r} is a decoder with {what}, which target {spec.target!r} does not execute; "
                "build for target 'onnxruntime'"
            )
    pools = {name(layer): kv.dtype for layer, kv in enumerate(spec.kv) for name in (key_cache, value_cache)}
    wanted = {tensor.name: tensor.dtype for tensor in STEP_INPUTS} | pools
    outs = {
        name(layer): kv.dtype for layer, kv in enumerate(spec.kv) for name in (key_cache_out, value_cache_out)
    }
    found = {tensor.name: tensor for tensor in engine.tensors.values()}
    for name in (*pools, LOGITS.name):
        if name not in found:
            raise BadInput(
                f"engine {spec.name!r} has no tensor {name!r}; it has {', '.join(found)}. Build it again"
            )
    for name, tensor in found.items():
        known = wanted if tensor.role == "input" else {LOGITS.name: LOGITS.dtype} | outs
        dtype = tensor.dtype.replace("float8e4m3fn", "fp8") if known.get(name) == "fp8" else tensor.dtype
        if known.get(name) != dtype:
            raise BadInput(
                f"engine {spec.name!r} has the {tensor.role} {name!r} of {tensor.dtype}, where the contract has "
                f"{known.get(name, 'none of that name')}; build it again with this version"
            )


class MemoryNeeds(NamedTuple):
    """Bytes of a device: `free` before anything but the engine was allocated, of which `fixed` are for steps' inputs,
    logits and sampling; `weights` of the engine's file."""

    free: int
    total: int
    fixed: int
    weights: int
    workspace: int


def does_not_fit(spec: EngineSpec, num_blocks: int, needs: MemoryNeeds) -> BadInput:
    """The plan that answers an OutOfMemory: what takes how much, how many blocks would fit, and how to say so."""
    limits = spec.decoder_limits
    block_bytes = spec.kv_bytes_per_token * limits.block_size
    fits = max(0, needs.free - needs.fixed) // block_bytes
    plan = (
        f"engine {spec.name!r} does not fit: {num_blocks} cache blocks of {limits.block_size} tokens take "
        f"{_mib(num_blocks * block_bytes)} ({spec.kv_bytes_per_token} bytes a token), inputs and logits "
        f"{_mib(needs.fixed)}, and of the device's {_mib(needs.total)} {_mib(needs.free)} are free beside the engine "
        f"({_mib(needs.weights)}) and its workspace ({_mib(needs.workspace)}). {fits} blocks would fit"
    )
    if fits >= limits.max_blocks:
        return BadInput(
            f"{plan}: load it with num_blocks {fits} or less, or build it with --num-blocks {fits}"
        )
    return BadInput(
        f"{plan}, and one sequence of {limits.max_length} tokens takes {limits.max_blocks}: build it with a smaller "
        "--max-length, --max-batch or --kv-dtype int8, or use a larger device"
    )


def _mib(count: int) -> str:
    return f"{count / (1 << 20):.1f} MiB"
