"""Tiny Llamas as the export stage leaves them."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from pipeline.export.decoder import export_decoder
from pipeline.graph import load_graph, save_graph

LAYERS, MAX_LENGTH = 2, 64
SHAPES: dict[str, dict[str, Any]] = {
    "grouped, tied": {"num_key_value_heads": 2, "tie_word_embeddings": True},
    "biased, untied, llama3 scaling": {
        "num_key_value_heads": 4,
        "tie_word_embeddings": False,
        "attention_bias": True,
        "mlp_bias": True,
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 10000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        },
    },
    "one key head, yarn scaling": {
        "num_key_value_heads": 1,
        "tie_word_embeddings": True,
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 10000.0,
            "factor": 4.0,
            "original_max_position_embeddings": 16,
        },
    },
}


class Exported:
    """An exported model on disk, and its parameters."""

    def __init__(self, folder: Path, **config: Any) -> None:
        torch.manual_seed(1)
        module = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=61,
                hidden_size=32,
                intermediate_size=44,
                num_hidden_layers=LAYERS,
                num_attention_heads=4,
                head_dim=8,
                max_position_embeddings=MAX_LENGTH,
                **config,
            )
        )
        module.eval().requires_grad_(False)
        for name, parameter in module.named_parameters():
            parameter.normal_(0.5 if "norm" in name else 0.0, 0.2)
        self.parameters = {name: tensor.numpy() for name, tensor in module.named_parameters()}
        self.path = save_graph(export_decoder(module, MAX_LENGTH, 24).model, folder / "export.onnx").graph
        self.kv_heads = int(config["num_key_value_heads"])

    def load(self) -> ir.Model:
        """A fresh copy of the graph."""
        return load_graph(self.path)

    def step(self) -> dict[str, np.ndarray]:
        """Two sequences: 3 new tokens at the start, and 2 after 5; a row of padding."""
        numbers = np.random.default_rng(0)
        inputs = {
            "input_ids": np.array([7, 60, 3, 11, 5, 0], np.int32),
            "position_ids": np.array([0, 1, 2, 5, 6, 0], np.int32),
            "cu_seqlens": np.array([0, 3, 5], np.int32),
            "past_lens": np.array([0, 5], np.int32),
            "block_table": np.array([[2, -1], [0, 3]], np.int32),
            "slot_mapping": np.array([8, 9, 10, 13, 14, -1], np.int32),
            "logits_indices": np.array([4, 2], np.int32),
        }
        for layer in range(LAYERS):
            for kind in ("key", "value"):
                pool = numbers.standard_normal((4, 4, self.kv_heads, 8), dtype=np.float32)
                inputs[f"{kind}_cache_{layer}"] = pool
        return inputs


_FOLDER = tempfile.TemporaryDirectory(prefix="slipway-exported-")  # goes away with the process


@cache
def exported_llama(shape: str) -> Exported:
    """The model of `SHAPES[shape]`; exported once for all tests, since an export takes seconds."""
    folder = Path(_FOLDER.name) / str(list(SHAPES).index(shape))
    folder.mkdir()
    return Exported(folder, **SHAPES[shape])
