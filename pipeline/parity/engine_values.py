"""An engine's values between its nodes beside ONNX Runtime's: where what a builder made departs from its graph.

The lowered graph is built again with tensors between its nodes as outputs. A builder does not fuse over an output, so
what only a fusion gets wrong may vanish: with few of them a build (`per_build`) more of the engine stays as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import onnx_ir as ir

from calibration.slices import Array, used
from model_repo.runtime.device import Device
from model_repo.runtime.device_engine import DeviceEngine, DeviceTensor
from model_repo.runtime.errors import BadInput
from pipeline.graph import load_graph, save_graph

from .stepwise import Feeds, Stepwise, Tensor
from .walk import NodeNote

Opener = Callable[[Path], AbstractContextManager[DeviceEngine]]
"""Builds the engine of a lowered graph in a file, and holds it on the device as long as the context lasts."""

Pools = dict[str, tuple[Array, int]]
"""Pools and caches on the device by name: the array that they were filled from, and the address."""

_POOLS = ("key_cache_", "value_cache_")
_NAMES = {"float32": "FLOAT", "float64": "DOUBLE"}
"""Types that the standard calls otherwise."""


class EngineReference:
    """`walk.Reference` whose numbers an engine gives: a walk through the lowered graph then judges each of the engine's
    nodes on the inputs that the engine itself gave it.

    graph: the lowered graph, as it was built. feeds: the inputs of each run, with pools of their own at each call;
    pools and caches are bound as input and output at one address. per_build: how many tensors become outputs at a time;
    None: all.

    Raises BadInput where an input of the engine is not fed, and what opening the engine raises.
    """

    def __init__(
        self,
        graph: Path,
        device: Device,
        open_engine: Opener,
        feeds: Callable[[], Sequence[Feeds]],
        per_build: int | None = None,
    ) -> None:
        self._path = graph
        self._device = device
        self._open = open_engine
        self._feeds = feeds
        self._per_build = per_build
        self._sizes: dict[str, list[tuple[int, ...]]] = {}
        self._groups: list[list[str]] = []
        self._values: dict[str, Tensor] = {}

    def partners(self, candidate: ir.Model) -> Mapping[ir.Value, str]:
        """The values of `candidate` that the engine can be asked for: of floats, and not of weights alone."""
        lowered = load_graph(self._path)
        here = {value.name: value for node in candidate.graph for value in node.outputs}
        names = [name for name in exposable(lowered) if name in here]
        self._sizes = _sizes(candidate, [here[name] for name in names], self._feeds())
        count = self._per_build or max(1, len(names))
        self._groups = [names[start : start + count] for start in range(0, len(names), count)]
        return {here[name]: name for name in names}

    def take(self, value: ir.Value) -> Tensor | None:
        """The engine's numbers, as float32 where numpy lacks their type."""
        name = value.name or ""
        if name not in self._values:
            group = next(group for group in self._groups if name in group)
            self._values = self._computed(group)
        return self._values.pop(name)

    def nodes(self, value: ir.Value) -> tuple[NodeNote, ...]:
        """None: what an engine computes a tensor with has no names of the graph."""
        return ()

    def _computed(self, names: Sequence[str]) -> dict[str, Tensor]:
        scratch = self._path.with_name(f"{self._path.stem}.exposed.onnx")
        try:
            expose(self._path, names, scratch)
            with self._open(scratch) as engine:
                return self._run(engine, names)
        finally:
            scratch.unlink(missing_ok=True)

    def _run(self, engine: DeviceEngine, names: Sequence[str]) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {name: [] for name in names}
        pools: Pools = {}
        try:
            for run, feeds in enumerate(self._feeds()):
                outputs = {
                    tensor.name: self._sizes[tensor.name][run]
                    for tensor in engine.tensors.values()
                    if tensor.role == "output" and not tensor.name.startswith(_POOLS)
                }
                for name, array in run_engine(engine, self._device, feeds, outputs, pools).items():
                    if name in found:
                        found[name].append(array)
        finally:
            for _, address in pools.values():
                self._device.free(address)
        return found


def exposable(model: ir.Model) -> list[str]:
    """Names of values in the order of computation that say something: floats that depend on an input. Codes and what
    they stand for are left out, since products of codes are found by them, and pools, which are read where they lie."""
    alive: set[ir.Value] = set(model.graph.inputs)
    names = []
    for node in model.graph:
        if not any(value in alive for value in used(node)):
            continue
        alive.update(node.outputs)
        for value in node.outputs:
            name, dtype = value.name or "", value.dtype
            is_float = dtype is not None and dtype.is_floating_point() and dtype.bitwidth > 8
            if is_float and node.op_type != "DequantizeLinear" and not name.startswith(_POOLS):
                names.append(name)
    return names


