"""Weights keep their names, rows and origin through the tidying of an exported graph."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim

from pipeline.export.tidy import tidy
from pipeline.export.trace import trace
from pipeline.notes import MODULE, ORIGIN, SOURCE


class _Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.Linear(4, 4, bias=False)


class _Model(nn.Module):
    """`norm.weight` of the model is called `model.norm.weight` by the wrapper, as is another parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.Linear(4, 4, bias=False)
        self.model = _Inner()
        self.tied = nn.Linear(4, 4, bias=False)
        self.tied.weight = self.norm.weight

    def forward(self, rows: Tensor) -> Tensor:
        result: Tensor = self.tied(self.model.norm(self.norm(rows))) + torch.tensor(3.0) * torch.tensor(2.0)
        return result


class _Wrapper(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, rows: Tensor) -> Any:
        return self.model(rows)


@functools.cache
def _graph() -> SimpleNamespace:
    torch.manual_seed(0)
    model = _Model().requires_grad_(False)
    graph = trace(
        _Wrapper(model),
        (torch.zeros(3, 4),),
        dynamic_shapes=({0: Dim("rows", min=1, max=99)},),
        input_names=["rows"],
        output_names=["result"],
        opset=24,
    )
    tidy(graph, model)
    return SimpleNamespace(model=model, graph=graph.graph)


def test_parameters_of_confusable_names_stay_apart_and_tied_ones_are_one() -> None:
    case = _graph()
    weights = {
        name: value for name, value in case.graph.initializers.items() if ORIGIN in value.metadata_props
    }
    assert set(weights) == {"norm.weight", "model.norm.weight"}
    for name, value in weights.items():
        expected = case.model.get_parameter(name)
        np.testing.assert_array_equal(value.const_value.numpy(), expected.numpy())
        assert json.loads(value.metadata_props[ORIGIN])[0]["parameter"] == name


def test_weights_are_the_models_own_memory() -> None:
    case = _graph()
    value = case.graph.initializers["norm.weight"].const_value
    assert value.raw.data_ptr() == case.model.norm.weight.data_ptr()


def test_nodes_know_their_module_and_nothing_of_this_machine() -> None:
    case = _graph()
    modules = [node.metadata_props[MODULE] for node in case.graph if node.op_type == "Gemm"]
    assert modules == ["norm", "model.norm", "tied"]
    assert {key for node in case.graph for key in node.metadata_props} == {MODULE, SOURCE}
    assert not any(value.metadata_props for node in case.graph for value in node.outputs)


def test_nodes_know_the_line_of_the_model_that_they_came_from() -> None:
    lines = Path(__file__).read_text(encoding="utf-8").splitlines()
    sources = {node.metadata_props[SOURCE] for node in _graph().graph}
    assert len(sources) == 1
    place, number, text = next(iter(sources)).split(":", 2)
    assert place == "export/test_tidy.py"
    assert lines[int(number) - 1].strip() == text.strip()
    assert "self.tied(self.model.norm(" in text


def test_small_constants_are_folded() -> None:
    operators = [node.op_type for node in _graph().graph]
    assert "Constant" not in operators
    assert operators.count("Mul") == 0, "3 * 2 is 6 before the engine runs"
