"""Length-dependent rotary scalings are frozen: right for the maximum length, the same in any company."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from pipeline.export.decoder import export_decoder
from pipeline.export.packed import PackedDecoder
from pipeline.export.probe import probe
from pipeline.export.rotary import freeze_rotary
from tests.export.packed_requests import generate
from tests.export.runners import eager_step, standard_step
from tests.export.tiny_models import VOCABULARY, greedy, tiny_llama

THETA, HEAD_DIM, POSITIONS, MAX_LENGTH, FACTOR = 10000.0, 16, 32, 96, 4.0
DYNAMIC = {"rope_type": "dynamic", "factor": FACTOR, "rope_theta": THETA}
LONG_FACTORS = [1.0 + 0.5 * index for index in range(HEAD_DIM // 2)]
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": THETA,
    "factor": FACTOR,
    "short_factor": [1.0] * (HEAD_DIM // 2),
    "long_factor": LONG_FACTORS,
    "original_max_position_embeddings": POSITIONS,
}


def test_dynamic_is_the_default_rotary_of_another_base() -> None:
    """The base of NTK-aware scaling (https://arxiv.org/abs/2309.00071, formula 16) for the maximum length."""
    stretch = FACTOR * MAX_LENGTH / POSITIONS - (FACTOR - 1)
    base = THETA * stretch ** (HEAD_DIM / (HEAD_DIM - 2))
    plain = tiny_llama(rope_parameters={"rope_type": "default", "rope_theta": base})
    random = np.random.default_rng(3)
    prompts = [random.integers(3, VOCABULARY, length).tolist() for length in (7, 40)]
    expected = [greedy(plain, prompt, 16) for prompt in prompts]

    model = tiny_llama(rope_parameters=DYNAMIC, max_position_embeddings=POSITIONS)
    exported = export_decoder(model, MAX_LENGTH, opset=24)
    generated = generate(standard_step(exported.model), exported.kv, prompts, 16)
    for one, (tokens, logits) in zip(generated, expected, strict=True):
        assert one.tokens == tokens
        np.testing.assert_allclose(np.stack(one.logits), logits.numpy(), rtol=0, atol=1e-4)


def test_longrope_takes_the_long_factors_when_the_maximum_is_long() -> None:
    model = tiny_llama(rope_parameters=LONGROPE, max_position_embeddings=int(POSITIONS * FACTOR))
    frozen = freeze_rotary(model, MAX_LENGTH)
    assert [entry.kind for entry in frozen] == ["longrope"]
    rotary = model.model.rotary_emb
    plain = THETA ** -(np.arange(0, HEAD_DIM, 2) / HEAD_DIM)
    np.testing.assert_allclose(rotary.inv_freq.numpy(), plain / LONG_FACTORS, rtol=1e-6)
    assert rotary.attention_scaling == pytest.approx(math.sqrt(1 + math.log(FACTOR) / math.log(POSITIONS)))


def test_longrope_keeps_the_short_factors_when_the_maximum_is_short() -> None:
    model = tiny_llama(rope_parameters=LONGROPE, max_position_embeddings=int(POSITIONS * FACTOR))
    freeze_rotary(model, POSITIONS)
    plain = THETA ** -(np.arange(0, HEAD_DIM, 2) / HEAD_DIM)
    np.testing.assert_allclose(model.model.rotary_emb.inv_freq.numpy(), plain, rtol=1e-6)


@pytest.mark.parametrize("rope", [DYNAMIC, LONGROPE], ids=["dynamic", "longrope"])
def test_a_long_neighbour_changes_nothing(rope: dict[str, object]) -> None:
    model = tiny_llama(rope_parameters=rope, max_position_embeddings=POSITIONS)
    layers = probe(model)
    freeze_rotary(model, MAX_LENGTH)
    kv = [layer.kv("float32") for layer in layers]
    step = eager_step(PackedDecoder(model, layers), kv)
    random = np.random.default_rng(4)
    short, long = (random.integers(3, VOCABULARY, length).tolist() for length in (6, 60))
    (alone,) = generate(step, kv, [short], 12)
    beside, _ = generate(step, kv, [short, long], 12)
    assert alone.tokens == beside.tokens
    np.testing.assert_allclose(np.stack(alone.logits), np.stack(beside.logits), rtol=0, atol=1e-4)


def test_plain_rotary_is_left_alone() -> None:
    model = tiny_llama()
    before = model.model.rotary_emb.inv_freq.clone()
    assert freeze_rotary(model, MAX_LENGTH) == []
    assert torch.equal(model.model.rotary_emb.inv_freq, before)
