"""The committed model: its shape, its files, and that it predicts better than the 5-gram."""

from __future__ import annotations

import json

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoTokenizer, GenerationConfig, LlamaForCausalLM

from demo.corpus import CALIBRATION_FILE, HELDOUT_FILE, read_documents
from demo.evaluate import EVALUATION_FILE, decoded_bytes, load_model
from demo.likelihood import bits_per_byte, model_nats
from demo.publish import MODEL_FOLDER, SUGGESTED_SAMPLING
from demo.tokenizer import END_OF_TEXT_ID, encode_file

TOKENIZER = MODEL_FOLDER / "tokenizer.json"


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.set_num_threads(1)
    return load_model(MODEL_FOLDER)


def test_shape_is_as_promised(model: LlamaForCausalLM) -> None:
    config = model.config
    assert (config.hidden_size, config.num_hidden_layers, config.intermediate_size) == (256, 6, 688)
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (4, 2, 64)
    assert (config.vocab_size, config.max_position_embeddings) == (4096, 1024)
    assert config.tie_word_embeddings
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert sum(parameter.numel() for parameter in model.parameters()) == 5_401_856


def test_files_are_small_and_float16() -> None:
    stored = json.loads((MODEL_FOLDER / "config.json").read_text(encoding="utf-8"))
    assert stored["architectures"] == ["LlamaForCausalLM"]
    assert stored["dtype"] == "float16"
    assert (MODEL_FOLDER / "model.safetensors").stat().st_size <= 12_000_000
    generation = GenerationConfig.from_pretrained(MODEL_FOLDER)
    assert generation.eos_token_id == END_OF_TEXT_ID
    assert {key: getattr(generation, key) for key in SUGGESTED_SAMPLING} == SUGGESTED_SAMPLING


def test_tokenizer_gives_texts_back() -> None:
    tokenizer = AutoTokenizer.from_pretrained(MODEL_FOLDER)
    assert len(tokenizer) == 4096
    assert tokenizer.convert_tokens_to_ids("<|endoftext|>") == tokenizer.eos_token_id == END_OF_TEXT_ID
    for text in (
        'The old man\n\n"Yes," said he.',
        " caf\u00e9 \u4f60\u597d \U0001f600\t\n",
        read_documents(CALIBRATION_FILE)[0],
    ):
        assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_heldout_text_is_long_enough_and_beaten_clearly(model: LlamaForCausalLM) -> None:
    tokenizer = Tokenizer.from_file(str(TOKENIZER))
    ids = encode_file(tokenizer, HELDOUT_FILE)
    report = json.loads(EVALUATION_FILE.read_text(encoding="utf-8"))
    assert len(ids) == report["heldout"]["tokens"] >= 50_000
    assert (
        report["heldout"]["model"]["bits_per_byte"]
        < 0.95 * report["heldout"]["kneser_ney_5gram"]["bits_per_byte"]
    )
    beginning = ids[: report["slice"]["tokens"]]
    size = decoded_bytes(tokenizer, beginning)
    value = bits_per_byte(model_nats(model, beginning, context=512, stride=256), size)
    assert value == pytest.approx(report["slice"]["model"]["bits_per_byte"], abs=2e-3)
    assert value < report["slice"]["kneser_ney_5gram"]["bits_per_byte"]


def test_card_states_the_figures() -> None:
    card = (MODEL_FOLDER / "README.md").read_text(encoding="utf-8")
    heldout = json.loads(EVALUATION_FILE.read_text(encoding="utf-8"))["heldout"]
    for key in ("model", "kneser_ney_5gram"):
        assert f"{heldout[key]['bits_per_byte']:.3f}" in card
