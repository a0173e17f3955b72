"""What the builder made of a graph: its layers, as it logs them, held against the nodes that they came from.

With profiling verbosity DETAILED and a logger at VERBOSE both builders log one message that starts with `Layers:`. It
is what the engine inspector says of a deserialized engine, which takes a GPU.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from model_repo.runtime.errors import SlipwayError

BEGIN = "Layers:"

_OWN = {"Attention": "mha"}
"""Words in the names of kernels that are made for an operator."""

_SIXTEEN = ("Half", "BFloat16")
_FLOAT_BY_NATURE = {"Cast", "RMSNormalization", "LayerNormalization", "Softmax", "DequantizeLinear"}
"""Operators that are asked for float32 (a cast of the logits, scales of codes), or whose statistics the standard keeps
in it."""

_LAYER = re.compile(r"Name: (?P<name>.*?), LayerType: (?P<kind>[^,]*), Inputs: (?P<rest>.*)")
_TENSOR = re.compile(r"\{ Name: (.*?), Dimensions: \[([-\d,]*)\].*?Datatype: (\w+)")
_ORIGIN = re.compile(r"\[ONNX Layer: (.*?)(?: \[profile (\d+)\])?\]")
_PROFILE = re.compile(r"_myl(\d+)_\d+$")
_BINDING = re.compile(r"Name: (.*?), IOMode: (Input|Output), DataType: (\w+), Dimensions: \[([-\d,]*)\]")


class UnknownReport(SlipwayError):
    """The builder's report of its layers is not in the form that is known."""


@dataclass(frozen=True)
class LayerTensor:
    """What a layer reads or makes. Sizes known only at run time are -1."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Layer:
    """One kernel or one step of the engine. `nodes`: names of the ONNX nodes that it came from."""

    name: str
    kind: str
    profile: int
    inputs: tuple[LayerTensor, ...]
    outputs: tuple[LayerTensor, ...]
    tactic: str
    nodes: tuple[str, ...]


@dataclass(frozen=True)
class EngineLayers:
    """All layers, those of all profiles, and the engine's own inputs and outputs by name."""

    layers: tuple[Layer, ...]
    inputs: Mapping[str, LayerTensor]
    outputs: Mapping[str, LayerTensor]

    def of_profile(self, profile: int) -> list[Layer]:
        """The layers of one profile that do something; shape arithmetic on the host is none."""
        return [layer for layer in self.layers if layer.profile == profile and layer.kind != "shape_call"]


@dataclass(frozen=True)
class OperatorFate:
    """What became of all nodes of one operator in one profile.

    `kernels`: all that work on them; `whole`: nodes that lie in one kernel each; `own`: nodes with exactly one kernel
    that the builder has for the operator, whatever moves data before and after it.
    """

    operator: str
    profile: str
    nodes: int
    kernels: int
    whole: int
    own: int


@dataclass(frozen=True)
class BuilderReport:
    """What the builder made of it, for a table and for limits.

    `reformats`: layers that only change a layout. `float_islands`: layers of a 16-bit network that make float32 though
    none of their nodes asks for it.
    """

    kernels: Mapping[str, int]  # profile -> layers
    fates: tuple[OperatorFate, ...]
    reformats: tuple[str, ...]
    float_islands: tuple[str, ...]
    layers: Sequence[Layer] = field(default=(), repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, without the layers."""
        return {
            "kernels": dict(self.kernels),
            "operators": [vars(fate) for fate in self.fates],
            "reformats": list(self.reformats),
            "float_islands": list(self.float_islands),
        }


def parse_layers(text: str) -> EngineLayers:
    """Reads the builder's message. Raises UnknownReport when it is not in the form that is known."""
    head, found, bindings = text.partition("I/O Tensors:")
    if not text.startswith(BEGIN) or not found:
        raise UnknownReport(
            f"the builder's report of its layers has another form than expected: {text[:80]!r}"
        )
    layers = tuple(_layer(line) for line in head.splitlines() if line.startswith("Name: "))
    ends: dict[str, dict[str, LayerTensor]] = {"Input": {}, "Output": {}}
    for name, mode, dtype, shape in _BINDING.findall(bindings):
        ends[mode][name] = LayerTensor(name, dtype, _shape(shape))
    return EngineLayers(layers, ends["Input"], ends["Output"])


def _layer(line: str) -> Layer:
    found = _LAYER.match(line)
    if found is None:
        raise UnknownReport(f"the builder describes a layer in another form than expected: {line[:120]!r}")
    read, _, rest = found["rest"].partition("Constants: [")
    _, _, made = rest.partition("Outputs: [")
    made, _, end = made.partition("TacticName: ")
    tactic, _, metadata = end.partition(", StreamId")
    profile = _PROFILE.search(found["name"])
    return Layer(
        name=found["name"],
        kind=found["kind"],
        profile=int(profile[1]) if profile else 0,
        inputs=_tensors(read),
        outputs=_tensors(made),
        tactic=tactic,
        nodes=tuple(name for name, _ in _ORIGIN.findall(metadata)),
    )


def _tensors(text: str) -> tuple[LayerTensor, ...]:
    return tuple(LayerTensor(name, dtype, _shape(shape)) for name, shape, dtype in _TENSOR.findall(text))


def _shape(text: str) -> tuple[int, ...]:
    return tuple(int(size) for size in text.split(",") if size)


def report(
    engine: EngineLayers,
    operators: Mapping[str, str],
    watched: Sequence[str],
    profiles: Sequence[str],
) -> BuilderReport:
    """What became of the graph's nodes. `operators`: node name -> operator; `watched`: operators to follow."""
    fates = []
    for place, profile in enumerate(profiles):
        layers = engine.of_profile(place)
        for operator in watched:
            names = [name for name, kind in operators.items() if kind == operator]
            holders = {name: [layer.name for layer in layers if name in layer.nodes] for name in names}
            if names:
                kernels = {layer for found in holders.values() for layer in found}
                fates.append(
                    OperatorFate(
                        operator,
                        profile,
                        nodes=len(names),
                        kernels=len(kernels),
                        whole=sum(len(found) == 1 for found in holders.values()),
                        own=sum(_has_own(operator, found) for found in holders.values()),
                    )
                )
    sixteen = any(tensor.dtype in _SIXTEEN for layer in engine.layers for tensor in layer.outputs)
    islands = tuple(
        layer.name
        for layer in engine.layers
        if sixteen
        and any(tensor.dtype == "Float" for tensor in layer.outputs)
        and not {operators.get(name) for name in layer.nodes} & _FLOAT_BY_NATURE
    )
    return BuilderReport(
        kernels={name: len(engine.of_profile(place)) for place, name in enumerate(profiles)},
        fates=tuple(fates),
        reformats=tuple(layer.name for layer in engine.layers if "reformat" in layer.kind.lower()),
        float_islands=islands,
        layers=engine.layers,
    )


def _has_own(operator: str, kernels: Sequence[str]) -> bool:
    """Whether one of the kernels, and no more, is made for the operator."""
    word = _OWN.get(operator)
    return word is not None and sum(word in kernel for kernel in kernels) == 1
