"""How an operator of domain `slipway` is described: its inputs, outputs and attributes, and the types they may have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

TYPE_CONSTRAINTS: Mapping[str, tuple[str, ...]] = {
    "T": ("tensor(float)", "tensor(float16)", "tensor(bfloat16)"),
    "TCache": (
        "tensor(float)",
        "tensor(float16)",
        "tensor(bfloat16)",
        "tensor(int8)",
        "tensor(float8e4m3fn)",
    ),
    "Scale": ("tensor(float)",),
    "Int": ("tensor(int32)",),
    "Bool": ("tensor(bool)",),
    "Mask": ("tensor(int64)",),
    "Index": ("tensor(int32)", "tensor(int64)"),
    "Codes": ("tensor(uint8)",),
}
"""Type variables of the operators: each stands for one of these tensor types."""


@dataclass(frozen=True)
class Parameter:
    """An input or output: its type variable (`TYPE_CONSTRAINTS`), its shape in words, and what it means."""

    name: str
    type: str
    shape: str
    meaning: str
    optional: bool = False


@dataclass(frozen=True)
class Attribute:
    """An attribute with its default; None means that it must be given."""

    name: str
    kind: Literal["int", "float"]
    default: int | float | None
    meaning: str


@dataclass(frozen=True)
class OperatorSchema:
    """One operator. The order of inputs and outputs is that of an ONNX node."""

    name: str
    meaning: str
    inputs: tuple[Parameter, ...]
    outputs: tuple[Parameter, ...]
    attributes: tuple[Attribute, ...]

    def input_index(self, name: str) -> int:
        """Place of the input `name` in a node. Raises KeyError when there is none."""
        for index, parameter in enumerate(self.inputs):
            if parameter.name == name:
                return index
        raise KeyError(f"{self.name} has no input {name!r}; it has {[p.name for p in self.inputs]}")
