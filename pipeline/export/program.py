"""A program that `torch.export.save` wrote, ready to run and to be translated."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from model_repo.runtime.contract import AxisSpec, TensorSpec
from model_repo.runtime.errors import BadInput
from pipeline.sources.user_code import guarded

from .module import flat_outputs
from .tensor_model import Array, Feeds, TensorModel, checked_dtype
from .tidy import tidy
from .trace import translate


class ProgramModel(TensorModel):
    """See `TensorModel`. The example is the one that the program was traced with; a file keeps no names of dynamic
    sizes, so each is called after the first axis that has it: `features_0`."""

    origin = "the exported program"

    def __init__(self, program: ExportedProgram, what: str, seconds: float) -> None:
        self._program = program
        self._module = program.module()
        self._what = what
        self._seconds = seconds
        if program.example_inputs is None:
            raise BadInput(
                f"{what} holds no example inputs; save it with torch.export.save as torch.export gave it"
            )
        tensors = self._tensors(program.example_inputs)
        names = self._axis_names(tensors)
        self.inputs = tuple(
            TensorSpec(
                name,
                checked_dtype(str(tensor.dtype).removeprefix("torch."), f"input {name!r} of {what}"),
                tuple(names.get((name, axis), size) for axis, size in enumerate(tensor.shape)),
            )
            for name, tensor in tensors.items()
        )
        self.example = {name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()}
        self.axes = self._limits(names)
        self._output_names = [name for name, _ in self._call(self.example)]

    @property
    def output_names(self) -> Sequence[str]:
        """See `TensorModel`."""
        return self._output_names

    def run(self, feeds: Feeds) -> list[Array]:
        """See `TensorModel`."""
        return [tensor.detach().cpu().numpy() for _, tensor in self._call(feeds)]

    def graph(self, opset: int) -> ir.Model:
        """See `TensorModel`. Raises UnsupportedModel when torch cannot translate the program."""
        shapes = [
            {axis: dim for axis, dim in enumerate(spec.shape) if isinstance(dim, str)} for spec in self.inputs
        ]
        arguments, keywords = pytree.tree_unflatten(shapes, self._in_spec())
        graph = translate(
            self._program,
            dynamic_shapes=keywords if keywords and not arguments else tuple(arguments),
            input_names=[spec.name for spec in self.inputs],
            output_names=self.output_names,
            opset=opset,
        )
        tidy(graph, self._module)
        return graph

    def _in_spec(self) -> Any:
        """How arguments are nested."""
        return self._program.call_spec.in_spec

    def _placeholders(self) -> dict[str, Any]:
        """Name of each input of the program -> its fake tensor, in order."""
        wanted = list(self._program.graph_signature.user_inputs)
        fakes = {
            node.name: node.meta.get("val") for node in self._program.graph.nodes if node.op == "placeholder"
        }
        return {str(name): fakes.get(name) for name in wanted}

    def _tensors(self, example: tuple[tuple[Any, ...], Mapping[str, Any]]) -> dict[str, Tensor]:
        """Example inputs by name. Raises BadInput for inputs that are no tensors."""
        arguments, keywords = example
        if arguments and keywords:
            raise BadInput(
                f"{self._what} takes inputs by place and by name; export it with all of them given one way"
            )
        leaves = pytree.tree_leaves((arguments, keywords))
        names = list(self._placeholders())
        others = [leaf for leaf in leaves if not isinstance(leaf, Tensor)]
        if others or len(leaves) != len(names) or not leaves:
            raise BadInput(
                f"{self._what} takes inputs that are no tensors ({len(others)} of {len(leaves)}); export it "
                "with tensors only"
            )
        return dict(zip(names, leaves, strict=True))

    def _axis_names(self, tensors: Mapping[str, Tensor]) -> dict[tuple[str, int], str]:
        """(input, axis) -> name of the dynamic size there. Raises BadInput for sizes computed from others."""
        by_symbol: dict[str, str] = {}
        names = {}
        for name, fake in self._placeholders().items():
            for axis in range(tensors[name].dim()):
                size = fake.shape[axis]
                if isinstance(size, int):
                    continue
                symbol = str(size)
                if not symbol.isidentifier():
                    raise BadInput(
                        f"{self._what}: axis {axis} of {name!r} is {symbol}, computed from another size; export the "
                        "model with a dynamic size of its own there"
                    )
                names[name, axis] = by_symbol.setdefault(symbol, f"{name}_{axis}")
        self._symbols = {given: symbol for symbol, given in by_symbol.items()}
        return names

    def _limits(self, names: Mapping[tuple[str, int], str]) -> tuple[AxisSpec, ...]:
        """The dynamic sizes with the ranges that the program was exported for."""
        ranges = {str(symbol): bounds for symbol, bounds in self._program.range_constraints.items()}
        axes = []
        for name in dict.fromkeys(names.values()):
            bounds = ranges.get(self._symbols[name])
            least = 1 if bounds is None else max(1, int(bounds.lower))
            most = None if bounds is None or bounds.upper >= sys.maxsize - 1 else int(bounds.upper)
            axes.append(AxisSpec(name, least, most))
        return tuple(axes)

    def _call(self, feeds: Feeds) -> list[tuple[str, Tensor]]:
        """Outputs by name, in order. Raises BadInput."""
        tensors = [torch.from_numpy(np.array(feeds[spec.name])) for spec in self.inputs]
        arguments, keywords = pytree.tree_unflatten(tensors, self._in_spec())
        shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in feeds.items())
        with guarded(f"{self._what}, called with {shapes},", self._seconds), torch.no_grad():
            value = self._module(*arguments, **keywords)
        return flat_outputs(value, self._what)
