"""Whole models beside Llama: what a layer becomes, with the exported graph's own numbers and all origins."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from transformers import (
    BertConfig,
    BertModel,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    ResNetConfig,
    ResNetModel,
    ViTConfig,
    ViTModel,
)

from pipeline.export.decoder import export_decoder
from pipeline.export.encoder import export_encoder
from pipeline.export.tidy import tidy
from pipeline.export.trace import trace
from pipeline.fuse import FusionReport, fuse
from pipeline.fuse.weights import read_origin
from pipeline.recipe import FuseRecipe

from .graphs import assert_same, operators, random, run, run_on_cpu

LAYERS = 2
BERT = BertConfig(
    vocab_size=61,
    hidden_size=32,
    intermediate_size=44,
    num_hidden_layers=LAYERS,
    num_attention_heads=4,
    max_position_embeddings=40,
)
VIT = ViTConfig(
    hidden_size=32,
    intermediate_size=44,
    num_hidden_layers=LAYERS,
    num_attention_heads=4,
    image_size=16,
    patch_size=4,
    attn_implementation="eager",
)
RESNET = ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 2], layer_type="bottleneck")
GPT2 = GPT2Config(vocab_size=61, n_embd=32, n_layer=LAYERS, n_head=4, n_positions=40)
GEMMA3 = Gemma3TextConfig(
    vocab_size=61,
    hidden_size=32,
    intermediate_size=44,
    num_hidden_layers=LAYERS,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    max_position_embeddings=40,
    sliding_window=6,
)


def numbered(model: PreTrainedModel) -> PreTrainedModel:
    """With random numbers in every parameter and buffer, so that none is neutral."""
    model.eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(3)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.dtype == torch.float32 and "freq" not in name and "embed_scale" not in name:
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.2)
            if "running_var" in name:
                tensor.abs_().add_(0.5)
    return model


class _Last(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        result: Tensor = self.model(pixel_values).last_hidden_state
        return result


def image_graph(model: PreTrainedModel, size: int) -> ir.Model:
    graph = trace(
        _Last(numbered(model)),
        (torch.randn(2, 3, size, size),),
        dynamic_shapes=({0: Dim("batch")},),
        input_names=["pixel_values"],
        output_names=["y"],
        opset=24,
    )
    tidy(graph, model)
    return graph


def fused(graph: ir.Model, inputs: dict[str, np.ndarray], max_length: int | None = None) -> FusionReport:
    """Fuses in place; the numbers stay, in onnx's evaluator and on the CPU operators."""
    before = run(graph, **inputs)
    report = fuse(graph, FuseRecipe(), max_length=max_length)
    assert_same(before, run(graph, **inputs), tolerance=2e-5)
    if max_length is None:
        assert_same(before, run_on_cpu(graph, **inputs), tolerance=2e-5)
    return report


def test_a_layer_of_bert_becomes_nine_nodes() -> None:
    model = numbered(BertModel(BERT))
    graph = export_encoder(model, "mean", True, 40, 24).model
    mask = np.array([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])
    inputs = {
        "input_ids": np.array([[5, 60, 2, 9, 1], [7, 3, 0, 0, 0]]),
        "attention_mask": mask,
        "token_type_ids": np.array([[0, 0, 1, 1, 1], [0, 1, 0, 0, 0]]),
    }
    report = fused(graph, inputs)
    found = operators(graph)
    assert found["MatMul"] == 4 * LAYERS
    assert found["PackedAttention"] == found["BiasGelu"] == LAYERS
    assert found["SkipLayerNormalization"] == 2 * LAYERS
    assert found["EmbedLayerNormalization"] == found["PackedLayout"] == found["PackedPool"] == 1
    assert {"LayerNormalization", "Transpose", "Softmax", "Attention", "Split"}.isdisjoint(found)
    assert [miss for rule in report.rules for miss in rule.near_misses] == []
    parameters = dict(model.named_parameters())
    for name, value in graph.graph.initializers.items():
        for origin in read_origin(value):
            assert origin.parameter in parameters or "position_ids" in origin.parameter, name


