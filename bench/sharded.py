"""A random checkpoint of any size, written a layer at a time: one safetensors shard a layer, so none is ever whole in
memory."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

from bench.shape import Shape, write_tokenizer

DTYPES: Mapping[str, Any] = {"bfloat16": ml_dtypes.bfloat16, "float32": np.float32}
_STANDARD_DEVIATION = 0.02
_EMBEDDING = "model.embed_tokens.weight"

TINYLLAMA = Shape(2048, 22, 32, 4, 64, 5632, 32000, False, 10000.0, 2048)
"""TinyLlama/TinyLlama-1.1B: 1.10e9 parameters."""

LLAMA_2_7B = Shape(4096, 32, 32, 32, 128, 11008, 32000, False, 10000.0, 4096)
"""meta-llama/Llama-2-7b: 6.74e9 parameters."""


def write_sharded(shape: Shape, folder: Path, dtype: str = "bfloat16", seed: int = 0) -> Path:
    """Writes config.json, tokenizer.json and the shards to `folder` unless they are there."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    places: dict[str, str] = {}
    total = 0
    for number, tensors in enumerate(_shards(shape, random, DTYPES[dtype])):
        name = f"model-{number:05d}.safetensors"
        save_file(tensors, folder / name, metadata={"format": "pt"})
        places.update(dict.fromkeys(tensors, name))
        total += sum(array.nbytes for array in tensors.values())
    (folder / "config.json").write_text(json.dumps(_config(shape, dtype), indent=2), encoding="utf-8")
    write_tokenizer(shape.vocab, folder / "tokenizer.json")
    index.write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": places}), encoding="utf-8")
    return folder


def parameters(shape: Shape) -> int:
    """How many numbers the checkpoint holds."""
    query, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    layer = 2 * shape.hidden * (query + keys) + 3 * shape.hidden * shape.intermediate + 2 * shape.hidden
    tables = shape.vocab * shape.hidden * (1 if shape.tied else 2)
    return shape.layers * layer + tables + shape.hidden


def _shards(shape: Shape, random: np.random.Generator, dtype: Any) -> Iterator[dict[str, npt.NDArray[Any]]]:
    """The embedding, then each layer, then norm and head."""

    def matrix(rows: int, columns: int) -> npt.NDArray[Any]:
        values = random.standard_normal((rows, columns), np.float32)
        values *= _STANDARD_DEVIATION
        return values.astype(dtype)

    ones = np.ones(shape.hidden, dtype)
    query, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    yield {_EMBEDDING: matrix(shape.vocab, shape.hidden)}
    for layer in range(shape.layers):
        prefix = f"model.layers.{layer}"
        yield {
            f"{prefix}.input_layernorm.weight": ones,
            f"{prefix}.post_attention_layernorm.weight": ones,
            f"{prefix}.self_attn.q_proj.weight": matrix(query, shape.hidden),
            f"{prefix}.self_attn.k_proj.weight": matrix(keys, shape.hidden),
            f"{prefix}.self_attn.v_proj.weight": matrix(keys, shape.hidden),
            f"{prefix}.self_attn.o_proj.weight": matrix(shape.hidden, query),
            f"{prefix}.mlp.gate_proj.weight": matrix(shape.intermediate, shape.hidden),
            f"{prefix}.mlp.up_proj.weight": matrix(shape.intermediate, shape.hidden),
            f"{prefix}.mlp.down_proj.weight": matrix(shape.hidden, shape.intermediate),
        }
    last = {"model.norm.weight": ones}
    if not shape.tied:
        last["lm_head.weight"] = matrix(shape.vocab, shape.hidden)
    yield last


def _config(shape: Shape, dtype: str) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": shape.vocab,
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "intermediate_size": shape.intermediate,
        "max_position_embeddings": shape.max_length,
        "rope_theta": shape.rope_theta,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": shape.tied,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "torch_dtype": dtype,
    }
