"""Random float32 checkpoints that exporters are compared on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from bench.shape import QWEN3_06B, SMOLLM2_135M, write_checkpoint, write_tokenizer


class Model(NamedTuple):
    """`write` makes the checkpoint in a folder unless it is there; `task` is what optimum calls it."""

    write: Callable[[Path], Path]
    task: str


def _saved(folder: Path, make: Callable[[], Any], vocabulary: int) -> Path:
    """tokenizer.json is written last: where it is, all is."""
    if not (folder / "tokenizer.json").is_file():
        import torch

        torch.manual_seed(0)
        make().save_pretrained(folder)
        write_tokenizer(vocabulary, folder / "tokenizer.json")
    return folder


def _qwen3(folder: Path) -> Path:
    """Qwen/Qwen3-0.6B, all 28 layers; its vocabulary is cut to an eighth, which changes no node."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    vocabulary = 18992
    config = Qwen3Config(
        **QWEN3_06B,
        vocab_size=vocabulary,
        num_hidden_layers=28,
        max_position_embeddings=2048,
        bos_token_id=0,
        eos_token_id=0,
    )
    return _saved(folder, lambda: Qwen3ForCausalLM(config), vocabulary)


def _bert(folder: Path) -> Path:
    """bert-base-uncased."""
    from transformers import BertConfig, BertModel

    config = BertConfig()
    return _saved(folder, lambda: BertModel(config), config.vocab_size)


MODELS: Mapping[str, Model] = {
    "SmolLM2-135M": Model(lambda folder: write_checkpoint(SMOLLM2_135M, folder), "text-generation-with-past"),
    "Qwen3-0.6B": Model(_qwen3, "text-generation-with-past"),
    "BERT base": Model(_bert, "feature-extraction"),
}
