"""Encoder-decoder families as tiny random models: what is carried, and what is refused with which reason."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

from model_repo.runtime.cross_attention import POSITIONS
from model_repo.runtime.tensor_spec import TensorSpec
from tests.export.tiny_models import VOCABULARY, sharpened

TEXT = TensorSpec("input_ids", "int64", (1, POSITIONS))
AUDIO = TensorSpec("input_features", "float32", (1, 8, 40))
MAX_POSITIONS = 96

SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 3,
    "tie_word_embeddings": False,  # tied, random models repeat their last token
}
BART_SIZES = {**SIZES, "max_position_embeddings": MAX_POSITIONS}
WHISPER_SIZES = {
    **SIZES,
    "num_mel_bins": 8,
    "max_source_positions": 20,
    "max_target_positions": MAX_POSITIONS,
}


@dataclass(frozen=True)
class CrossFamily:
    """A family's class names begin with `stem`. features: what sets it apart, in the field's terms.

    wide: tested by `make test-wide` only.
    """

    name: str
    stem: str
    settings: Mapping[str, Any]
    input: TensorSpec = TEXT
    features: tuple[str, ...] = ()
    model_class: str = ""
    wide: bool = field(default=False)

    def model(self) -> PreTrainedModel:
        """A model of the family with weights large enough that attention decides the tokens."""
        config_class = getattr(transformers, f"{self.stem}Config")
        model_class = getattr(transformers, self.model_class or f"{self.stem}ForConditionalGeneration")
        torch.manual_seed(0)
        config = config_class(**{**self.settings, "attn_implementation": "eager"})
        built: PreTrainedModel = sharpened(model_class(config))
        with torch.no_grad():
            for name, parameter in built.named_parameters():
                # Norms come after the sums in some: averages over many positions would drown the last token.
                if name.endswith(("out_proj.weight", "fc2.weight")):
                    parameter.mul_(0.3)
        return built


CARRIED = (
    CrossFamily("Whisper", "Whisper", WHISPER_SIZES, AUDIO, ("audio", "convolutions", "learned positions")),
    CrossFamily("BART", "Bart", BART_SIZES, TEXT, ("learned positions that the model counts",)),
    CrossFamily("Marian", "Marian", BART_SIZES, TEXT, ("sinusoidal positions",), "MarianMTModel"),
    CrossFamily("mBART", "MBart", BART_SIZES, TEXT, ("norm before",), wide=True),
    CrossFamily("Pegasus", "Pegasus", BART_SIZES, TEXT, ("sinusoidal positions", "norm before"), wide=True),
    CrossFamily("Blenderbot", "Blenderbot", BART_SIZES, TEXT, ("norm before",), wide=True),
    CrossFamily("PLBart", "PLBart", BART_SIZES, TEXT, wide=True),
)


@dataclass(frozen=True)
class RefusedCross:
    """A family that is refused, and words of the reason."""

    family: CrossFamily
    reason: str


T5_SIZES = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 2,
    "num_heads": 4,
    "decoder_start_token_id": 0,
}
REFUSED = (
    RefusedCross(CrossFamily("T5", "T5", T5_SIZES), "adds position_bias to the scores of attention"),
    RefusedCross(CrossFamily("M2M-100", "M2M100", BART_SIZES), "positions that the model counts itself"),
)
