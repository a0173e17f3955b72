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

    own_head: its head shares no weight with its embedding. distance_bias: layers of the decoder that have one.
    wide: tested by `make test-wide` only.
    """

    name: str
    stem: str
    settings: Mapping[str, Any]
    input: TensorSpec = TEXT
    features: tuple[str, ...] = ()
    model_class: str = ""
    own_head: bool = False
    distance_bias: int = 0
    wide: bool = field(default=False)

    def model(self) -> PreTrainedModel:
        """A model of the family with weights large enough that attention decides the tokens."""
        config_class = getattr(transformers, f"{self.stem}Config")
        model_class = getattr(transformers, self.model_class or f"{self.stem}ForConditionalGeneration")
        torch.manual_seed(0)
        config = config_class(**{**self.settings, "attn_implementation": "eager"})
        built: Any = model_class(config)
        if self.own_head:
            built.lm_head.weight = torch.nn.Parameter(torch.empty_like(built.lm_head.weight))
        sharpened(built)
        with torch.no_grad():
            for name, parameter in built.named_parameters():
                # Norms come after the sums in some: averages over many positions would drown the last token.
                if name.endswith(("out_proj.weight", "fc2.weight")):
                    parameter.mul_(0.3)
                # Of T5, whose scores have no scale; a head that is tied to large embeddings repeats the last token.
                if name.endswith("Attention.q.weight"):
                    parameter.mul_(2 * self.settings["d_kv"] ** -0.5)
                if self.distance_bias and name == "shared.weight":
                    parameter.mul_(0.5)
                if name == "lm_head.weight" and self.own_head:
                    parameter.mul_(0.3)  # logits as small as the others'
        model: PreTrainedModel = built
        return model


T5_SIZES = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 2,
    "num_decoder_layers": 3,
    "num_heads": 4,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 20,
    "decoder_start_token_id": 0,
    "n_positions": MAX_POSITIONS,
}
GATED_SIZES = {**T5_SIZES, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
RELATIVE = "relative positions"

CARRIED = (
    CrossFamily("Whisper", "Whisper", WHISPER_SIZES, AUDIO, ("audio", "convolutions", "learned positions")),
    CrossFamily("BART", "Bart", BART_SIZES, TEXT, ("learned positions that the model counts",)),
    CrossFamily("Marian", "Marian", BART_SIZES, TEXT, ("sinusoidal positions",), "MarianMTModel"),
    CrossFamily("mBART", "MBart", BART_SIZES, TEXT, ("norm before",), wide=True),
    CrossFamily("Pegasus", "Pegasus", BART_SIZES, TEXT, ("sinusoidal positions", "norm before"), wide=True),
    CrossFamily("Blenderbot", "Blenderbot", BART_SIZES, TEXT, ("norm before",), wide=True),
    CrossFamily("PLBart", "PLBart", BART_SIZES, TEXT, wide=True),
    CrossFamily("M2M-100", "M2M100", BART_SIZES, TEXT, ("sinusoidal positions by token id",)),
    CrossFamily(
        "NLLB",
        "M2M100",
        {
            **BART_SIZES,
            "pad_token_id": 1,
            "bos_token_id": 0,
            "scale_embedding": True,
            "activation_function": "relu",
        },
        TEXT,
        ("as M2M-100", "scaled embeddings"),
        wide=True,
    ),
    CrossFamily(
        "T5", "T5", T5_SIZES, TEXT, (RELATIVE, "no scale", "RMS norms", "tied head"), distance_bias=3
    ),
    CrossFamily(
        "T5 v1.1",
        "T5",
        GATED_SIZES,
        TEXT,
        (RELATIVE, "gated GELU", "head of its own"),
        own_head=True,
        distance_bias=3,
        wide=True,
    ),
    CrossFamily("mT5", "MT5", GATED_SIZES, TEXT, ("as T5 v1.1",), own_head=True, distance_bias=3, wide=True),
    CrossFamily(
        "UMT5",
        "UMT5",
        GATED_SIZES,
        TEXT,
        (f"{RELATIVE} in each layer", "gated GELU"),
        own_head=True,
        distance_bias=3,
        wide=True,
    ),
)


@dataclass(frozen=True)
class RefusedCross:
    """A family that is refused, and words of the reason."""

    family: CrossFamily
    reason: str


REFUSED = (
    RefusedCross(
        CrossFamily("LED", "LED", {**BART_SIZES, "attention_window": [8, 8]}),
        "does not use transformers' attention interface",
    ),
    RefusedCross(CrossFamily("Pegasus-X", "PegasusX", BART_SIZES), "attends to later tokens"),
)
