"""A random checkpoint of a known model's shape: what decides speed is the shape, not the weights."""

from __future__ import annotations

import itertools
import json
import string
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple


class Shape(NamedTuple):
    """A Llama's sizes, in elements."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    tied: bool
    rope_theta: float
    max_length: int


SMOLLM2_135M = Shape(576, 30, 9, 3, 64, 1536, 49152, True, 100000.0, 2048)
"""HuggingFaceTB/SmolLM2-135M; its own limit of 8192 positions is cut to 2048 (tables only)."""


QWEN3_06B: Mapping[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "tie_word_embeddings": True,
}
"""Fields of transformers' Qwen3Config for Qwen/Qwen3-0.6B, without its 28 layers and its vocabulary."""


def write_checkpoint(shape: Shape, folder: Path, seed: int = 0) -> Path:
    """Writes config.json, float32 safetensors and tokenizer.json to `folder` unless they are there."""
    if (folder / "tokenizer.json").is_file():
        return folder
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        intermediate_size=shape.intermediate,
        max_position_embeddings=shape.max_length,
        rope_parameters={"rope_type": "default", "rope_theta": shape.rope_theta},
        tie_word_embeddings=shape.tied,
        initializer_range=0.04,
        bos_token_id=0,
        eos_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    write_tokenizer(shape.vocab, folder / "tokenizer.json")
    return folder


def write_tokenizer(size: int, path: Path) -> None:
    """A byte-level BPE: bytes, then made-up words, so that decoding costs what it does elsewhere."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = (
        "Ġ" + "".join(letters)
        for n in (2, 3, 4)
        for letters in itertools.product(string.ascii_lowercase, repeat=n)
    )
    tokens = ["<|endoftext|>", *alphabet, *itertools.islice(words, size - 1 - len(alphabet))]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    path.write_text(json.dumps(json.loads(tokenizer.to_str())), encoding="utf-8")


def write_gguf(shape: Shape, checkpoint: Path, path: Path, kind: str = "F32") -> Path:
    """The same weights as GGUF for llama.cpp, whose benchmarks need no vocabulary. `kind`: F32, Q8_0 or Q4_0.

    llama.cpp wants the rows of the query and key weights in another order; with random weights that changes
    nothing that a clock could see, so they are left as they are.
    """
    if path.is_file():
        return path
    import gguf
    import numpy as np
    from safetensors import safe_open

    temporary = path.with_suffix(".partial")
    writer = gguf.GGUFWriter(temporary, "llama")
    writer.add_context_length(shape.max_length)
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.intermediate)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(shape.rope_theta)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(shape.vocab)
    writer.add_tokenizer_model("no_vocab")
    writer.add_file_type(gguf.LlamaFileType["ALL_F32" if kind == "F32" else f"MOSTLY_{kind}"])
    stored = gguf.GGMLQuantizationType[kind]
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, shape.layers)
    with safe_open(checkpoint / "model.safetensors", framework="np") as weights:
        for name in weights.keys():  # noqa: SIM118 - safe_open is not a mapping
            target = names.get_name(name, try_suffixes=(".weight",))
            if target is None:
                raise ValueError(f"{name} has no name in GGUF")
            array = np.ascontiguousarray(weights.get_tensor(name))
            if array.ndim == 2 and kind != "F32":
                writer.add_tensor(target, gguf.quants.quantize(array, stored), raw_dtype=stored)
            else:
                writer.add_tensor(target, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    temporary.replace(path)
    return path
