"""The demo model's shape: a Llama small enough to train on a CPU, large enough to write sentences."""

from __future__ import annotations

from transformers import LlamaConfig

from demo.tokenizer import END_OF_TEXT_ID, VOCABULARY_SIZE

MAX_POSITIONS = 1024


def demo_config() -> LlamaConfig:
    """5.4 million parameters: 6 layers of width 256, 4 query and 2 key/value heads of 64, tied table."""
    return LlamaConfig(
        vocab_size=VOCABULARY_SIZE,
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=MAX_POSITIONS,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=True,
        bos_token_id=END_OF_TEXT_ID,
        eos_token_id=END_OF_TEXT_ID,
        initializer_range=0.02,
    )
