"""sentence-transformers folders: every pooling, dense layers and normalization, against transformers and numpy."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModel, BertConfig, BertModel, RobertaConfig, RobertaModel

from model_repo.runtime.errors import BadInput
from pipeline.export import export
from pipeline.parity.encoder import run_encoder
from pipeline.parity.reference import run_module
from pipeline.recipe import ExportRecipe
from tests.export.runners import serialized, session
from tests.export.tiny_models import sharpened
from tests.sources.checkpoints import Spoil, edit, opened, text

HIDDEN = 16
TEXTS = [[5, 6, 7, 8, 9, 10, 11], [12], [13, 5, 30]]
Floats = Any

POOLED: dict[str, tuple[str, Callable[[Floats], Floats]]] = {
    "mean": ("pooling_mode_mean_tokens", lambda hidden: hidden.mean(axis=0)),
    "cls": ("pooling_mode_cls_token", lambda hidden: hidden[0]),
    "max": ("pooling_mode_max_tokens", lambda hidden: hidden.max(axis=0)),
    "lasttoken": ("pooling_mode_lasttoken", lambda hidden: hidden[-1]),
    "mean_sqrt_len": (
        "pooling_mode_mean_sqrt_len_tokens",
        lambda hidden: hidden.sum(axis=0) / np.sqrt(len(hidden)),
    ),
    "weightedmean": (
        "pooling_mode_weightedmean_tokens",
        lambda hidden: np.average(hidden, axis=0, weights=np.arange(1, len(hidden) + 1)),
    ),
}


def lay_out(folder: Path, *kinds: str, pooling: str = "pooling_mode_cls_token") -> None:
    """Writes modules.json and the folders of the modules."""
    modules = []
    for place, kind in enumerate(kinds):
        path = "" if kind == "Transformer" else f"{place}_{kind}"
        modules.append({"idx": place, "type": f"sentence_transformers.models.{kind}", "path": path})
        (folder / path).mkdir(exist_ok=True)
        if kind == "Pooling":
            switches = {switch: switch == pooling for switch, _ in POOLED.values()}
            (folder / path / "config.json").write_text(
                json.dumps({"word_embedding_dimension": HIDDEN, **switches})
            )
        if kind == "Dense":
            write_dense(folder / path, HIDDEN if kinds[place - 1] != "Dense" else 5, 5)
    (folder / "modules.json").write_text(json.dumps(modules))


def write_dense(folder: Path, in_features: int, out_features: int, activation: str = "Tanh") -> None:
    config = {
        "in_features": in_features,
        "out_features": out_features,
        "bias": True,
        "activation_function": f"torch.nn.modules.activation.{activation}",
    }
    (folder / "config.json").write_text(json.dumps(config))
    generator = torch.Generator().manual_seed(in_features)
    weight = torch.randn(out_features, in_features, generator=generator) / 3
    bias = torch.randn(out_features, generator=generator)
    save_file({"linear.weight": weight, "linear.bias": bias}, folder / "model.safetensors")


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    """A tiny BERT as sentence-transformers lays it out."""
    torch.manual_seed(1)
    config = BertConfig(
        vocab_size=40,
        hidden_size=HIDDEN,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        type_vocab_size=1,  # the checks of encoders try several token types
    )
    sharpened(BertModel(config)).save_pretrained(tmp_path)
    lay_out(tmp_path, "Transformer", "Pooling", "Normalize")
    return tmp_path


def hidden_states(folder: Path) -> list[Floats]:
    """transformers' last hidden states of each text alone."""
    model = AutoModel.from_pretrained(folder, dtype=torch.float64).eval()
    with torch.no_grad():
        return [model(input_ids=torch.tensor([ids])).last_hidden_state[0].numpy() for ids in TEXTS]


def assert_embeds(folder: Path, expected: list[Floats]) -> None:
    """The graph, in a padded batch and alone, and the reference of the parity check."""
    source = opened(folder)
    running = session(serialized(export(source, ExportRecipe(max_length=12)).model))
    for found, wanted in zip(run_encoder(running, TEXTS), expected, strict=True):
        np.testing.assert_allclose(found, np.stack([wanted, wanted]), rtol=0, atol=2e-5)
    for found, wanted in zip(run_module(source, TEXTS), expected, strict=True):
        np.testing.assert_allclose(found[0], wanted, rtol=0, atol=2e-5)


@pytest.mark.parametrize("mode", POOLED)
def test_every_pooling_embeds_as_its_formula_says(encoder: Path, mode: str) -> None:
    switch, pooled = POOLED[mode]
    lay_out(encoder, "Transformer", "Pooling", pooling=switch)
    source = opened(encoder)
    assert (source.pooling, source.normalize, source.dense) == (mode, False, ())
    states = hidden_states(encoder)
    assert_embeds(encoder, [pooled(hidden) for hidden in states])
    others = [other for name, (_, other) in POOLED.items() if name != mode]
    assert all(np.abs(other(states[0]) - pooled(states[0])).max() > 1e-2 for other in others)


