"""The torch module as the reference of an exported graph: outputs of its modules, recorded while it runs.

Recorded outputs lie on disk, one file a call, so that no more than one of them is in memory at a time.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import onnx_ir as ir

from calibration.slices import used
from pipeline.notes import MODULE

from .decoder import schedule
from .padding import together
from .stepwise import Tensor
from .walk import NodeNote

if TYPE_CHECKING:
    from torch import nn

INDEX = "index.json"
_FLOATS = frozenset((ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE))


def leaving_values(model: ir.Model) -> dict[str, list[ir.Value]]:
    """Values that each module makes for others to read: dotted module name -> values in order.

    A node belongs to the module that it notes (`MODULE`) and to all modules around that. Only numbers with a
    fraction count: sizes and indices are no results.
    """
    leaving: dict[str, list[ir.Value]] = {}
    readers: dict[ir.Value, set[str]] = {}
    for node in model.graph:
        for value in used(node):
            readers.setdefault(value, set()).add(node.metadata_props.get(MODULE, ""))
    for node in model.graph:
        for module in _around(node.metadata_props.get(MODULE, "")):
            for value in node.outputs:
                outside = any(not _within(place, module) for place in readers.get(value, ()))
                if value.dtype in _FLOATS and (outside or value.is_graph_output()):
                    leaving.setdefault(module, []).append(value)
    return leaving


def record(model: nn.Module, modules: Iterable[str], folder: Path) -> Recording:
    """Starts to write the outputs of these submodules to `folder`, call by call.

    Every tensor in what a module returns (itself, in a tuple or list, in a mapping) counts, in order. Names
    that the model does not have are left out.
    """
    import torch

    recording = Recording(folder)
    own = dict(model.named_modules())

    def hook_for(name: str) -> Any:
        def hook(_module: nn.Module, _given: Any, result: Any) -> None:
            tensors = [item for item in _tensors(result) if isinstance(item, torch.Tensor)]
            kept = [item for item in tensors if item.is_floating_point()]
            recording.add(name, [item.detach().float().cpu().numpy() for item in kept])

        return hook

    for name in modules:
        if name in own:
            recording.handles.append(own[name].register_forward_hook(hook_for(name)))
    return recording


class Recording:
    """A context manager; when it ends, `folder` holds the outputs and an index of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.handles: list[Any] = []
        self._calls: dict[str, list[int]] = {}  # tensors of each call

    def add(self, name: str, arrays: Sequence[Any]) -> None:
        """One call's outputs."""
        calls = self._calls.setdefault(name, [])
        for place, array in enumerate(arrays):
            np.save(_file(self.folder, name, len(calls), place), array)
        calls.append(len(arrays))

    def __enter__(self) -> Recording:
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self.handles:
            handle.remove()
        (self.folder / INDEX).write_text(json.dumps(self._calls), encoding="utf-8")


class ModuleReference:
    """Outputs of the torch module's submodules, each as the graph's runs have them.

    A submodule is compared when it was called once a prompt (text, run of tensors) and what it returned can
    be told from the values that leave it in the graph: as many of both, or one value, which is the first.
    """

    def __init__(
        self, folder: Path, kind: Literal["decoder", "encoder", "tensors"], inputs: Sequence[Any]
    ) -> None:
        """`folder`: a recording of one call a prompt, in order; `inputs`: the prompts, or the runs' feeds."""
        self._folder = folder
        self._calls: Mapping[str, Sequence[int]] = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        self._kind = kind
        self._inputs = inputs
        self._source: dict[ir.Value, tuple[str, int]] = {}

    def partners(self, candidate: ir.Model) -> Mapping[ir.Value, str]:
        """Values of the graph that are results of recorded modules, in the order of computation."""
        chosen: dict[ir.Value, tuple[str, int]] = {}
        # The innermost module last: where several end in one value, its name says most.
        for module, values in sorted(leaving_values(candidate).items(), key=lambda item: item[0].count(".")):
            counts = set(self._calls.get(module, ()))
            if len(self._calls.get(module, ())) != len(self._inputs) or len(counts) != 1 or counts == {0}:
                continue
            if len(values) == 1 or {len(values)} == counts:
                chosen.update({value: (module, place) for place, value in enumerate(values)})
        for node in candidate.graph:
            self._source.update({value: chosen[value] for value in node.outputs if value in chosen})
        return {value: f"output of module {module}" for value, (module, _) in self._source.items()}

    def take(self, value: ir.Value) -> Tensor | None:
        """The recorded output, arranged as the graph's runs have it."""
        module, place = self._source[value]
        arrays = [np.load(_file(self._folder, module, call, place)) for call in range(len(self._inputs))]
        if self._kind == "decoder":
            return _packed(arrays, [len(ids) for ids in self._inputs])
        if self._kind == "encoder":  # its first run has all texts
            every = together(arrays, [len(ids) for ids in self._inputs])
            return None if every is None else [every, *arrays]
        return arrays

    def nodes(self, value: ir.Value) -> tuple[NodeNote, ...]:
        """None: what computes it is the module."""
        return ()


def _packed(arrays: Sequence[Any], lengths: Sequence[int]) -> Tensor | None:
    """Rows of prompts run one by one as the steps of `schedule` hold them; None when they are no rows."""
    rows = []
    for array, length in zip(arrays, lengths, strict=True):
        if array.ndim >= 2 and array.shape[:2] == (1, length):
            array = array[0]
        if array.shape[:1] != (length,):
            return None
        rows.append(array)
    return [
        np.concatenate([rows[part.sequence][part.start : part.stop] for part in parts])
        for parts in schedule(lengths)
    ]


def _around(module: str) -> list[str]:
    """The module and all that it lies in; none for ''."""
    parts = module.split(".") if module else []
    return [".".join(parts[: count + 1]) for count in range(len(parts))]


def _within(module: str, outer: str) -> bool:
    return module == outer or module.startswith(f"{outer}.")


def _tensors(result: Any) -> Iterable[Any]:
    """Everything in what a module returned that may be a tensor."""
    if isinstance(result, Mapping):
        result = list(result.values())
    return result if isinstance(result, tuple | list) else [result]


def _file(folder: Path, module: str, call: int, place: int) -> Path:
    return folder / f"{module}.{call}.{place}.npy"
