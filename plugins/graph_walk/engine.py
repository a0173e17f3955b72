"""A lowered graph as an engine of the runtime, walked with torch: on a GPU with our kernels, or on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from model_repo.runtime.device_engine import DeviceTensor
from model_repo.runtime.errors import BadInput, SlipwayError
from plugins.cuda.library import Library
from plugins.tensorrt import names
from plugins.tensorrt.python_plugin import FORMS

from .addresses import tensor_at
from .description import DTYPES, End, Graph, Node
from .placement import SHAPE_INPUTS, foldable, last_uses, values_on_host
from .plugins import Plugin, by_kernel, by_reference, written_in_place
from .standard import STANDARD

Shape = tuple[int, ...]
Ranges = Mapping[str, tuple[Shape, Shape]]
"""Least and largest shape of inputs."""

Queue = Callable[[Callable[[], None]], None]
MOST_VIEWS = 4096
"""Views of memory that are kept; an executor comes back to the same addresses."""


class WalkingEngine:
    """`model_repo.runtime.device_engine.DeviceEngine` over a described graph.

    On CUDA the plugins are our kernels, and what torch allocates between two nodes comes from its caching allocator: in
    a capture from the graph's own pool, so that a step can be captured and replayed (`torch_device.TorchDevice`).
    On the CPU they are the references, or the emulated kernels where `kernels` is given.

    profiles: names, and the ranges of shapes that each takes (none given: any). queue: how work gets onto a device that
    has no streams (`HostDevice.queue`); without it, work on the CPU is done at once.

    Raises BadInput for operators that are not walked (all of them named), and for plugins without kernels on a GPU.
    """

    def __init__(
        self,
        graph: Graph,
        device: torch.device,
        *,
        kernels: Library | None = None,
        profiles: Mapping[str, Ranges] | None = None,
        queue: Queue | None = None,
    ) -> None:
        self._check(graph, device, kernels)
        self._device = device
        self._profiles = dict(profiles or {"any": {}})
        self._profile = next(iter(self._profiles))
        self._queue = queue or _at_once
        self._inputs = {end.name: end for end in graph.inputs}
        self._outputs = {end.name: end for end in graph.outputs}
        self._on_host = values_on_host(graph)
        self._in_place = {
            output: given
            for node in graph.nodes
            if node.domain
            for output, given in written_in_place(node).items()
        }
        self._stream = 0
        self._streams: dict[int, Any] = {}
        self._shapes: dict[str, Shape] = {}
        self._addresses: dict[str, int] = {}
        self._views: dict[tuple[int, Shape, torch.dtype], Tensor] = {}
        self._plugins: dict[str, Plugin] = {
            node.outputs[0]: by_reference(node)
            if kernels is None
            else by_kernel(node, kernels, self._current)
            for node in graph.nodes
            if node.domain == names.DOMAIN
        }
        with torch.no_grad():
            self._weights, self._nodes = self._folded(graph)
        self._dead = last_uses(self._nodes, frozenset({*self._weights, *self._inputs, *self._outputs}))

    @property
    def tensors(self) -> Mapping[str, DeviceTensor]:
        """See `DeviceEngine.tensors`."""
        ends = [(end, "input") for end in self._inputs.values()]
        ends += [(end, "output") for end in self._outputs.values()]
        return {end.name: _device_tensor(end, role) for end, role in ends}

    @property
    def profiles(self) -> tuple[str, ...]:
        """See `DeviceEngine.profiles`."""
        return tuple(self._profiles)

    @property
    def workspace_bytes(self) -> int:
        """0: torch's allocator gives what a step needs between its nodes."""
        return 0

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights as they are walked: dequantized where the graph dequantizes them."""
        return sum(tensor.nbytes for tensor in self._weights.values())

    def use_profile(self, name: str, stream: int) -> None:
        """See `DeviceEngine.use_profile`. Raises BadInput for a name that the engine has not."""
        if name not in self._profiles:
            raise BadInput(f"the engine has no profile {name!r}; it has {', '.join(self._profiles)}")
        self._profile = name
        self._shapes.clear()

    def set_shape(self, name: str, shape: tuple[int, ...]) -> None:
        """See `DeviceEngine.set_shape`."""
        end = self._inputs.get(name)
        if end is None:
            raise BadInput(f"the engine has no input {name!r}; it has {', '.join(self._inputs)}")
        fits = len(shape) == len(end.shape) and all(
            isinstance(size, str) or size == given for size, given in zip(end.shape, shape, strict=True)
        )
        least, most = self._profiles[self._profile].get(name, (shape, shape))
        in_range = len(shape) == len(most) and all(
            low <= size <= high for low, size, high in zip(least, shape, most, strict=True)
        )
        if not (fits and in_range):
            allowed = f"{list(least)} to {list(most)}" if fits else str(list(end.shape))
            raise BadInput(
                f"input {name!r} is given the shape {list(shape)}; profile {self._profile!r} takes {allowed}"
            )
        self._shapes[name] = shape

    def set_address(self, name: str, address: int) -> None:
        """See `DeviceEngine.set_address`."""
        if name not in self._inputs and name not in self._outputs:
            raise BadInput(f"the engine has no input or output {name!r}; it has {', '.join(self.tensors)}")
        self._addresses[name] = address

    def enqueue(self, stream: int) -> None:
        """See `DeviceEngine.enqueue`."""
        unset = [name for name in self._inputs if name not in self._shapes]
        unset += [name for name in self.tensors if name not in self._addresses]
        if unset:
            raise BadInput(f"without a shape or an address: {', '.join(dict.fromkeys(unset))}")
        shapes, addresses = dict(self._shapes), dict(self._addresses)
        if self._device.type == "cuda":
            self._stream = stream
            with self._on_stream(stream):
                self._walk(shapes, addresses)
        else:
            self._queue(lambda: self._walk(shapes, addresses))

    # ------------------------------------------------------------------ inside

    def _check(self, graph: Graph, device: torch.device, kernels: Library | None) -> None:
        known = {("", name) for name in STANDARD} | {(names.DOMAIN, name) for name in FORMS}
        missing = {(n.domain, n.operator) for n in graph.nodes} - known
        if missing:
            listed = ", ".join(sorted(f"{domain}::{name}" if domain else name for domain, name in missing))
            raise BadInput(f"the graph holds {listed}, which is not walked; walked are {', '.join(STANDARD)}")
        plugins = [node for node in graph.nodes if node.domain == names.DOMAIN]
        if plugins and device.type == "cuda" and kernels is None:
            raise BadInput(f"{plugins[0].words} needs the library of kernels on a GPU: run `make plugins`")

    def _folded(self, graph: Graph) -> tuple[dict[str, Tensor], list[Node]]:
        """Weights where they are read, with the results of nodes that they alone decide; and the other nodes."""
        folded = foldable(graph)
        left = {id(node) for node in graph.nodes} - {id(node) for node in folded}
        nodes = [node for node in graph.nodes if id(node) in left]
        wanted = {name for node in nodes for name in node.inputs} | set(self._outputs)
        values = {name: self._placed(name, tensor) for name, tensor in graph.weights.items()}
        for node, dead in zip(folded, last_uses(folded, frozenset(wanted)), strict=True):
            self._run(node, values)
            for name in dead:
                values.pop(name, None)
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)  # steps run on another stream than this did
        return {name: tensor for name, tensor in values.items() if name in wanted}, nodes

    def _placed(self, name: str, tensor: Tensor) -> Tensor:
        return tensor if name in self._on_host else tensor.to(self._device)

    def _walk(self, shapes: Mapping[str, Shape], addresses: Mapping[str, int]) -> None:
        with torch.no_grad():
            values = dict(self._weights)
            for name, end in self._inputs.items():
                values[name] = self._view(addresses[name], shapes[name], DTYPES[end.dtype])
            for output, given in self._in_place.items():
                if addresses[output] != addresses[given]:  # written where the output lies
                    pool = self._view(addresses[output], shapes[given], values[given].dtype)
                    pool.view(torch.uint8).copy_(values[given].view(torch.uint8), non_blocking=True)
                    values[given] = pool
            for node, dead in zip(self._nodes, self._dead, strict=True):
                self._run(node, values)
                for name in dead:
                    values.pop(name, None)
            for name, end in self._outputs.items():
                if name not in self._in_place:
                    value = values[name]
                    target = self._view(addresses[name], tuple(value.shape), DTYPES[end.dtype])
                    target.copy_(value, non_blocking=True)

    def _run(self, node: Node, values: dict[str, Tensor]) -> None:
        """Computes one node, and puts what it gives into `values`."""
        try:
            if node.domain:
                results = self._plugins[node.outputs[0]]([values[name] for name in node.inputs])
            else:
                on_host = all(name in self._on_host for name in node.outputs)
                given = [self._input(node, place, values, on_host) for place in range(len(node.inputs))]
                made = STANDARD[node.operator](node, *given)
                results = made if isinstance(made, tuple) else (made,)
        except SlipwayError:
            raise
        except Exception as error:  # torch's errors share no base with the rest
            raise SlipwayError(f"{node.words} failed: {error}") from error
        for name, value in zip(node.outputs, results, strict=False):
            values[name] = value

    def _input(self, node: Node, place: int, values: Mapping[str, Tensor], on_host: bool) -> Tensor | None:
        name = node.inputs[place]
        if not name:
            return None
        if on_host or node.operator == "Shape" or place in SHAPE_INPUTS.get(node.operator, ()):
            return values[name]
        return values[name].to(self._device) if name in self._on_host else values[name]

    def _view(self, address: int, shape: Shape, dtype: torch.dtype) -> Tensor:
        key = (address, shape, dtype)
        view = self._views.get(key)
        if view is None:
            if len(self._views) >= MOST_VIEWS:
                self._views.clear()
            view = self._views[key] = tensor_at(address, shape, dtype, self._device)
        return view

    def _current(self) -> int:
        return self._stream

    def _on_stream(self, stream: int) -> AbstractContextManager[Any]:
        if stream == torch.cuda.current_stream(self._device).cuda_stream:
            return nullcontext()
        if stream not in self._streams:
            made: Any = torch.cuda.ExternalStream
            self._streams[stream] = made(stream, device=self._device)
        context: AbstractContextManager[Any] = torch.cuda.stream(self._streams[stream])
        return context


def _at_once(work: Callable[[], None]) -> None:
    work()


def _device_tensor(end: End, role: Any) -> DeviceTensor:
    return DeviceTensor(
        end.name, role, end.dtype, tuple(size if isinstance(size, int) else None for size in end.shape)
    )
