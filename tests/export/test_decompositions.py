"""Tracing that is left out changes no node: the same graph with torch's decompositions and without."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from transformers import (
    BertConfig,
    BertModel,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
)

from pipeline.export import to_onnx
from pipeline.export import trace as tracing
from pipeline.export.decoder import export_decoder
from pipeline.export.encoder import export_encoder
from pipeline.graph import save_graph
from tests.export.tiny_models import sharpened, tiny_llama


@pytest.fixture
def decompositions(monkeypatch: pytest.MonkeyPatch) -> list[ExportedProgram]:
    """The programs that torch decomposed."""
    seen: list[ExportedProgram] = []
    decompose = ExportedProgram.run_decompositions

    def spy(self: ExportedProgram, *arguments: Any, **options: Any) -> ExportedProgram:
        seen.append(self)
        return decompose(self, *arguments, **options)

    monkeypatch.setattr(ExportedProgram, "run_decompositions", spy)
    return seen


def gpt2() -> PreTrainedModel:
    """With dropout, which evaluation switches off."""
    torch.manual_seed(0)
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64, "vocab_size": 50}
    return sharpened(GPT2LMHeadModel(GPT2Config(**sizes, attn_implementation="eager")))


def gemma2() -> PreTrainedModel:
    """With soft caps and windows."""
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "head_dim": 8,
        "vocab_size": 50,
    }
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64}
    return sharpened(Gemma2ForCausalLM(Gemma2Config(**sizes, **heads, attn_implementation="eager")))


def bert() -> PreTrainedModel:
    """With a mask that is subtracted from a number."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "vocab_size": 50}
    config = BertConfig(
        **sizes, num_attention_heads=2, max_position_embeddings=64, attn_implementation="eager"
    )
    return sharpened(BertModel(config))


def exported(model: PreTrainedModel) -> ir.Model:
    if isinstance(model, BertModel):
        return export_encoder(model, "mean", True, 64, 24).model
    return export_decoder(model, 64, 24).model


def nodes(model: ir.Model) -> list[tuple[Any, ...]]:
    """Operators with attributes and the places that their inputs come from, whatever the values are called.

    torch's reshape becomes a Reshape that differs from view's in `allowzero`: it counts for sizes of 0, which no
    input of a graph has.
    """
    order = list(model.graph)
    places: dict[ir.Value | None, Any] = {
        value: (place, index) for place, node in enumerate(order) for index, value in enumerate(node.outputs)
    }
    places.update({value: value.name for value in model.graph.inputs})
    return [
        (
            node.op_type,
            {name: str(item.value) for name, item in node.attributes.items() if name != "allowzero"},
            [places.get(value) for value in node.inputs],
            dict(node.metadata_props),
        )
        for node in order
    ]


@pytest.mark.parametrize("make", [tiny_llama, gpt2, gemma2, bert])
def test_the_graph_is_the_same_node_for_node(
    make: Callable[[], PreTrainedModel],
    decompositions: list[ExportedProgram],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = nodes(exported(make()))
    assert not decompositions
    monkeypatch.setattr(tracing, "replace_decomposed", lambda program: None)
    monkeypatch.setattr(to_onnx, "is_decomposed", lambda program, registry: False)
    wanted = nodes(exported(make()))
    assert len(decompositions) == 1
    assert found == wanted


class _Odd(nn.Module):
    """Everything that is replaced, among the outputs too."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        half = nn.functional.dropout(x.to(torch.float16), 0.5, training=False)
        return half.float(), 1 - x, x.to(torch.float32), x.detach(), x.to(torch.int32), (x > 0).to(x.dtype)


class _InPlace(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = x * 2
        y.add_(1)
        return y.relu_()


class _Rare(nn.Module):
    """An operator without an ONNX function of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.special.xlog1py(x, x.abs())


@pytest.mark.parametrize(
    ("module", "decomposed"),
    [(_Odd(), False), (_InPlace(), True), (_Rare(), True)],
    ids=["odd", "in place", "rare"],
)
def test_the_numbers_are_torchs(
    module: nn.Module, decomposed: bool, decompositions: list[ExportedProgram], tmp_path: Path
) -> None:
    wrapper = nn.Module()
    wrapper.model = module
    wrapper.forward = lambda x: module(x)  # type: ignore[method-assign]
    x = torch.linspace(-2, 3, 12).view(3, 4)
    wanted = module(x.clone())
    wanted = wanted if isinstance(wanted, tuple) else (wanted,)
    names = [f"y{place}" for place in range(len(wanted))]
    graph = tracing.trace(
        wrapper,
        (x,),
        dynamic_shapes=({0: Dim("rows", min=1)},),
        input_names=["x"],
        output_names=names,
        opset=24,
    )
    graph.ir_version = 10
    save_graph(graph, tmp_path / "graph.onnx")
    session = ort.InferenceSession(tmp_path / "graph.onnx", providers=["CPUExecutionProvider"])
    assert len(decompositions) == int(decomposed)
    for expected, array in zip(wanted, session.run(names, {"x": x.numpy()}), strict=True):
        assert str(array.dtype) == str(expected.dtype).removeprefix("torch.")
        np.testing.assert_allclose(array, expected.numpy(), rtol=1e-6, atol=1e-6)


class Composed(nn.Module):
    """Of operators without an ONNX function that torch does not list for decomposition."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def forward(self, image: Tensor) -> Tensor:
        return self.norm(image).movedim(1, 3).swapaxes(1, 2)


def test_operators_that_only_tracing_takes_apart_are_decomposed(
    decompositions: list[ExportedProgram],
) -> None:
    module = Composed().eval()
    nn.init.normal_(module.norm.weight)
    image = torch.randn(2, 3, 4, 5)
    wrapped = nn.Module()
    wrapped.model, wrapped.forward = module, module.forward  # type: ignore[method-assign]
    graph = tracing.trace(
        wrapped, (image,), dynamic_shapes=({},), input_names=["image"], output_names=["result"], opset=24
    )
    assert decompositions, "batch_norm has no ONNX function"
    session = ort.InferenceSession(ir.to_proto(graph).SerializeToString())
    (found,) = session.run(None, {"image": image.numpy()})
    np.testing.assert_allclose(found, module(image).detach().numpy(), rtol=1e-5, atol=1e-6)
