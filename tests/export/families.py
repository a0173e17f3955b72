"""Decoder families as tiny random models: what is carried, what each has, and what is refused with which reason."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

from tests.export.tiny_models import VOCABULARY, sharpened

SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
HEAD = {"head_dim": 16}
ALTERNATING = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 7}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2}
GPT_SIZES = {"vocab_size": VOCABULARY, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128}


def rotary(kind: str, **scaling: Any) -> dict[str, Any]:
    """Rotary parameters of a kind, scaled from 32 positions."""
    parameters = {"rope_type": kind, "rope_theta": 10000.0, "original_max_position_embeddings": 32, **scaling}
    return {"rope_parameters": parameters, "original_max_position_embeddings": 32}


@dataclass(frozen=True)
class Family:
    """A family's class names begin with `stem`, unless given. features: what sets it apart, in the field's terms.

    wide: tested by `make test-wide` only.
    """

    name: str
    stem: str
    settings: Mapping[str, Any]
    features: tuple[str, ...] = ()
    config_class: str = ""
    model_class: str = ""
    wide: bool = field(default=False)

    def model(self, **overrides: Any) -> PreTrainedModel:
        """A model of the family with weights large enough that attention decides the tokens."""
        config_class = getattr(transformers, self.config_class or f"{self.stem}Config")
        model_class = getattr(transformers, self.model_class or f"{self.stem}ForCausalLM")
        torch.manual_seed(0)
        config = config_class(**{**self.settings, "attn_implementation": "eager", **overrides})
        built: PreTrainedModel = sharpened(model_class(config))
        return built


CARRIED = (
    Family("Llama, dynamic rotary", "Llama", {**SIZES, **HEAD, "max_position_embeddings": 32, **rotary("dynamic", factor=4.0)}, ("rotary scaling",)),
    Family("Qwen2", "Qwen2", {**SIZES, "use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1}, ("window", "bias")),
    Family("Qwen3", "Qwen3", {**SIZES, **HEAD}, ("q/k norm",)),
    Family("Mistral", "Mistral", {**SIZES, **HEAD, "sliding_window": 6}, ("window",)),
    Family("Gemma 2", "Gemma2", {**SIZES, "tie_word_embeddings": False, **HEAD, **ALTERNATING, "attn_logit_softcapping": 3.0, "final_logit_softcapping": 9.0, "query_pre_attn_scalar": 4}, ("window", "softcap", "logit softcap", "scale")),
    Family("Gemma 3 text", "Gemma3", {**SIZES, "tie_word_embeddings": False, **HEAD, **ALTERNATING, "query_pre_attn_scalar": 4}, ("window", "q/k norm", "scale", "rotary by layer"), config_class="Gemma3TextConfig"),
    Family("Phi", "Phi", {**SIZES, "partial_rotary_factor": 0.5}, ("partial rotary", "parallel layers", "bias")),
    Family("Phi-3", "Phi3", {**SIZES, "pad_token_id": 0, "sliding_window": 9}, ("window", "packed QKV")),
    Family("Phi-3, longrope", "Phi3", {**SIZES, "pad_token_id": 0, **rotary("longrope", short_factor=[1.0] * 8, long_factor=[1.0 + 0.5 * i for i in range(8)])}, ("rotary scaling", "packed QKV")),
    Family("OLMo 2", "Olmo2", SIZES, ("q/k norm", "norm after")),
    Family("Cohere 2", "Cohere2", {**SIZES, **HEAD, **ALTERNATING}, ("window", "interleaved rotary", "parallel layers", "logit scale")),
    Family("Granite", "Granite", {**SIZES, "embedding_multiplier": 3.0, "residual_multiplier": 0.5, "attention_multiplier": 0.3, "logits_scaling": 2.0}, ("scale", "multipliers")),
    Family("StarCoder 2", "Starcoder2", {**SIZES, "sliding_window": 9}, ("window", "LayerNorm", "bias")),
    Family("GLM-4", "Glm4", {**SIZES, **HEAD, "pad_token_id": 0, "eos_token_id": 1}, ("interleaved rotary", "partial rotary", "norm after")),
    Family("SmolLM3", "SmolLM3", {**SIZES, "pad_token_id": 0, "no_rope_layers": [1, 0]}, ("layers without rotary",)),
    Family("GPT-2", "GPT2", GPT_SIZES, ("learned positions", "LayerNorm"), model_class="GPT2LMHeadModel"),
    Family("GPT-NeoX", "GPTNeoX", {k: v for k, v in SIZES.items() if k != "num_key_value_heads"} | {"rotary_pct": 0.25}, ("partial rotary", "parallel layers", "packed QKV")),
    Family("OPT", "OPT", {"vocab_size": VOCABULARY, "hidden_size": 64, "ffn_dim": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 128, "word_embed_proj_dim": 64}, ("learned positions", "LayerNorm")),
    Family("GPT-OSS", "GptOss", {**SIZES, **HEAD, **ALTERNATING, "num_local_experts": 4, "num_experts_per_tok": 2}, ("experts", "sink", "window", "rotary scaling")),
    Family("Mixtral", "Mixtral", {**SIZES, **HEAD, "num_local_experts": 4, "num_experts_per_tok": 2}, ("experts",)),
    Family("Qwen3-MoE", "Qwen3Moe", {**SIZES, **HEAD, **EXPERTS, "moe_intermediate_size": 48}, ("experts", "q/k norm")),
    Family("OLMoE", "Olmoe", {**SIZES, **EXPERTS}, ("experts", "q/k norm")),
    Family("DeepSeek-V3", "DeepseekV3", {**SIZES, "num_key_value_heads": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1, "moe_intermediate_size": 48, "q_lora_rank": 24, "kv_lora_rank": 32, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16, "first_k_dense_replace": 1}, ("experts", "MLA", "key and value sizes apart")),
    # Nobody asked for these by name; the same machinery carries them.
    Family("Gemma", "Gemma", {**SIZES, **HEAD, "tie_word_embeddings": False}, wide=True),
    Family("Cohere", "Cohere", SIZES, ("interleaved rotary", "parallel layers", "logit scale"), wide=True),
    Family("GLM", "Glm", {**SIZES, **HEAD, "pad_token_id": 0, "eos_token_id": 1}, ("interleaved rotary", "partial rotary"), wide=True),
    Family("Helium", "Helium", {**SIZES, **HEAD}, ("interleaved rotary",), wide=True),
    Family("Nemotron", "Nemotron", {**SIZES, **HEAD}, ("partial rotary", "LayerNorm"), wide=True),
    Family("StableLM", "StableLm", SIZES, ("partial rotary", "LayerNorm"), wide=True),
    Family("OLMo", "Olmo", SIZES, ("LayerNorm without weights",), wide=True),
    Family("OLMo 3", "Olmo3", {**SIZES, **ALTERNATING}, ("window", "q/k norm", "norm after"), wide=True),
    Family("EXAONE 4", "Exaone4", {**SIZES, **HEAD, **ALTERNATING}, ("window", "q/k norm", "norm after"), wide=True),
    Family("ERNIE 4.5", "Ernie4_5", {**SIZES, **HEAD}, ("interleaved rotary",), wide=True),
    Family("Seed-OSS", "SeedOss", {**SIZES, **HEAD}, ("bias",), wide=True),
    Family("Hunyuan dense", "HunYuanDenseV1", {**SIZES, **HEAD}, ("q/k norm",), wide=True),
    Family("GPTBigCode", "GPTBigCode", GPT_SIZES, ("learned positions", "multi-query"), wide=True),
    Family("BitNet", "BitNet", {**SIZES, **HEAD}, ("inner norms",), wide=True),
    Family("Arcee", "Arcee", {**SIZES, **HEAD}, ("squared ReLU",), wide=True),
    Family("Apertus", "Apertus", SIZES, ("q/k norm", "xIELU"), wide=True),
)  # fmt: skip
"""Llama itself has a test module of its own (test_llama.py)."""


@dataclass(frozen=True)
class Refused:
    """A family that is refused, and words of the reason."""

    family: Family
    reason: str


REFUSED = (
    Refused(
        Family("BLOOM", "Bloom", {"vocab_size": VOCABULARY, "hidden_size": 64, "n_layer": 2, "n_head": 4}),
        "does not use transformers' attention interface",
    ),
    Refused(
        Family(
            "XGLM",
            "XGLM",
            {
                "vocab_size": VOCABULARY,
                "d_model": 64,
                "ffn_dim": 96,
                "num_layers": 2,
                "attention_heads": 4,
                "max_position_embeddings": 128,
            },
        ),
        "does not use transformers' attention interface",
    ),
    Refused(Family("DiffLlama", "DiffLlama", SIZES), "calls attention twice"),
)
