"""Ten named models, real layers of theirs with random weights, as the export stage leaves them.

Widths, heads and vocabularies are those of the named model; layers are fewer (`LAYERS`), since every layer fuses
alike. Decoders are the packed graph of the export, encoders the padded one; images and audio as transformers
computes them with its plain attention.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir
import torch
import transformers
from torch import Tensor, nn
from torch.export import Dim

from bench.shape import QWEN3_06B
from pipeline.export.decoder import export_decoder
from pipeline.export.encoder import export_encoder
from pipeline.export.tidy import tidy
from pipeline.export.trace import trace
from pipeline.graph import save_graph

LAYERS = 4
OPSET = 24
MAX_LENGTH = 256
BATCH, LENGTH = 4, 64
STREAMS, CONTEXT, BLOCK = 4, 60, 16

Feeds = Mapping[str, np.ndarray[Any, Any]]


class Named(NamedTuple):
    """One model: what kind of graph it is, how ONNX Runtime's optimizer calls it, and its module."""

    kind: str  # encoder, decoder, image or audio
    model_type: str  # of onnxruntime.transformers.optimizer
    heads: int
    hidden: int
    make: Callable[[], nn.Module]


class Graph(NamedTuple):
    """An exported graph on disk, and inputs for it."""

    path: Path
    feeds: Feeds
    max_length: int | None  # of decoders


def _of(architecture: str, config: str, **fields: Any) -> Callable[[], nn.Module]:
    """A model of transformers with random weights."""

    def make() -> nn.Module:
        model: nn.Module = getattr(transformers, architecture)(getattr(transformers, config)(**fields))
        return model

    return make


def _bert(hidden: int, heads: int, inner: int) -> Callable[[], nn.Module]:
    return _of(
        "BertModel",
        "BertConfig",
        hidden_size=hidden,
        num_attention_heads=heads,
        intermediate_size=inner,
        num_hidden_layers=LAYERS,
    )


MODELS: Mapping[str, Named] = {
    "BERT": Named("encoder", "bert", 12, 768, _bert(768, 12, 3072)),
    "MiniLM": Named("encoder", "bert", 12, 384, _bert(384, 12, 1536)),
    "ModernBERT": Named(
        "encoder",
        "bert",
        12,
        768,
        _of("ModernBertModel", "ModernBertConfig", num_hidden_layers=LAYERS, attn_implementation="eager"),
    ),
    "Llama": Named(
        "decoder",
        "gpt_neox",
        9,
        576,
        _of(
            "LlamaForCausalLM",
            "LlamaConfig",
            vocab_size=49152,
            hidden_size=576,
            intermediate_size=1536,
            num_hidden_layers=LAYERS,
            num_attention_heads=9,
            num_key_value_heads=3,
            tie_word_embeddings=True,
        ),
    ),
    "Qwen3": Named(
        "decoder",
        "qwen3",
        16,
        1024,
        _of(
            "Qwen3ForCausalLM",
            "Qwen3Config",
            **QWEN3_06B,
            vocab_size=32768,
            num_hidden_layers=LAYERS,
        ),
    ),
    "Gemma 3": Named(
        "decoder",
        "gpt_neox",
        4,
        640,
        _of(
            "Gemma3ForCausalLM",
            "Gemma3TextConfig",
            vocab_size=32768,
            hidden_size=640,
            intermediate_size=2048,
            num_hidden_layers=LAYERS,
            num_attention_heads=4,
            num_key_value_heads=1,
            head_dim=256,
            sliding_window=512,
        ),
    ),
    "GPT-2": Named("decoder", "gpt2", 12, 768, _of("GPT2LMHeadModel", "GPT2Config", n_layer=LAYERS)),
    "ResNet-50": Named("image", "vit", 0, 0, _of("ResNetModel", "ResNetConfig")),
    "ViT": Named(
        "image",
        "vit",
        12,
        768,
        _of("ViTModel", "ViTConfig", num_hidden_layers=LAYERS, attn_implementation="eager"),
    ),
    "Whisper encoder": Named(
        "audio",
        "bart",
        8,
        512,
        _of(
            "WhisperModel",
            "WhisperConfig",
            d_model=512,
            encoder_layers=LAYERS,
            decoder_layers=1,
            encoder_attention_heads=8,
            decoder_attention_heads=8,
            encoder_ffn_dim=2048,
            attn_implementation="eager",
        ),
    ),
}


