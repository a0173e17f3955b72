"""A lowered graph without ONNX: nodes, inputs, outputs and weights, as a folder that needs numpy and torch to be read.

`graph.json` holds everything but the weights' bytes, which lie in `weights.bin`, each at a multiple of 256. Machines
with a bare torch read such a folder; `onnx_file.py` makes it from a lowered graph.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model_repo.runtime.errors import BadInput
from plugins.cuda.shapes import DTYPES_BY_NAME

SCHEMA = 1
GRAPH, WEIGHTS = "graph.json", "weights.bin"
ALIGNMENT = 256

DTYPES: Mapping[str, torch.dtype] = {**DTYPES_BY_NAME, "float64": torch.float64}
"""torch's types by ONNX's names in lower case; float is called float32. Codes of four bits take a byte each: int8."""

NAMES: Mapping[torch.dtype, str] = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class End:
    """An input or output of a graph. A size known only at run time has a name."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class Node:
    """One operator. An absent input has the name ""; attributes are numbers, words, lists of them, or tensors."""

    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    name: str = ""
    domain: str = ""

    @property
    def words(self) -> str:
        """What an error calls the node."""
        return f"{self.operator} (node {self.name!r})"

    def integer(self, name: str, default: int) -> int:
        """An attribute that is a whole number."""
        return int(self.attributes.get(name, default))

    def number(self, name: str, default: float) -> float:
        """An attribute that is a number."""
        return float(self.attributes.get(name, default))


@dataclass(frozen=True)
class Graph:
    """A lowered graph. `weights` by name, on the CPU."""

    nodes: tuple[Node, ...]
    inputs: tuple[End, ...]
    outputs: tuple[End, ...]
    weights: Mapping[str, Tensor]

    def write(self, folder: Path) -> None:
        """Writes both files into `folder`, which may be there already."""
        folder.mkdir(parents=True, exist_ok=True)
        table, offset = [], 0
        with (folder / WEIGHTS).open("wb") as file:
            for name, tensor in self.weights.items():
                file.write(bytes(-offset % ALIGNMENT))
                offset += -offset % ALIGNMENT
                raw = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
                file.write(raw.data)
                table.append([name, NAMES[tensor.dtype], list(tensor.shape), offset])
                offset += raw.nbytes
        data = {
            "schema": SCHEMA,
            "inputs": [[end.name, end.dtype, list(end.shape)] for end in self.inputs],
            "outputs": [[end.name, end.dtype, list(end.shape)] for end in self.outputs],
            "nodes": [
                [n.operator, n.domain, n.name, list(n.inputs), list(n.outputs), _plain(n.attributes)]
                for n in self.nodes
            ],
            "weights": table,
        }
        (folder / GRAPH).write_text(json.dumps(data, indent=0) + "\n", encoding="utf-8")


def read(folder: Path) -> Graph:
    """The graph in `folder`; its weights stay mapped on disk until they are read. Raises BadInput for other folders."""
    try:
        data = json.loads((folder / GRAPH).read_text(encoding="utf-8"))
        if data["schema"] != SCHEMA:
            raise BadInput(f"{folder / GRAPH} has schema {data['schema']}; this version reads {SCHEMA}")
        size = (folder / WEIGHTS).stat().st_size
        with (folder / WEIGHTS).open("rb") as file:  # private pages: torch wants memory that may be written
            raw = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) if size else bytearray()
        weights = {
            name: _tensor(raw, DTYPES[dtype], tuple(shape), offset)
            for name, dtype, shape, offset in data["weights"]
        }
        return Graph(
            tuple(
                Node(operator, tuple(inputs), tuple(outputs), _typed(attributes), name, domain)
                for operator, domain, name, inputs, outputs, attributes in data["nodes"]
            ),
            tuple(End(name, dtype, tuple(shape)) for name, dtype, shape in data["inputs"]),
            tuple(End(name, dtype, tuple(shape)) for name, dtype, shape in data["outputs"]),
            weights,
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(
            f"{folder} holds no description of a graph ({error}); write it with "
            "`python -m plugins.graph_walk.onnx_file GRAPH.onnx FOLDER`"
        ) from error


def _tensor(raw: Any, dtype: torch.dtype, shape: tuple[int, ...], offset: int) -> Tensor:
    count = torch.Size(shape).numel()
    if not count:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(raw, dtype=dtype, count=count, offset=offset).view(shape)


def _plain(attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: {"dtype": NAMES[value.dtype], "shape": list(value.shape), "values": value.flatten().tolist()}
        if isinstance(value, Tensor)
        else value
        for name, value in attributes.items()
    }


def _typed(attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: torch.tensor(value["values"], dtype=DTYPES[value["dtype"]]).view(value["shape"])
        if isinstance(value, dict)
        else value
        for name, value in attributes.items()
    }
