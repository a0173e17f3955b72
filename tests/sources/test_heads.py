"""What a checkpoint's config.json says about its head: kind, labels and what makes scores of logits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
    T5Config,
    T5EncoderModel,
)

from model_repo.runtime.contract import Head
from model_repo.runtime.errors import BadInput
from pipeline.recipe import SourceRecipe
from pipeline.sources.architecture import CARRIED, model_kind, pools_sentences
from pipeline.sources.heads import head_of
from pipeline.sources.huggingface import open_folder

FILE = Path("somewhere/config.json")
TORCH = "torch.nn.modules"
SIGMOID = f"{TORCH}.activation.Sigmoid"
TEXTS, TOKENS = "BertForSequenceClassification", "RobertaForTokenClassification"


def head(architecture: str = TEXTS, **config: Any) -> Head:
    return head_of({"architectures": [architecture], "model_type": "bert", **config}, FILE)


def ids(*labels: str) -> dict[str, str]:
    return {str(place): label for place, label in enumerate(labels)}


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (head("BertModel"), Head()),
        (head("T5EncoderModel"), Head()),
        (head(), Head("sequence_classification", ("LABEL_0", "LABEL_1"), "softmax")),
        (head(id2label=ids("no", "yes", "?")), Head("sequence_classification", ("no", "yes", "?"), "softmax")),
        (head(num_labels=3).labels, ("LABEL_0", "LABEL_1", "LABEL_2")),
        # JSON objects keep their order, and this one has another.
        (head(id2label={"10": "k", **{str(n): chr(97 + n) for n in range(10)}}).labels, tuple("abcdefghijk")),
        (head(TOKENS, id2label=ids("O", "B-X")), Head("token_classification", ("O", "B-X"), "softmax")),
        (head(id2label=ids("a", "b"), problem_type="multi_label_classification").activation, "sigmoid"),
        (head(id2label=ids("a", "b"), problem_type="regression").activation, "none"),
        (head(id2label=ids("a", "b"), problem_type="single_label_classification").activation, "softmax"),
        (head(id2label=ids("LABEL_0")), Head("sequence_classification", ("LABEL_0",), "none")),
        (head(id2label=ids("x"), sbert_ce_default_activation_function=f"{TORCH}.linear.Identity").activation, "none"),
        (head(id2label=ids("x"), sbert_ce_default_activation_function=SIGMOID).activation, "sigmoid"),
        (head(id2label=ids("x"), sentence_transformers={"activation_fn": SIGMOID}).activation, "sigmoid"),
        (head(id2label=ids("x"), problem_type="multi_label_classification").activation, "sigmoid"),
    ],
)  # fmt: skip
def test_heads_as_configs_describe_them(found: Any, expected: Any) -> None:
    assert found == expected


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"problem_type": "ranking"}, r"problem_type is 'ranking'; known are single_label_classification, "),
        ({"id2label": {"0": "a", "2": "b"}}, r"must name the labels 0, 1, \.\.\. without a gap"),
        ({"id2label": ["a", "b"]}, "must name the labels"),
        ({"id2label": {}}, "must name the labels"),
        ({"num_labels": 0}, "num_labels is 0"),
        (
            {"num_labels": 1, "sentence_transformers": {"activation_fn": "torch.nn.Tanh"}},
            "activation is 'Tanh'; Sigmoid and Identity are supported",
        ),
    ],
)
def test_heads_that_cannot_be_served(config: dict[str, Any], words: str) -> None:
    with pytest.raises(BadInput, match=words):
        head(**config)


@pytest.mark.parametrize(
    ("architecture", "config", "kind"),
    [
        ("LlamaForCausalLM", {}, "decoder"),
        ("GPT2LMHeadModel", {}, "decoder"),
        ("ModernBertModel", {}, "encoder"),
        ("MPNetForMaskedLM", {}, "encoder"),
        ("BertForPreTraining", {}, "encoder"),
        ("DebertaV2ForTokenClassification", {}, "encoder"),
        ("XLMRobertaForSequenceClassification", {}, "encoder"),
        ("T5EncoderModel", {"is_encoder_decoder": True}, "encoder"),
        ("T5Model", {"is_encoder_decoder": True}, None),
        ("BartForSequenceClassification", {"is_encoder_decoder": True}, None),
        ("BertForQuestionAnswering", {}, None),
        ("BertForMultipleChoice", {}, None),
        ("ViTModel", {"vocab_size": None}, None),
    ],
)
def test_kinds_by_the_names_of_classes(architecture: str, config: dict[str, Any], kind: str | None) -> None:
    whole = {"architectures": [architecture], "model_type": "x", "vocab_size": 9, **config}
    whole = {name: value for name, value in whole.items() if value is not None}
    if kind is not None:
        assert model_kind(whole, FILE) == kind
        return
    with pytest.raises(
        BadInput, match=f"describes {architecture} .*is not supported; carried are"
    ) as refused:
        model_kind(whole, FILE)
    assert CARRIED in str(refused.value)


def test_sentence_transformers_pooling_makes_an_encoder_of_any_class(tmp_path: Path) -> None:
    (tmp_path / "modules.json").write_text(
        json.dumps([{"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"}])
    )
    assert pools_sentences(tmp_path)
    for architecture in ("T5ForConditionalGeneration", "Qwen3ForCausalLM"):
        config = {"architectures": [architecture], "model_type": "x", "is_encoder_decoder": True}
        assert model_kind(config, tmp_path / "config.json") == "encoder"
    (tmp_path / "modules.json").write_text("[]")
    assert not pools_sentences(tmp_path)


TINY = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}


@pytest.mark.parametrize("made", [BertForSequenceClassification, BertForTokenClassification])
def test_a_checkpoint_with_a_head_is_loaded_with_it(made: Any, tmp_path: Path) -> None:
    made(BertConfig(**TINY, id2label=dict(enumerate("abc")))).save_pretrained(tmp_path)
    source = open_folder(tmp_path, SourceRecipe(str(tmp_path)))
    assert source.head.labels == ("a", "b", "c")
    assert type(source.load()) is made


def test_of_t5_the_encoder_is_loaded(tmp_path: Path) -> None:
    config = T5Config(vocab_size=40, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2, n_positions=30)
    T5EncoderModel(config).save_pretrained(tmp_path)
    source = open_folder(tmp_path, SourceRecipe(str(tmp_path)))
    assert (source.kind, source.head, source.max_length) == ("encoder", Head(), 30)
    assert type(source.load()) is T5EncoderModel


def test_a_head_without_its_weights_is_refused(tmp_path: Path) -> None:
    """transformers would fill it with random numbers."""
    from safetensors.torch import load_file, save_file

    BertForSequenceClassification(BertConfig(**TINY)).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["classifier.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BadInput, match=r"classifier\.weight"):
        open_folder(tmp_path, SourceRecipe(str(tmp_path))).load()