def export(name: str, folder: Path) -> Graph:
    """Exports the model `name` to `folder`/export.onnx."""
    named = MODELS[name]
    torch.manual_seed(0)
    module = named.make().eval().requires_grad_(False)
    if name == "Whisper encoder":
        module = module.get_encoder()  # type: ignore[operator]
    _randomize(module)
    max_length = None
    if named.kind == "decoder":
        max_length = MAX_LENGTH
        graph = export_decoder(module, MAX_LENGTH, OPSET).model  # type: ignore[arg-type]
        feeds = _step(graph, module.config.vocab_size)
    elif named.kind == "encoder":
        graph = export_encoder(module, "mean", True, MAX_LENGTH, OPSET).model  # type: ignore[arg-type]
        feeds = _texts(graph)
    else:
        graph, feeds = _plain(module, named.kind)
    folder.mkdir(parents=True, exist_ok=True)
    return Graph(save_graph(graph, folder / "export.onnx").graph, feeds, max_length)


def _randomize(module: nn.Module) -> None:
    """Parameters that start as ones and zeros get numbers of their own: rules must not profit from them."""
    generator = torch.Generator().manual_seed(1)
    for parameter in module.parameters():
        if parameter.ndim == 1:
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.02)


class _Plain(nn.Module):
    """The last hidden state of a model of transformers."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: Tensor) -> Tensor:
        result: Tensor = self.model(*inputs).last_hidden_state
        return result


def _plain(module: nn.Module, kind: str) -> tuple[ir.Model, Feeds]:
    """Traces a model as it is; the batch is dynamic."""
    numbers = np.random.default_rng(0)
    if kind == "image":
        feeds = {"pixel_values": numbers.standard_normal((2, 3, 224, 224), dtype=np.float32)}
    else:
        feeds = {"input_features": numbers.standard_normal((2, 80, 3000), dtype=np.float32)}
    graph = trace(
        _Plain(module),
        tuple(torch.from_numpy(array) for array in feeds.values()),
        dynamic_shapes=(({0: Dim("batch")},),),
        input_names=list(feeds),
        output_names=["last_hidden_state"],
        opset=OPSET,
    )
    tidy(graph, module)
    # Traced with two, since a size of 1 is not dynamic to torch; measured with one.
    return graph, {name: array[:1].copy() for name, array in feeds.items()}


def _texts(graph: ir.Model) -> Feeds:
    """Four texts of different lengths, padded to 64 tokens."""
    numbers = np.random.default_rng(0)
    lengths = np.array([LENGTH, LENGTH // 2, LENGTH - 7, 5])
    mask = (np.arange(LENGTH)[None, :] < lengths[:, None]).astype(np.int64)
    values = {
        "input_ids": numbers.integers(5, 1000, (BATCH, LENGTH)) * mask,
        "attention_mask": mask,
        "token_type_ids": np.zeros_like(mask),
    }
    return {value.name or "": values[value.name or ""] for value in graph.graph.inputs}


def _step(graph: ir.Model, vocabulary: int) -> Feeds:
    """One prompt of 60 tokens beside three sequences that decode their 61st token."""
    numbers = np.random.default_rng(0)
    new = np.array([CONTEXT] + [1] * (STREAMS - 1))
    past = np.array([0] + [CONTEXT] * (STREAMS - 1))
    blocks = -(-(CONTEXT + 1) // BLOCK)
    table = np.arange(STREAMS * blocks).reshape(STREAMS, blocks)
    positions = np.concatenate([np.arange(p, p + n) for p, n in zip(past, new, strict=True)])
    rows = np.repeat(np.arange(STREAMS), new)
    ends = np.cumsum(new)
    values = {
        "input_ids": numbers.integers(0, vocabulary, int(new.sum())),
        "position_ids": positions,
        "cu_seqlens": np.concatenate([[0], ends]),
        "past_lens": past,
        "block_table": table,
        "slot_mapping": table[rows, positions // BLOCK] * BLOCK + positions % BLOCK,
        "logits_indices": ends - 1,
    }
    feeds: dict[str, np.ndarray[Any, Any]] = {}
    for value in graph.graph.inputs:
        name = value.name or ""
        if name in values:
            feeds[name] = values[name].astype(np.int32)
        else:
            _, _, heads, size = (int(dim) if isinstance(dim, int) else 0 for dim in value.shape or ())
            shape = (STREAMS * blocks, BLOCK, heads, size)
            feeds[name] = numbers.standard_normal(shape, dtype=np.float32)
    return feeds
