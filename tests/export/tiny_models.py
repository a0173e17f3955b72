"""Tiny random models for the export tests, with weights large enough that attention decides the tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

VOCABULARY = 199


def tiny_llama(seed: int = 0, **overrides: Any) -> LlamaForCausalLM:
    """A Llama of two layers; `overrides` go into its config."""
    settings: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 128,
        "tie_word_embeddings": True,
        "attn_implementation": "eager",
    }
    torch.manual_seed(seed)
    return sharpened(LlamaForCausalLM(LlamaConfig(**settings | overrides)))


def sharpened(model: Any) -> Any:
    """`model` in evaluation mode, its matrices scaled up: at the usual random scale attention is uniform."""
    model.eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2:
            parameter.normal_(0.0, 2.0 / parameter.shape[1] ** 0.5)
        elif not any(norm in name.lower() for norm in ("norm", "ln_")):
            parameter.normal_(0.0, 0.1)
    return model


def saved(model: PreTrainedModel, folder: Path) -> Path:
    """The model as a checkpoint folder, with a tokenizer of as many words as it has token ids."""
    model.save_pretrained(folder)
    words = {f"w{token}": token for token in range(model.config.vocab_size)}
    Tokenizer(models.WordLevel(words, unk_token="w0")).save(str(folder / "tokenizer.json"))
    return folder


@torch.no_grad()
def greedy(model: PreTrainedModel, prompt: list[int], new_tokens: int) -> tuple[list[int], torch.Tensor]:
    """transformers alone: tokens, and the logits [new_tokens, vocab] that they were chosen from."""
    ids = torch.tensor([prompt])
    for _ in range(new_tokens):
        ids = torch.cat([ids, model(ids, use_cache=False).logits[:, -1:].argmax(-1)], dim=1)
    logits = model(ids, use_cache=False).logits[0]
    return ids[0, len(prompt) :].tolist(), logits[len(prompt) - 1 : -1]
