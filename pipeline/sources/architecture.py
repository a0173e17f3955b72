"""Which kind of model a checkpoint's config.json describes, decided without importing torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from model_repo.runtime.contract import Head
from model_repo.runtime.errors import BadInput

from .base import Kind
from .heads import HEAD_SUFFIXES
from .images import image_task
from .vision_language import VISION_LANGUAGE, is_vision_language

DECODER_SUFFIXES = ("ForCausalLM", "LMHeadModel")
"""Class names of causal language models. Whether a class can be packed is found out by export's probe."""

ENCODER_DECODER_SUFFIXES = ("ForConditionalGeneration", "MTModel")
"""Class names of encoders with a decoder that attends to them, where the config says is_encoder_decoder."""

BODY_SUFFIXES = ("Model", "ForMaskedLM", "ForPreTraining")
"""Class names of encoders without a head of use: their hidden states are pooled. Whether a class's results depend
on padding or company is found out by export's probe."""

CARRIED = (
    "decoders of the Llama kind (a ...ForCausalLM class that uses transformers' attention interface), "
    "encoder-decoders of the Whisper, BART and T5 kind (...ForConditionalGeneration, ...MTModel), "
    f"vision-language models ({', '.join(VISION_LANGUAGE)}) and "
    "encoders of the BERT kind: bodies (...Model, ...EncoderModel, ...ForMaskedLM) as sentence encoders, and "
    f"heads ({', '.join(f'...{suffix}' for suffix in HEAD_SUFFIXES)}), and models of images: classifiers "
    "(...ForImageClassification), detectors (...ForObjectDetection), towers that embed them (...VisionModel and others)"
)


def model_kind(config: dict[str, Any], config_file: Path) -> Kind:
    """Decoder, encoder, or named tensors (images). Raises BadInput for anything else, naming what is carried."""
    architectures = config.get("architectures")
    model_type = config.get("model_type")
    if not isinstance(architectures, list) or not architectures or not isinstance(architectures[0], str):
        raise BadInput(f"{config_file} names no architecture; carried are {CARRIED}")
    if not isinstance(model_type, str):
        raise BadInput(f"{config_file} names no model_type; carried are {CARRIED}")
    architecture = architectures[0]
    if pools_sentences(config_file.parent):
        return "encoder"  # of a causal model too
    if architecture.endswith(DECODER_SUFFIXES) or has_encoder(config):
        return "decoder"
    if is_vision_language(config, config_file):
        return "decoder"
    if image_task(config, architecture) is not None:
        return "tensors"
    if _is_text_encoder(config, architecture):
        return "encoder"
    raise BadInput(
        f"{config_file} describes {architecture} (model_type {model_type!r}), which is not supported; "
        f"carried are {CARRIED}"
    )


def has_encoder(config: dict[str, Any]) -> bool:
    """Whether the checkpoint is a decoder that attends to an encoder of its own."""
    architecture: str = config["architectures"][0]
    return bool(config.get("is_encoder_decoder")) and architecture.endswith(ENCODER_DECODER_SUFFIXES)


def pools_sentences(folder: Path) -> bool:
    """Whether sentence-transformers' modules.json lies there with a pooling: the head of the checkpoint is not used."""
    modules_file = folder / "modules.json"
    try:
        return "Pooling" in json.dumps(json.loads(modules_file.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError):
        return False  # whoever reads the modules says what is wrong with them


def auto_class(kind: Kind, head: Head, config: dict[str, Any]) -> Any:
    """transformers' auto class that loads the checkpoint; imports torch."""
    import transformers

    if kind == "decoder" and has_encoder(config):
        hears = "num_mel_bins" in config
        return transformers.AutoModelForSpeechSeq2Seq if hears else transformers.AutoModelForSeq2SeqLM
    if kind == "decoder" and config["architectures"][0] in VISION_LANGUAGE:
        return transformers.AutoModelForImageTextToText
    if kind == "decoder":
        return transformers.AutoModelForCausalLM
    if head.kind == "sequence_classification":
        return transformers.AutoModelForSequenceClassification
    if head.kind == "token_classification":
        return transformers.AutoModelForTokenClassification
    if config.get("is_encoder_decoder") or config["architectures"][0].endswith("EncoderModel"):
        # Of T5 and its kind, the encoder alone.
        return transformers.AutoModelForTextEncoding
    return transformers.AutoModel


def refuse_remote_code(config: dict[str, Any], config_file: Path, trust_remote_code: bool) -> None:
    """Raises BadInput when the checkpoint brings its own Python code and that was not allowed."""
    auto_map = config.get("auto_map")
    if auto_map and not trust_remote_code:
        names = auto_map.values() if isinstance(auto_map, dict) else [auto_map]
        raise BadInput(
            f"{config_file} wants Python code of the checkpoint to be run ({', '.join(map(str, names))}); "
            "read that code, and give --trust-remote-code if you trust it"
        )


def _is_text_encoder(config: dict[str, Any], architecture: str) -> bool:
    """By the class's name; models of images and sounds have no vocabulary."""
    if "vocab_size" not in config:
        return False
    if config.get("is_encoder_decoder") and not architecture.endswith("EncoderModel"):
        return False
    return architecture.endswith((*BODY_SUFFIXES, *HEAD_SUFFIXES))
