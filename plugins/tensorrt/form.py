"""What every plugin says of itself, from the kernels' own description: types, shapes, workspace, and the call.

Nothing here knows TensorRT. The C++ plugins (`csrc/plugin.cpp`) do the same.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar, NamedTuple

import torch

from model_repo.runtime.errors import BadInput
from plugins.cuda.library import Description, Library, TensorAt, TensorDescription
from plugins.cuda.shapes import DTYPES_BY_NAME


class Extent(NamedTuple):
    """A size of an output: that of `tensor`'s axis * factor / divisor, or `factor` where there is no tensor."""

    tensor: str | None
    axis: int = 0
    factor: int = 1
    divisor: int = 1


class PluginForm(ABC):
    """A plugin with its state: which of the kernel's inputs it has, and attributes.

    inputs: names of the kernel's tensors in the order of the node's inputs. Outputs: the kernel's required ones, then
    one for each tensor that the kernel writes in place, which lies where its input lies.
    Raises BadInput for inputs or attributes that the kernel does not have, or needs.
    """

    name: ClassVar[str]
    operator: ClassVar[str]
    own_attributes: ClassVar[tuple[str, ...]] = ()
    """Whole numbers that the plugin needs beyond the kernel's attributes."""

    def __init__(self, kernels: Library, inputs: Sequence[str], attributes: Mapping[str, float]) -> None:
        self.kernels = kernels
        self.inputs = tuple(inputs)
        self.attributes = dict(attributes)
        self.description = kernels.describe(self.operator)
        self._by_name = {tensor.name: tensor for tensor in self.description.tensors}
        self._check()
        written = [t.name for t in self.description.tensors if t.role == "inout" and t.name in self.inputs]
        self.in_place = tuple(written)
        made = [t.name for t in self.description.tensors if t.role == "output" and not t.optional]
        self.outputs = (*made, *written)

    @classmethod
    def attribute_names(cls, description: Description) -> dict[str, bool]:
        """All attributes of the plugin's nodes, and whether each is a whole number."""
        return {a.name: a.integer for a in description.attributes} | dict.fromkeys(cls.own_attributes, True)

    @abstractmethod
    def output_extents(self, name: str) -> list[Extent]:
        """The shape of an output that is not in place."""

    def arrange(self, tensors: dict[str, TensorAt]) -> dict[str, TensorAt]:
        """TensorRT's tensors as the kernel takes them: other views of the same memory."""
        return tensors

    def element_type(self, name: str, given: torch.dtype) -> torch.dtype:
        """What the kernel is told of a tensor that TensorRT calls `given`."""
        return given

    def extents(self, output: int) -> list[Extent]:
        """The shape of output number `output`."""
        name = self.outputs[output]
        if name in self.in_place:
            return [Extent(name, axis) for axis in range(len(self._by_name[name].shape))]
        return self.output_extents(name)

    def takes(self, place: int, dtypes: Sequence[torch.dtype]) -> bool:
        """Whether tensor number `place` (inputs, then outputs) may have its type, after those before it."""
        names = (*self.inputs, *self.outputs)
        dtype = self.element_type(names[place], dtypes[place])
        parameter = self._by_name[names[place]]
        if dtype not in self._allowed(parameter):
            return False
        return all(
            self.element_type(name, before) == dtype
            for name, before in zip(names[:place], dtypes[:place], strict=True)
            if self._by_name[name].type == parameter.type
        )

    def output_types(self, dtypes: Sequence[torch.dtype]) -> list[torch.dtype]:
        """Types of the outputs: that of an input of the same type variable, else the first input's where allowed."""
        given = dict(zip(self.inputs, dtypes, strict=True))
        bound = {self._by_name[name].type: dtype for name, dtype in given.items()}
        result = []
        for name in self.outputs:
            parameter = self._by_name[name]
            allowed = self._allowed(parameter)
            first = dtypes[0] if dtypes[0] in allowed else allowed[0]
            result.append(given.get(name) or bound.get(parameter.type) or first)
        return result

    def workspace_bytes(self, dtypes: Sequence[torch.dtype], shapes: Sequence[Sequence[int]]) -> int:
        """Of inputs, then outputs, of these shapes. Raises BadInput for what the kernel refuses."""
        addresses = [0] * len(shapes)
        tensors = self._tensors(dtypes, shapes, addresses)
        return self.kernels.workspace_bytes(self.operator, tensors, self._kernel_attributes())

    def enqueue(
        self,
        dtypes: Sequence[torch.dtype],
        shapes: Sequence[Sequence[int]],
        addresses: Sequence[int],
        workspace: int,
        stream: int,
    ) -> None:
        """Runs the kernel on inputs, then outputs. Tensors in place are read and written at the output's address."""
        tensors = self._tensors(dtypes, shapes, addresses)
        attributes = self._kernel_attributes()
        needed = self.kernels.workspace_bytes(self.operator, tensors, attributes)
        self.kernels.enqueue(
            self.operator, tensors, attributes, workspace=workspace, workspace_bytes=needed, stream=stream
        )

    def _tensors(
        self, dtypes: Sequence[torch.dtype], shapes: Sequence[Sequence[int]], addresses: Sequence[int]
    ) -> dict[str, TensorAt]:
        names = (*self.inputs, *self.outputs)  # in place: the output comes last and counts
        return self.arrange(
            {
                name: TensorAt(self.element_type(name, dtype), tuple(shape), address)
                for name, dtype, shape, address in zip(names, dtypes, shapes, addresses, strict=True)
            }
        )

    def _kernel_attributes(self) -> dict[str, float]:
        known = {attribute.name for attribute in self.description.attributes}
        return {name: value for name, value in self.attributes.items() if name in known}

    def _allowed(self, parameter: TensorDescription) -> list[torch.dtype]:
        names = self.description.types.get(parameter.type, (parameter.type,))
        return [DTYPES_BY_NAME[name] for name in names]

    def _check(self) -> None:
        takes = {t.name: t for t in self.description.tensors if t.role != "output"}
        known = self.attribute_names(self.description)
        problems = [
            f"it has no input {name!r}; it has {', '.join(takes)}"
            for name in self.inputs
            if name not in takes
        ]
        problems += [
            f"input {name!r} is named twice" for name in {*self.inputs} if self.inputs.count(name) > 1
        ]
        problems += [
            f"it needs the input {name!r}"
            for name, tensor in takes.items()
            if not tensor.optional and name not in self._views() and name not in self.inputs
        ]
        problems += [
            f"it has no attribute {name!r}; it has {', '.join(known)}"
            for name in self.attributes
            if name not in known
        ]
        problems += [
            f"it needs the attribute {name!r}" for name in self.own_attributes if name not in self.attributes
        ]
        if problems:
            raise BadInput(f"plugin {self.name}: {'; '.join(problems)}")

    def _views(self) -> frozenset[str]:
        """Required tensors of the kernel that may be parts of others."""
        return frozenset()