def test_dense_layers_come_between_pooling_and_normalization(encoder: Path) -> None:
    lay_out(encoder, "Transformer", "Pooling", "Dense", "Dense", "Normalize")
    write_dense(encoder / "3_Dense", 5, 7, "Identity")
    source = opened(encoder)
    assert [(layer.in_features, layer.out_features, layer.activation) for layer in source.dense] == [
        (HIDDEN, 5, "Tanh"),
        (5, 7, "Identity"),
    ]
    assert {encoder / "2_Dense" / "model.safetensors", encoder / "3_Dense" / "config.json"} <= set(
        source.files
    )

    from safetensors.numpy import load_file

    first, second = (load_file(encoder / name / "model.safetensors") for name in ("2_Dense", "3_Dense"))
    expected = []
    for hidden in hidden_states(encoder):
        row = np.tanh(first["linear.weight"] @ hidden[0] + first["linear.bias"])
        row = second["linear.weight"] @ row + second["linear.bias"]
        expected.append(row / np.linalg.norm(row))
    assert_embeds(encoder, expected)


def test_an_encoder_is_opened_with_its_sentence_modules(encoder: Path) -> None:
    source = opened(encoder)
    assert (source.kind, source.pooling, source.normalize) == ("encoder", "cls", True)
    assert encoder / "1_Pooling" / "config.json" in source.files
    assert source.max_length == 512
    (encoder / "sentence_bert_config.json").write_text('{"max_seq_length": 99}', "utf-8")
    assert opened(encoder).max_length == 99


def test_a_pooling_may_be_named(encoder: Path) -> None:
    (encoder / "1_Pooling" / "config.json").write_text('{"pooling_mode": "lasttoken"}')
    assert opened(encoder).pooling == "lasttoken"


def test_an_encoder_without_modules_is_pooled_by_the_mean(encoder: Path) -> None:
    (encoder / "modules.json").unlink()
    source = opened(encoder)
    assert (source.pooling, source.normalize) == ("mean", False)


def test_a_pickled_dense_layer_needs_leave(encoder: Path) -> None:
    lay_out(encoder, "Transformer", "Pooling", "Dense")
    (encoder / "2_Dense" / "model.safetensors").unlink()
    torch.save(
        {"linear.weight": torch.eye(5, HIDDEN), "linear.bias": torch.zeros(5)},
        encoder / "2_Dense/pytorch_model.bin",
    )
    with pytest.raises(BadInput, match=r"2_Dense holds only pickled weights .*--allow-pickle"):
        opened(encoder)
    (layer,) = opened(encoder, allow_pickle=True).dense
    assert layer.weights.name == "pytorch_model.bin"


def modules(*kinds: str) -> Spoil:
    return lambda folder: lay_out(folder, *kinds)


def dense(**changes: Any) -> Spoil:
    def change(folder: Path) -> None:
        lay_out(folder, "Transformer", "Pooling", "Dense")
        edit(folder / "2_Dense" / "config.json", **changes)

    return change


def _without_weights(folder: Path) -> None:
    lay_out(folder, "Transformer", "Pooling", "Dense")
    (folder / "2_Dense" / "model.safetensors").unlink()


BAD = {
    "two poolings at once": (
        text("1_Pooling/config.json", '{"pooling_mode_max_tokens": true, "pooling_mode_cls_token": true}'),
        "asks for pooling_mode_cls_token, pooling_mode_max_tokens; supported is one of mean, cls, max, lasttoken",
    ),
    "no pooling": (text("1_Pooling/config.json", "{}"), "asks for no pooling; supported is one of mean"),
    "unknown pooling": (
        text("1_Pooling/config.json", '{"pooling_mode": "sum"}'),
        "asks for sum; supported is",
    ),
    "other module": (
        modules("Transformer", "Pooling", "CNN"),
        "has a module 'CNN'; supported are Transformer, Pooling, Dense, Normalize",
    ),
    "another order": (
        modules("Transformer", "Pooling", "Normalize", "Dense"),
        "has the modules Transformer, Pooling, Normalize, Dense; they must come as",
    ),
    "no module list": (text("modules.json", "{}x"), "is not a list of sentence-transformers modules"),
    "other activation": (
        dense(activation_function="torch.nn.Softplus"),
        "the activation is 'Softplus'; supported are",
    ),
    "no sizes": (dense(in_features=None), r"in_features and out_features are \[None, 5\]"),
    "other sizes": (
        dense(out_features=6),
        r"linear\.weight has the shape \[5, 16\]; the config says \[6, 16\]",
    ),
    "no dense weights": (_without_weights, "2_Dense holds no weights; it needs model.safetensors"),
}


@pytest.mark.parametrize(("spoil", "message"), BAD.values(), ids=BAD.keys())
def test_bad_sentence_modules_are_refused(encoder: Path, spoil: Spoil, message: str) -> None:
    spoil(encoder)
    with pytest.raises(BadInput, match=message):
        opened(encoder)


def test_a_dense_layer_without_its_bias_is_refused_when_loaded(encoder: Path) -> None:
    lay_out(encoder, "Transformer", "Pooling", "Dense")
    save_file({"linear.weight": torch.eye(5, HIDDEN)}, encoder / "2_Dense" / "model.safetensors")
    with pytest.raises(BadInput, match=r"model\.safetensors does not fit its config\.json: .*bias"):
        export(opened(encoder), ExportRecipe(max_length=12))


def test_roberta_numbers_its_positions_from_the_padding_id(tmp_path: Path) -> None:
    config = RobertaConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=70,
        pad_token_id=1,
    )
    RobertaModel(config).save_pretrained(tmp_path)
    source = opened(tmp_path)
    assert source.max_length == 68
    model = source.load()
    model(input_ids=torch.full((1, 68), 5))
    with pytest.raises((IndexError, RuntimeError)):
        model(input_ids=torch.full((1, 69), 5))
