"""Weights with the same numbers are kept once.

Tied parameters arrive as one weight already; these are weights that were saved twice: a head that is a copy of
the embedding table, or layers that share their parameters.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from dataclasses import replace
from typing import ClassVar

import onnx_ir as ir

from pipeline.graph import content_digest

from .matching import SMALL
from .rule import Matches, NearMiss, Rule
from .weights import Origin, read_origin, write_origin


class DuplicateWeights(Rule):
    """Weights of one type, shape and content become one, whose origin names all the parameters."""

    name: ClassVar[str] = "duplicate_weights"

    def rewrite(self, model: ir.Model) -> Matches:
        """Reads only weights that share type and shape, one at a time, and none that is a weight file already."""
        graph = model.graph
        alike: dict[tuple[ir.DataType, tuple[int, ...]], list[ir.Value]] = defaultdict(list)
        for value in graph.initializers.values():
            tensor = value.const_value
            if tensor is not None and tensor.size > SMALL and not value.is_graph_input():
                alike[tensor.dtype, tuple(tensor.shape.numpy())].append(value)
        count, missed = 0, []
        for values in alike.values():
            kept: dict[str, ir.Value] = {}
            for value in values if len(values) > 1 else ():
                digest = _digest(value)
                first = kept.setdefault(digest, value)
                if first is value:
                    continue
                if value.is_graph_output():
                    missed.append(
                        NearMiss(value.name or "", f"it equals {first.name}, and is an output of the graph")
                    )
                    continue
                origins = _merged(read_origin(first), read_origin(value))
                if origins:
                    write_origin(first, origins)
                value.replace_all_uses_with(first)
                del graph.initializers[value.name or ""]
                count += 1
        return Matches(count, tuple(missed))


def _digest(value: ir.Value) -> str:
    """sha256 of a weight's bytes; a weight file is named by its own, so it is not read."""
    tensor = value.const_value
    assert tensor is not None
    return content_digest(tensor) or hashlib.sha256(tensor.tobytes()).hexdigest()


def _merged(first: tuple[Origin, ...], second: tuple[Origin, ...]) -> tuple[Origin, ...]:
    """The origins of a weight that stands for two."""
    if len(first) != len(second):
        return first or second
    return tuple(
        replace(kept, equal=(*kept.equal, gone.parameter, *gone.equal))
        for kept, gone in zip(first, second, strict=True)
    )
