"""Which kind of model a checkpoint's config.json describes, decided without importing torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from model_repo.runtime.errors import BadInput

from .base import Kind

DECODER_SUFFIXES = ("ForCausalLM", "LMHeadModel")
"""Class names of causal language models. Whether a class can be packed is found out by export's probe."""

ENCODER_TYPES = ("bert", "roberta", "xlm-roberta", "camembert", "electra", "distilbert")
"""Model types of the BERT kind: absolute positions, every token sees every other."""

CARRIED = (
    "decoders of the Llama kind (a ...ForCausalLM class that uses transformers' attention interface) and "
    f"encoders of the BERT kind ({', '.join(ENCODER_TYPES)})"
)


def model_kind(config: dict[str, Any], config_file: Path) -> Kind:
    """Decoder or encoder. Raises BadInput for anything else, naming what is carried."""
    architectures = config.get("architectures")
    model_type = config.get("model_type")
    if not isinstance(architectures, list) or not architectures or not isinstance(architectures[0], str):
        raise BadInput(f"{config_file} names no architecture; carried are {CARRIED}")
    if not isinstance(model_type, str):
        raise BadInput(f"{config_file} names no model_type; carried are {CARRIED}")
    architecture = architectures[0]
    if architecture.endswith(DECODER_SUFFIXES):
        return "decoder"
    if model_type in ENCODER_TYPES:
        return "encoder"
    raise BadInput(
        f"{config_file} describes {architecture} (model_type {model_type!r}), which is not supported; "
        f"carried are {CARRIED}"
    )


def refuse_remote_code(config: dict[str, Any], config_file: Path, trust_remote_code: bool) -> None:
    """Raises BadInput when the checkpoint brings its own Python code and that was not allowed."""
    auto_map = config.get("auto_map")
    if auto_map and not trust_remote_code:
        names = auto_map.values() if isinstance(auto_map, dict) else [auto_map]
        raise BadInput(
            f"{config_file} wants Python code of the checkpoint to be run ({', '.join(map(str, names))}); "
            "read that code, and give --trust-remote-code if you trust it"
        )