def test_a_layer_of_vit_becomes_nine_nodes() -> None:
    graph = image_graph(ViTModel(VIT, add_pooling_layer=False), 16)
    report = fused(graph, {"pixel_values": random(3, 3, 16, 16)})
    found = operators(graph)
    assert found["MatMul"] == 4 * LAYERS
    assert found["Attention"] == found["BiasGelu"] == LAYERS
    assert found["SkipLayerNormalization"] == 2 * LAYERS + 1
    assert "LayerNormalization" not in found
    assert report.rule("qkv").matched == LAYERS


def test_a_resnet_is_convolutions_sums_and_activations() -> None:
    model = ResNetModel(RESNET)
    graph = image_graph(model, 32)
    before = operators(graph)
    report = fused(graph, {"pixel_values": random(2, 3, 32, 32)})
    after = operators(graph)
    assert before["BatchNormalization"] == before["Conv"] == report.rule("conv_affine").matched
    assert "BatchNormalization" not in after
    assert after["Conv"] == before["Conv"]
    names = {name for name, _ in model.named_parameters()} | {name for name, _ in model.named_buffers()}
    for node in graph.graph:
        if node.op_type == "Conv":
            assert node.inputs[1] is not None
            (origin,) = read_origin(node.inputs[1])
            assert origin.parameter in names
            assert len(origin.folded) == 4
            assert names.issuperset(origin.folded)


def step(graph: ir.Model, **sizes: int) -> dict[str, np.ndarray]:
    """Two sequences: 3 new tokens at the start, and 2 after 5; a row of padding."""
    inputs: dict[str, Any] = {
        "input_ids": np.array([7, 60, 3, 11, 5, 0], np.int32),
        "position_ids": np.array([0, 1, 2, 5, 6, 0], np.int32),
        "cu_seqlens": np.array([0, 3, 5], np.int32),
        "past_lens": np.array([0, 5], np.int32),
        "block_table": np.array([[2, -1], [0, 3]], np.int32),
        "slot_mapping": np.array([8, 9, 10, 13, 14, -1], np.int32),
        "logits_indices": np.array([4, 2], np.int32),
    }
    for index, value in enumerate(graph.graph.inputs):
        if value.name not in inputs:
            inputs[value.name or ""] = random(4, 4, sizes["heads"], sizes["size"], seed=index)
    return inputs


def decoder(model: PreTrainedModel) -> ir.Model:
    return export_decoder(numbered(model), 40, 24).model


@pytest.mark.parametrize(
    ("make", "sizes", "wanted"),
    [
        (
            lambda: GPT2LMHeadModel(GPT2),
            {"heads": 4, "size": 8},
            {
                "PagedAttention": LAYERS,
                "Gemm": 4 * LAYERS + 1,
                "Gelu": LAYERS,
                "SkipLayerNormalization": 2 * LAYERS,
                "EmbedLayerNormalization": 1,
            }
            | {"Gather": 1},
        ),
        (
            lambda: Gemma3ForCausalLM(GEMMA3),
            {"heads": 2, "size": 8},
            {
                "PagedAttention": LAYERS,
                "GeGLU": LAYERS,
                "SkipRMSNormalization": 2 * LAYERS,
                "MatMul": 6 * LAYERS,
            },
        ),
    ],
    ids=["GPT-2", "Gemma 3"],
)
def test_decoders(make: Callable[[], PreTrainedModel], sizes: dict[str, int], wanted: dict[str, int]) -> None:
    graph = decoder(make())
    fused(graph, step(graph, **sizes), max_length=40)
    found = operators(graph)
    assert {name: found[name] for name in wanted} == wanted
    assert not {"Transpose", "Concat", "Slice", "Tanh", "Erf", "Pow", "Add", "Split"} & set(found) - {
        "Concat"
    }
