"""One build of a small random Llama whose matrices are odd enough to meet every kernel of ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline import Recipe, build


@pytest.fixture(scope="session")
def engine_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a compiled decoder: hidden 200, 5 heads of 40 with one key head, vocabulary 1003, 320 tokens."""
    import torch
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=1003,
        hidden_size=200,
        intermediate_size=330,
        num_hidden_layers=2,
        num_attention_heads=5,
        num_key_value_heads=1,
        head_dim=40,
        max_position_embeddings=320,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(5)  # so that attention looks at some tokens more than at others
    checkpoint = tmp_path_factory.mktemp("checkpoint") / "odd"
    model.save_pretrained(checkpoint)
    words = {f"w{token}": token for token in range(1003)}
    Tokenizer(models.WordLevel(words, unk_token="w0")).save(str(checkpoint / "tokenizer.json"))
    return build(Recipe.for_model(str(checkpoint)), tmp_path_factory.mktemp("build") / "odd").folder
