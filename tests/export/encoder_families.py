"""Encoder families as tiny random models: what is carried, what each has, and what is refused with which reason."""

# ruff: noqa: E501  (a table: one family a line)

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import transformers
from transformers import PreTrainedModel

from tests.export.tiny_models import VOCABULARY, sharpened

MAX_LENGTH = 64
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": MAX_LENGTH + 6,
    "pad_token_id": 1,
}
T5_SIZES = {"vocab_size": VOCABULARY, "d_model": 48, "d_kv": 12, "d_ff": 64, "num_layers": 2, "num_heads": 4, "relative_attention_num_buckets": 8, "relative_attention_max_distance": 20}  # fmt: skip
DEBERTA = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "max_relative_positions": -1, "position_biased_input": False, "type_vocab_size": 0}  # fmt: skip
CAUSAL = {k: v for k, v in SIZES.items() if k != "pad_token_id"}
ALTERNATING = {"layer_types": ["full_attention", "sliding_attention"], "local_attention": 8}


@dataclass(frozen=True)
class Family:
    """A family's class names begin with `stem`; `suffix` ends the name of the class without a head.

    features: what sets it apart, in the field's terms. heads: the heads that are tried here, by class name suffix.
    wide: tested by `make test-wide` only; so are heads that `wide_heads` names. padded: why its texts are not computed
    packed, in words of the fusion rule; '' where they are.
    """

    name: str
    stem: str
    settings: Mapping[str, Any]
    features: tuple[str, ...] = ()
    pooling: Literal["mean", "cls", "lasttoken"] = "mean"
    suffix: str = "Model"
    heads: tuple[str, ...] = ()
    wide_heads: tuple[str, ...] = ()
    wide: bool = False
    padded: str = ""

    def model(self, suffix: str = "", **overrides: Any) -> PreTrainedModel:
        """A model of the family with weights large enough that attention decides the result."""
        config_class = getattr(transformers, f"{self.stem}Config")
        model_class = getattr(transformers, f"{self.stem}{suffix or self.suffix}")
        torch.manual_seed(0)
        config = config_class(**{**self.settings, "attn_implementation": "eager", **overrides})
        built: PreTrainedModel = sharpened(model_class(config))
        return built


