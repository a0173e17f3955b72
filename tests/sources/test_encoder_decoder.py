"""What the files of an encoder-decoder's checkpoint say, without loading it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from model_repo.runtime.errors import BadInput
from pipeline.sources.encoder_decoder import decoder_length, encoder_of, prompt_ids

WHISPER = {"num_mel_bins": 80, "max_source_positions": 1500, "max_target_positions": 448}
PREPROCESSOR = {"feature_extractor_type": "WhisperFeatureExtractor", "feature_size": 80, "n_samples": 480000}


@pytest.mark.parametrize(
    ("config", "generation", "expected"),
    [
        ({"decoder_start_token_id": 5}, {}, (5,)),
        ({"decoder_start_token_id": 5}, {"decoder_start_token_id": 6}, (6,)),
        ({"bos_token_id": 3}, {}, (3,)),
        ({}, {}, ()),
        ({"decoder_start_token_id": 2, "forced_bos_token_id": 0}, {}, (2, 0)),
        ({"decoder_start_token_id": 5}, {"forced_decoder_ids": [[2, 9], [1, 8]]}, (5, 8, 9)),
        # The language is left open: the model finds it.
        ({"decoder_start_token_id": 5}, {"forced_decoder_ids": [[1, None], [2, 9]]}, (5,)),
        ({"decoder_start_token_id": 5}, {"forced_decoder_ids": None}, (5,)),
    ],
)
def test_completions_begin_as_generate_begins_them(
    config: dict[str, Any], generation: dict[str, Any], expected: tuple[int, ...]
) -> None:
    assert prompt_ids(config, generation) == expected


def test_the_encoder_of_whisper_hears_what_its_preprocessor_makes(tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    encoder = encoder_of(tmp_path, WHISPER)
    assert encoder.input.name == "input_features"
    assert encoder.input.shape == (1, 80, 3000)
    assert encoder.max_positions == 1500
    assert encoder.log_mel is not None
    assert encoder.log_mel.sampling_rate == 16000
    assert decoder_length(tmp_path, WHISPER) == 448


def test_texts_are_as_long_as_the_encoder_takes(tmp_path: Path) -> None:
    encoder = encoder_of(tmp_path, {"max_position_embeddings": 1024})
    assert (encoder.input.name, encoder.input.shape) == ("input_ids", (1, "positions"))
    assert encoder.num_positions((1, 1024)) == 1024
    with pytest.raises(BadInput, match="1025 positions"):
        encoder.num_positions((1, 1025))


def test_relative_positions_have_a_length_where_the_config_says_none(tmp_path: Path) -> None:
    relative = {"relative_attention_num_buckets": 32}
    assert decoder_length(tmp_path, relative) == encoder_of(tmp_path, relative).max_positions == 512
    longer = {**relative, "n_positions": 2048}
    assert decoder_length(tmp_path, longer) == encoder_of(tmp_path, longer).max_positions == 2048


@pytest.mark.parametrize(
    "changed", [{"feature_extractor_type": "Speech2TextFeatureExtractor"}, {"do_normalize": True}]
)
def test_other_preprocessors_are_refused(tmp_path: Path, changed: dict[str, Any]) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR | changed))
    with pytest.raises(BadInput, match="describes no WhisperFeatureExtractor, or normalizes"):
        encoder_of(tmp_path, WHISPER)


def test_a_length_is_needed(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="says no maximum length"):
        encoder_of(tmp_path, {})
