"""The exporter's steps that we call one by one give the graph that torch.onnx.export gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from transformers import PreTrainedModel

from pipeline.export import to_onnx as conversion
from pipeline.export import trace as tracing
from pipeline.export.decompositions import is_decomposed
from pipeline.export.translation import operators, translation_table
from tests.export.test_decompositions import bert, exported, gemma2, gpt2, nodes
from tests.export.tiny_models import tiny_llama


def by_torch(
    program: ExportedProgram,
    *,
    dynamic_shapes: tuple[Any, ...],
    input_names: list[str],
    output_names: list[str],
    opset: int,
) -> ir.Model:
    """Of the public function, with the pass that runs the program once more; decompositions: test_decompositions.py."""
    if is_decomposed(program, operators(opset)):
        program.run_decompositions = lambda table: program  # type: ignore[method-assign, assignment]
    found = torch.onnx.export(
        program,
        dynamo=True,
        dynamic_shapes=dynamic_shapes,
        input_names=list(input_names),
        output_names=list(output_names),
        custom_translation_table=translation_table(),
        opset_version=opset,
        optimize=False,
        verbose=False,
    )
    assert found is not None
    return found.model


def described(model: ir.Model) -> list[Any]:
    """The nodes, and every value's type and shape by name: those of graph inputs and outputs are named axes."""
    values = [value for node in model.graph for value in node.outputs]
    values += [*model.graph.inputs, *model.graph.initializers.values()]
    types = [(value.name, str(value.dtype), str(value.shape)) for value in values]
    return [nodes(model), types, [value.name for value in model.graph.outputs], model.opset_imports]


@pytest.mark.parametrize("make", [tiny_llama, gpt2, gemma2, bert])
def test_a_familys_graph_is_torchs(
    make: Callable[[], PreTrainedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = described(exported(make()))
    monkeypatch.setattr(tracing, "to_onnx", by_torch)
    assert found == described(exported(make()))


class HalfAndFloat(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.to(torch.float16) + x


class IntegersAndFloats(nn.Module):
    """Integers and numbers that become floats, and a sum of bools and integers."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        whole = x.to(torch.int32)
        return whole + x, whole / 2, (x + 1) * 3, x.pow(2), (x > 0) + whole, torch.where(x > 0, x, 0)


class Reductions(nn.Module):
    """Sums of small integers and bools are int64."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (
            x.to(torch.int32).sum(1),
            (x > 0).sum(),
            x.to(torch.int32).cumsum(0),
            x.to(torch.float16).mean(0),
        )


class Rows(nn.Module):
    """A number of rows, which is no constant, with floats."""

    def forward(self, x: Tensor) -> Tensor:
        return (x.sum(0) / x.shape[0]) * (x.shape[0] + 1)


class Plain(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + x


PROMOTING = [HalfAndFloat(), IntegersAndFloats(), Reductions(), Rows()]


@pytest.mark.parametrize("module", [*PROMOTING, Plain()], ids=lambda module: type(module).__name__)
def test_types_are_promoted_as_torch_promotes_them(
    module: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = described(traced(module))
    with monkeypatch.context() as patch:
        patch.setattr(tracing, "to_onnx", by_torch)
        assert found == described(traced(module))
    monkeypatch.setattr(conversion, "_promote_types", lambda module: None)
    assert (found == described(traced(module))) == isinstance(module, Plain), "what the pass is for"


def traced(module: nn.Module) -> ir.Model:
    wrapper = nn.Module()
    wrapper.model, wrapper.forward = module, module.forward  # type: ignore[method-assign, assignment]
    outputs = module(torch.ones(3, 4))
    names = [f"y{place}" for place in range(len(outputs) if isinstance(outputs, tuple) else 1)]
    return tracing.trace(
        wrapper,
        (torch.linspace(-2, 3, 12).view(3, 4),),
        dynamic_shapes=({0: Dim("rows", min=1)},),
        input_names=["x"],
        output_names=names,
        opset=24,
    )
