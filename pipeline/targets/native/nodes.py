"""Writing nodes into a graph, one after another, before a node that they replace."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from pipeline.fuse.matching import add_weight


class Nodes:
    """Puts standard nodes before `place`, named after it, with its metadata: they come from the same module."""

    def __init__(self, place: ir.Node) -> None:
        graph = place.graph
        assert isinstance(graph, ir.Graph)
        self._graph = graph
        self._place = place
        self._name = place.name or place.outputs[0].name or place.op_type
        self._count = 0

    def add(
        self,
        operator: str,
        *inputs: ir.Value | None,
        dtype: ir.DataType | None = None,
        shape: Sequence[int | str] | ir.Shape | None = None,
        **attributes: Any,
    ) -> ir.Value:
        """A node of one output, of the first input's type unless `dtype` is given."""
        (made,) = self.several(operator, 1, *inputs, dtype=dtype, shape=shape, **attributes)
        return made

    def several(
        self,
        operator: str,
        outputs: int,
        *inputs: ir.Value | None,
        dtype: ir.DataType | None = None,
        shape: Sequence[int | str] | ir.Shape | None = None,
        **attributes: Any,
    ) -> tuple[ir.Value, ...]:
        """A node of several outputs of one type."""
        self._count += 1
        name = f"{self._name}/{operator}_{self._count}"
        first = inputs[0]
        kind = dtype or (first.dtype if first is not None else None)
        node = ir.node(
            operator,
            inputs,
            attributes,
            outputs=[
                ir.Value(
                    name=f"{name}_{place}",
                    type=None if kind is None else ir.TensorType(kind),
                    shape=None if shape is None else ir.Shape(shape),
                )
                for place in range(outputs)
            ],
            name=name,
            metadata_props=dict(self._place.metadata_props),
        )
        self._graph.insert_before(self._place, node)
        return tuple(node.outputs)

    def constant(self, array: npt.NDArray[Any], name: str) -> ir.Value:
        """A constant of the graph; the one that is called `name` already is taken to be the same."""
        known = self._graph.initializers.get(name)
        if known is not None:
            return known
        return add_weight(self._graph, ir.tensor(array, name=name), name)

    def integers(self, *numbers: int) -> ir.Value:
        """A constant int64 vector; equal ones are shared."""
        name = "native_" + "_".join(str(number).replace("-", "m") for number in numbers)
        return self.constant(np.array(numbers, np.int64), name)
