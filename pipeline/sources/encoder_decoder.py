"""What the files of an encoder-decoder's checkpoint say about its encoder: its input, and where completions begin."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from model_repo.runtime.contract import EncoderSpec, TensorSpec
from model_repo.runtime.cross_attention import POSITIONS
from model_repo.runtime.errors import BadInput
from model_repo.runtime.log_mel import LogMel

from .files import read_json, read_optional_json

ENCODER_GRAPH = "engine.encoder.onnx"
PREPROCESSOR = "preprocessor_config.json"
DECODER_LENGTH_KEYS = (
    "max_target_positions",
    "max_decoder_position_embeddings",
    "max_position_embeddings",
    "n_positions",
)
RELATIVE_POSITIONS, RELATIVE_LENGTH = "relative_attention_num_buckets", 512
"""Models with relative positions take any length, and mT5 and UMT5 name none: this is what they are trained on."""
ENCODER_LENGTH_KEYS = (
    "max_source_positions",
    "max_encoder_position_embeddings",
    "max_position_embeddings",
    "n_positions",
)


def encoder_of(folder: Path, config: Mapping[str, Any]) -> EncoderSpec:
    """The encoder of the checkpoint in `folder`.

    Raises BadInput when it takes sounds and its preprocessor is not Whisper's, or when config.json says no length.
    """
    positions = _first(config, ENCODER_LENGTH_KEYS, folder)
    prompt = prompt_ids(config, read_optional_json(folder / "generation_config.json"))
    if "num_mel_bins" not in config:
        return EncoderSpec(ENCODER_GRAPH, TensorSpec("input_ids", "int64", (1, POSITIONS)), positions, prompt)
    log_mel = _log_mel(folder)
    shape = (1, log_mel.num_mels, log_mel.num_frames)
    return EncoderSpec(
        ENCODER_GRAPH, TensorSpec("input_features", "float32", shape), positions, prompt, log_mel
    )


def _log_mel(folder: Path) -> LogMel:
    """What the preprocessor's config says. Raises BadInput when it is not Whisper's."""
    file = folder / PREPROCESSOR
    given = read_json(file) if file.is_file() else {}
    if given.get("feature_extractor_type") != "WhisperFeatureExtractor" or given.get("do_normalize"):
        raise BadInput(
            f"{folder} takes audio, and its {PREPROCESSOR} is missing, describes no WhisperFeatureExtractor, or "
            "normalizes; supported are models of audio with Whisper's preprocessor"
        )
    told = {**_WHISPER, **given}
    rate = told["sampling_rate"]
    samples = told.get("n_samples") or told["chunk_length"] * rate
    return LogMel(rate, told["n_fft"], told["hop_length"], told["feature_size"], samples)


_WHISPER = {"feature_size": 80, "sampling_rate": 16000, "hop_length": 160, "chunk_length": 30, "n_fft": 400}
"""What a WhisperFeatureExtractor has where its config does not say."""


def decoder_length(folder: Path, config: Mapping[str, Any]) -> int:
    """Tokens of the longest completion, those that it begins with included. Raises BadInput."""
    return _first(config, DECODER_LENGTH_KEYS, folder)


def prompt_ids(config: Mapping[str, Any], generation: Mapping[str, Any]) -> tuple[int, ...]:
    """What transformers' generate lets every completion begin with: the start token, then tokens forced by position.

    A position whose token is left open (Whisper's language, which it detects) ends them: the model goes on by itself.
    """
    told = {**config, **generation}
    begin = told.get("decoder_start_token_id", told.get("bos_token_id"))
    ids = [begin] if isinstance(begin, int) else []
    forced = told.get("forced_decoder_ids") or ()
    for position, token in sorted(forced):
        if position != len(ids) or not isinstance(token, int):
            break
        ids.append(token)
    first = told.get("forced_bos_token_id")
    if not forced and isinstance(first, int):
        ids.append(first)
    return tuple(ids)


def _first(config: Mapping[str, Any], keys: tuple[str, ...], folder: Path) -> int:
    """The first of the keys that the config has, or RELATIVE_LENGTH. Raises BadInput."""
    for key in keys:
        value = config.get(key)
        if isinstance(value, int) and value > 0:
            return value
    if RELATIVE_POSITIONS in config:
        return RELATIVE_LENGTH
    raise BadInput(f"{folder / 'config.json'} says no maximum length ({', '.join(keys)})")