def expose(graph: Path, names: Iterable[str], target: Path) -> None:
    """Writes `graph` to `target`, in the same folder, with the values called `names` as outputs too."""
    model = load_graph(graph)
    values = {value.name: value for node in model.graph for value in node.outputs}
    outputs = {value.name for value in model.graph.outputs}
    model.graph.outputs.extend(values[name] for name in names if name not in outputs)
    save_graph(model, target)


def run_engine(
    engine: DeviceEngine,
    device: Device,
    feeds: Feeds,
    outputs: Mapping[str, tuple[int, ...]],
    pools: Pools,
) -> dict[str, Array]:
    """One run: `outputs` by name, whose shapes are known; those of 16 bits that numpy lacks as float32.

    pools: pools and caches by name, which lie where the run before left them as long as `feeds` holds the same array;
    others are allocated and filled. Raises BadInput where no profile takes the shapes, or an input is missing.
    """
    held: list[int] = []
    try:
        given = [tensor for tensor in engine.tensors.values() if tensor.role == "input"]
        missing = [tensor.name for tensor in given if tensor.name not in feeds]
        if missing:
            raise BadInput(f"the engine takes {', '.join(missing)}, which nothing is given for")
        _use_profile(engine, device, {tensor.name: feeds[tensor.name].shape for tensor in given})
        for tensor in given:
            array = feeds[tensor.name]
            if tensor.name.startswith(_POOLS):
                address = _pool(device, tensor, array, pools)
                engine.set_address(tensor.name.replace("cache_", "cache_out_", 1), address)
            else:
                address = _uploaded(device, tensor, array)
                held.append(address)
            engine.set_address(tensor.name, address)
        found = {}
        for name, shape in outputs.items():
            kind = _kind(engine.tensors[name])
            size = max(1, int(np.prod(shape)) * kind.itemsize)
            held.append(device.allocate(size))
            engine.set_address(name, held[-1])
            found[name] = (device.staging(size), held[-1], kind, shape)
        engine.enqueue(device.stream)
        for staging, address, _, _ in found.values():
            device.download(staging, address)
        device.record().wait()
        return {name: _read(*place) for name, place in found.items()}
    finally:
        for address in held:
            device.free(address)


def _use_profile(engine: DeviceEngine, device: Device, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """The first profile that takes all shapes. Raises BadInput in the words of the last one that does not."""
    refusal: BadInput | None = None
    for profile in engine.profiles:
        engine.use_profile(profile, device.stream)
        try:
            for name, shape in shapes.items():
                engine.set_shape(name, shape)
            return
        except BadInput as error:
            refusal = error
    raise refusal or BadInput("the engine has no profile")


def _pool(device: Device, tensor: DeviceTensor, array: Array, pools: Pools) -> int:
    """Where the pool lies."""
    before = pools.get(tensor.name)
    if before is not None and before[0] is array:
        return before[1]
    if before is not None:
        device.free(pools.pop(tensor.name)[1])
    address = _uploaded(device, tensor, array)
    pools[tensor.name] = (array, address)
    return address


def _uploaded(device: Device, tensor: DeviceTensor, array: Array) -> int:
    """The address of a copy of `array`, in the engine's type."""
    raw = np.ascontiguousarray(array.astype(_kind(tensor), copy=False)).reshape(-1).view(np.uint8)
    staging = device.staging(max(1, raw.nbytes))
    staging[: raw.nbytes] = raw
    address = device.allocate(staging.nbytes)
    device.upload(address, staging)
    device.record().wait()
    return address


def _kind(tensor: DeviceTensor) -> np.dtype[np.generic]:
    return np.dtype(ir.DataType[_NAMES.get(tensor.dtype, tensor.dtype.upper())].numpy())


def _read(staging: Array, address: int, kind: np.dtype[np.generic], shape: tuple[int, ...]) -> Array:
    count = int(np.prod(shape)) * kind.itemsize
    array: Array = staging[:count].view(kind).reshape(shape)
    return array.copy() if kind.kind == "f" else array.astype(np.float32)


def _sizes(
    model: ir.Model, values: Sequence[ir.Value], feeds: Sequence[Feeds]
) -> dict[str, list[tuple[int, ...]]]:
    """Shapes of values in each run, and of the graph's outputs, by name."""
    wanted = list(dict.fromkeys([*values, *(v for v in model.graph.outputs if v.producer() is not None)]))
    graph = Stepwise(model, [feeds], wanted)
    sizes = {}
    for value in wanted:
        graph.reach(value)
        arrays = graph.get(value)
        assert arrays is not None
        sizes[value.name or ""] = [array.shape for array in arrays]
        graph.release(value)
        graph.sweep()
    return sizes
