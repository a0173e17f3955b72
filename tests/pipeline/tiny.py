"""A tiny random Llama in Hugging Face format: real enough for every stage, small enough for seconds."""

from __future__ import annotations

from pathlib import Path

VOCABULARY = 120
MAX_LENGTH = 64


def write_tiny_llama(folder: Path) -> Path:
    """Writes config.json, model.safetensors and tokenizer.json to `folder`; gives the folder."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(11)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=MAX_LENGTH,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=1,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(8)  # so that tokens are told apart clearly
    model.save_pretrained(folder)
    characters = [chr(code) for code in range(32, 127)]
    vocabulary = {
        "<unk>": 0,
        "</s>": 1,
        **{character: place + 2 for place, character in enumerate(characters)},
    }
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder
