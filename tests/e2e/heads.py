"""Tiny checkpoints with heads, each with a tokenizer: a classifier, a reranker, a tagger."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from tests.export.tiny_models import sharpened
from tests.word_pieces import in_transformers, word_pieces

CLASSES = ("calm", "rough", "foggy")
TAGS = ("O", "B-SHIP", "I-SHIP", "B-PORT", "I-PORT")
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 40,
    "pad_token_id": 0,
}


def checkpoints(root: Path) -> dict[str, Path]:
    """Served name -> folder in Hugging Face format."""
    size = {"vocab_size": word_pieces().get_vocab_size(), **SIZES}
    made = {
        "classifier": (RobertaForSequenceClassification, RobertaConfig(**size, id2label=_named(CLASSES))),
        "reranker": (BertForSequenceClassification, BertConfig(**size, num_labels=1)),
        "tagger": (BertForTokenClassification, BertConfig(**size, id2label=_named(TAGS))),
    }
    folders = {}
    for name, (model, config) in made.items():
        torch.manual_seed(1)
        folders[name] = root / name
        sharpened(model(config)).save_pretrained(folders[name])
        in_transformers(word_pieces()).save_pretrained(folders[name])
    return folders


def _named(labels: tuple[str, ...]) -> dict[int, str]:
    return dict(enumerate(labels))