TEXTS, TOKENS = "ForSequenceClassification", "ForTokenClassification"
OWN = "is in no attention that fuses"
CARRIED = (
    Family("BERT", "Bert", SIZES, ("learned positions", "token types"), heads=(TEXTS, TOKENS)),
    Family("DistilBERT", "DistilBert", {"vocab_size": VOCABULARY, "dim": 48, "hidden_dim": 64, "n_layers": 2, "n_heads": 4, "max_position_embeddings": MAX_LENGTH + 6}, ("learned positions",), wide_heads=(TEXTS, TOKENS)),
    Family("RoBERTa", "Roberta", {**SIZES, "type_vocab_size": 1}, ("positions counted from padding",), "cls", heads=(TEXTS,), wide_heads=(TOKENS,)),
    Family("XLM-RoBERTa", "XLMRoberta", {**SIZES, "type_vocab_size": 1}, ("positions counted from padding",), wide_heads=(TEXTS, TOKENS)),
    Family("MPNet", "MPNet", SIZES, ("relative bias", "positions counted from padding", "attention of its own"), wide_heads=(TEXTS, TOKENS)),
    Family("ModernBERT", "ModernBert", {**SIZES, **ALTERNATING}, ("window", "rotary", "GeGLU"), heads=(TEXTS,), wide_heads=(TOKENS,)),
    Family("DeBERTa-v2, as v3", "DebertaV2", {**SIZES, **DEBERTA, "position_buckets": 8, "norm_rel_ebd": "layer_norm", "share_att_key": True}, ("disentangled attention", "position buckets", "attention of its own"), heads=(TOKENS,), wide_heads=(TEXTS,), padded=OWN),
    Family("T5 encoder", "T5", T5_SIZES, ("relative bias", "RMSNorm", "no scale"), suffix="EncoderModel"),
    Family("ELECTRA", "Electra", {**SIZES, "embedding_size": 32}, ("factored embeddings", "token types"), wide_heads=(TEXTS, TOKENS)),
    Family("CamemBERT", "Camembert", {**SIZES, "type_vocab_size": 1}, ("positions counted from padding",), wide_heads=(TEXTS, TOKENS)),
    Family("DeBERTa-v2", "DebertaV2", {**SIZES, **DEBERTA}, ("disentangled attention", "attention of its own"), wide=True, padded=OWN),
    Family("DeBERTa-v2, with a convolution", "DebertaV2", {**SIZES, **DEBERTA, "conv_kernel_size": 3, "conv_act": "gelu"}, ("disentangled attention", "convolution", "attention of its own"), wide=True, padded=OWN),
    Family("Qwen3, causal", "Qwen3", {**CAUSAL, "num_key_value_heads": 2, "head_dim": 12}, ("causal", "grouped heads", "norm of heads", "rotary"), "lasttoken"),
    # Nobody asked for these by name; the same machinery carries them.
    Family("ALBERT", "Albert", {**SIZES, "embedding_size": 32}, ("shared layers", "factored embeddings", "token types"), wide_heads=(TEXTS, TOKENS), wide=True),
    Family("mT5 encoder", "MT5", {**T5_SIZES, "feed_forward_proj": "gated-gelu"}, ("relative bias", "GeGLU"), suffix="EncoderModel", wide=True),
    Family("DeBERTa", "Deberta", {**SIZES, **DEBERTA}, ("disentangled attention", "attention of its own"), wide_heads=(TEXTS, TOKENS), wide=True, padded=OWN),
    Family("Data2Vec text", "Data2VecText", {**SIZES, "type_vocab_size": 1}, ("positions counted from padding",), wide=True),
    Family("RemBERT", "RemBert", {**SIZES, "input_embedding_size": 32, "output_embedding_size": 40}, ("token types", "attention of its own"), wide=True),
    Family("ERNIE", "Ernie", {**SIZES, "use_task_id": False}, ("token types",), wide=True),
    Family("RoFormer", "RoFormer", {**SIZES, "embedding_size": 48}, ("token types", "rotary tables", "attention of its own"), wide=True, padded="does not work token by token"),
    Family("SqueezeBERT", "SqueezeBert", {**SIZES, "embedding_size": 48}, ("token types", "attention of its own"), wide=True, padded=OWN),
    Family("Llama, causal", "Llama", CAUSAL, ("causal", "rotary"), wide=True),
    Family("Mistral, causal", "Mistral", {**CAUSAL, "num_key_value_heads": 2, "sliding_window": 8}, ("causal", "window", "grouped heads", "rotary"), "lasttoken", wide=True),
    Family("Megatron-BERT", "MegatronBert", SIZES, ("token types", "norm before"), wide=True),
)  # fmt: skip


@dataclass(frozen=True)
class Refused:
    """A family that is refused, and words of the reason."""

    family: Family
    reason: str


REFUSED = (
    Refused(Family("FNet", "FNet", {k: v for k, v in SIZES.items() if k != "num_attention_heads"}), "a text's result depends on the padding behind it, first in FNetBasicFourierTransform"),
    Refused(Family("ConvBERT", "ConvBert", {**SIZES, "embedding_size": 48}), "a text's result depends on the padding behind it, first in Linear (encoder.layer.0.attention.self.conv_kernel_layer)"),
    Refused(Family("MobileBERT", "MobileBert", {**SIZES, "embedding_size": 32, "intra_bottleneck_size": 32, "true_hidden_size": 32}), "a text's result depends on the padding behind it, first in Linear (embeddings.embedding_transformation)"),
    Refused(Family("Nyströmformer", "Nystromformer", {**SIZES, "num_landmarks": 64, "segment_means_seq_len": 64}), "a text's result depends on the padding behind it, first in NystromformerSelfAttention"),
    Refused(Family("BigBird", "BigBird", {**SIZES, "attention_type": "block_sparse", "block_size": 4}), "gives other numbers with its attention in standard operators than with its own"),
    Refused(Family("ViT", "ViT", {"hidden_size": 48, "num_attention_heads": 4, "num_hidden_layers": 1, "image_size": 16, "patch_size": 8}), "takes no input_ids"),
    Refused(Family("Funnel", "Funnel", {"vocab_size": VOCABULARY, "d_model": 48, "n_head": 4, "d_head": 12, "d_inner": 64, "block_sizes": [1, 1]}, wide=True), "the model cannot compute a batch of 1 texts of up to 1 tokens"),
    Refused(Family("XLNet", "XLNet", {"vocab_size": VOCABULARY, "d_model": 48, "n_layer": 2, "n_head": 4, "d_inner": 64}, wide=True), "torch cannot export XLNetModel"),
    Refused(Family("Longformer", "Longformer", {**SIZES, "attention_window": [4, 4]}, wide=True), "torch cannot export LongformerModel"),
)  # fmt: skip
