"""Decoders beyond Llama: what the probe finds, what is packed right, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers.masking_utils import (
    bidirectional_mask_function,
    causal_mask_function,
    chunked_causal_mask_function,
    sliding_window_causal_mask_function,
)

from pipeline.export.attention import PAGED, UnsupportedModel
from pipeline.export.decoder import export_decoder
from pipeline.export.packed import PackedDecoder
from pipeline.export.packing import check_packing
from pipeline.export.probe import mask_window, probe
from tests.export.packed_requests import generate
from tests.export.runners import eager_step, standard_step
from tests.export.tiny_models import VOCABULARY, greedy, sharpened, tiny_llama

SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "attn_implementation": "eager",
}
PROMPT_LENGTHS = (5, 30, 11, 19)


def _build(config: str, model: str, **settings: Any) -> transformers.PreTrainedModel:
    torch.manual_seed(0)
    built: transformers.PreTrainedModel = sharpened(
        getattr(transformers, model)(getattr(transformers, config)(**settings))
    )
    return built


def mistral() -> transformers.PreTrainedModel:
    """A sliding window of 6."""
    return _build("MistralConfig", "MistralForCausalLM", sliding_window=6, **SIZES)


def gemma2() -> transformers.PreTrainedModel:
    """Softcap in attention and on the logits, a scale of its own, every other layer with a window."""
    return _build(
        "Gemma2Config",
        "Gemma2ForCausalLM",
        sliding_window=7,
        attn_logit_softcapping=3.0,
        final_logit_softcapping=9.0,
        query_pre_attn_scalar=4,
        **SIZES,
    )


def qwen3() -> transformers.PreTrainedModel:
    """Normalized queries and keys."""
    return _build("Qwen3Config", "Qwen3ForCausalLM", **SIZES)


def gpt2() -> transformers.PreTrainedModel:
    """Learned positions instead of rotary ones."""
    return _build(
        "GPT2Config",
        "GPT2LMHeadModel",
        vocab_size=VOCABULARY,
        n_embd=64,
        n_layer=2,
        n_head=4,
        n_positions=128,
        attn_implementation="eager",
    )


@pytest.mark.parametrize("build", [mistral, gemma2, qwen3, gpt2])
def test_packed_it_decodes_as_transformers(build: Any) -> None:
    model = build()
    random = np.random.default_rng(2)
    prompts = [random.integers(3, VOCABULARY, length).tolist() for length in PROMPT_LENGTHS]
    expected = [greedy(model, prompt, 16) for prompt in prompts]
    layers = probe(model)
    check_packing(model)
    kv = [layer.kv("float32") for layer in layers]
    generated = generate(eager_step(PackedDecoder(model, layers), kv), kv, prompts, 16)
    for one, (tokens, logits) in zip(generated, expected, strict=True):
        assert one.tokens == tokens
        np.testing.assert_allclose(np.stack(one.logits), logits.numpy(), rtol=0, atol=1e-4)


def test_window_softcap_and_scale_reach_the_graph() -> None:
    model = gemma2()
    random = np.random.default_rng(2)
    prompts = [random.integers(3, VOCABULARY, length).tolist() for length in PROMPT_LENGTHS]
    expected = [greedy(model, prompt, 16) for prompt in prompts]
    graph = export_decoder(model, 64, opset=24)
    assert [spec.window for spec in graph.kv] == [7, 0]
    generated = generate(standard_step(graph.model), graph.kv, prompts, 16)
    for one, (tokens, logits) in zip(generated, expected, strict=True):
        assert one.tokens == tokens
        np.testing.assert_allclose(np.stack(one.logits), logits.numpy(), rtol=0, atol=1e-4)


def test_the_probe_finds_windows_softcaps_and_scales() -> None:
    assert [layer.window for layer in probe(mistral())] == [6, 6]
    layers = probe(gemma2())
    assert [layer.window for layer in layers] == [7, 0]
    assert {layer.softcap for layer in layers} == {3.0}
    assert {layer.scale for layer in layers} == {0.5}


def test_the_mask_counts_where_the_argument_says_nothing() -> None:
    """qwen2_moe and phimoe slide by their mask alone."""
    model = mistral()
    for layer in model.model.layers:
        layer.self_attn.config = transformers.MistralConfig(**{**SIZES, "sliding_window": None})
        layer.self_attn.config._attn_implementation = model.config._attn_implementation
    assert [layer.window for layer in probe(_sharing_implementation(model))] == [6, 6]


def _sharing_implementation(model: Any) -> Any:
    """Lets the attention modules' own configs follow the model's attention implementation."""
    original = model.set_attn_implementation

    def set_everywhere(implementation: str) -> None:
        original(implementation)
        for layer in model.model.layers:
            layer.self_attn.config._attn_implementation = implementation

    model.set_attn_implementation = set_everywhere
    return model


def test_mask_functions_are_read() -> None:
    assert mask_window(causal_mask_function) == 0
    for window in (1, 2, 5, 64, 4096):
        assert mask_window(sliding_window_causal_mask_function(window)) == window


@pytest.mark.parametrize(
    "mask",
    [
        bidirectional_mask_function,
        chunked_causal_mask_function(8, torch.zeros(1, dtype=torch.long)),
        lambda batch, head, query, key: (key <= query) & ((query - key) % 2 == 0),
    ],
    ids=["bidirectional", "chunked", "every other key"],
)
def test_masks_of_other_shapes_are_refused(mask: Any) -> None:
    with pytest.raises(UnsupportedModel, match="neither causal nor a sliding window"):
        mask_window(mask)


def test_models_without_the_attention_interface_are_refused() -> None:
    model = _build("BloomConfig", "BloomForCausalLM", vocab_size=99, hidden_size=32, n_layer=1, n_head=2)
    with pytest.raises(UnsupportedModel, match=r"Bloom.* does not use transformers' attention"):
        probe(model)


def test_what_torch_cannot_export_is_refused_with_its_reason() -> None:
    model = tiny_llama()
    model.model.layers[0].mlp = _DependsOnValues()
    with pytest.raises(UnsupportedModel, match=r"torch cannot export LlamaForCausalLM: .*not supported"):
        export_decoder(model, 64, opset=24)


class _DependsOnValues(nn.Module):
    def forward(self, hidden: Tensor) -> Tensor:
        return hidden * 2 if hidden.abs().max() > 1 else hidden


def test_layers_with_other_state_are_refused() -> None:
    model = tiny_llama()
    model.model.layers[1].self_attn = _NoAttention()
    with pytest.raises(UnsupportedModel, match=r"layers \[1\] never call attention"):
        probe(model)


class _NoAttention(nn.Module):
    def forward(self, hidden_states: Tensor, **_: Any) -> tuple[Tensor, None]:
        return hidden_states, None


def test_rows_that_depend_on_each_other_are_refused() -> None:
    model = tiny_llama()
    probe(model)
    check_packing(model)
    model.model.layers[0].mlp = _TokenShift(model.model.layers[0].mlp)
    with pytest.raises(UnsupportedModel, match="sequences cannot be packed"):
        check_packing(model)


class _TokenShift(nn.Module):
    """A layer that looks at the row before, as convolutions and RWKV do."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, hidden: Tensor) -> Tensor:
        shifted: Tensor = self.inner(hidden + 0.5 * hidden.roll(1, dims=1))
        return shifted


def test_attention_arguments_that_change_the_meaning_are_refused() -> None:
    attention = transformers.AttentionInterface()[PAGED]
    heads = torch.zeros(1, 2, 3, 4)
    with pytest.raises(UnsupportedModel, match="passes block_indices to attention"):
        attention(nn.Identity(), heads, heads, heads, None, block_indices=torch.zeros(1))


def test_a_decoder_that_sees_later_tokens_is_refused() -> None:
    model = tiny_llama()
    model.model.layers[1].self_attn.is_causal = False
    with pytest.raises(UnsupportedModel, match="attends to later tokens"):
        probe(model)


class _Biased(nn.Module):
    """Attention that adds a bias to its scores, as T5's does."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *inputs: Any, **names: Any) -> Any:
        return self.inner(*inputs, **names, position_bias=torch.ones(1, 4, 4, 4))


def test_a_bias_on_the_scores_is_refused() -> None:
    model = tiny_llama()
    model.model.layers[0].self_attn = _Biased(model.model.layers[0].self_attn)
    with pytest.raises(UnsupportedModel, match="adds position_bias to the scores"):
        probe(model)
