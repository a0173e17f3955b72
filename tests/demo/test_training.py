"""Schedules, batches and resuming, on a run of a few steps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from demo.batches import Batches
from demo.checkpoint import Progress, ResumeError, load_state, save_state
from demo.likelihood import bits_per_byte, model_nats
from demo.settings import TrainSettings
from demo.train import Trainer, make_optimizer

SETTINGS = TrainSettings(steps=8, batch_tokens=32, contexts=((0.0, 8), (0.5, 16)), warmup_steps=2)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def tiny_model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config)


def make_trainer(folder: Path, settings: TrainSettings = SETTINGS) -> Trainer:
    """A run on random tokens with a tiny model: what Trainer prepares from files is put in by hand."""
    ids = np.random.default_rng(0).integers(50, size=500).astype(np.uint16)
    trainer = Trainer.__new__(Trainer)
    trainer.settings = settings
    trainer.folder = folder
    trainer.state_file = folder / "state.pt"
    trainer.batches = Batches(ids, settings.seed)
    trainer.model = tiny_model()
    trainer.optimizer = make_optimizer(trainer.model, settings)
    trainer.progress = Progress()
    return trainer


def take_steps(trainer: Trainer, count: int) -> list[float]:
    return [trainer.step(trainer.settings.progress(trainer.progress.step, 0.0)) for _ in range(count)]


def test_progress_is_by_steps_or_time_whichever_is_further() -> None:
    settings = replace(SETTINGS, steps=100, minutes=10.0)
    assert settings.progress(20, 0.0) == pytest.approx(0.2)
    assert settings.progress(20, 300.0) == pytest.approx(0.5)
    assert settings.progress(20, 6000.0) == 1.0
    assert replace(settings, minutes=None).progress(20, 6000.0) == pytest.approx(0.2)


def test_rate_warms_up_and_falls_to_zero() -> None:
    settings = replace(SETTINGS, warmup_steps=10)
    assert settings.rate_at(0, 0.0) == pytest.approx(settings.learning_rate / 10)
    assert settings.rate_at(50, 0.5) == pytest.approx(settings.learning_rate / 2)
    assert settings.rate_at(100, 1.0) == pytest.approx(0.0)


def test_an_epoch_shows_every_window_once() -> None:
    ids = np.arange(1000, dtype=np.uint16)
    batches = Batches(ids, seed=4)
    seen = [batches.at(consumed, context=16, tokens=64) for consumed in range(0, 960, 64)]
    firsts = [int(row[0]) for inputs, _ in seen for row in inputs]
    assert len(firsts) == len(set(firsts)) == 60
    inputs, targets = seen[3]
    assert torch.equal(inputs[:, 1:], targets[:, :-1])
    other, _ = batches.at(1000 + 192, context=16, tokens=64)
    assert not torch.equal(inputs, other)


def test_a_resumed_run_ends_where_an_unbroken_one_does(tmp_path: Path) -> None:
    unbroken = make_trainer(tmp_path / "a")
    take_steps(unbroken, 8)
    first = make_trainer(tmp_path / "b")
    take_steps(first, 5)
    first.save()
    second = make_trainer(tmp_path / "b")
    with torch.no_grad():  # what is not read from the file must not matter
        for parameter in second.model.parameters():
            parameter.zero_()
    second.progress = load_state(second.state_file, SETTINGS, second.model, second.optimizer)
    take_steps(second, 3)
    assert second.progress == unbroken.progress
    for one, other in zip(second.model.parameters(), unbroken.model.parameters(), strict=True):
        assert torch.equal(one, other)
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["state.pt"]


def test_other_settings_do_not_resume(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    save_state(trainer.state_file, SETTINGS, trainer.progress, trainer.model, trainer.optimizer)
    with pytest.raises(ResumeError, match=r"steps: 8 there, 9 now.*--restart"):
        load_state(trainer.state_file, replace(SETTINGS, steps=9), trainer.model, trainer.optimizer)


@pytest.mark.parametrize(
    ("length", "context", "stride"), [(5, 16, 8), (16, 16, 8), (53, 16, 8), (53, 16, 16)]
)
def test_likelihood_scores_every_token_once(length: int, context: int, stride: int) -> None:
    model = tiny_model().eval()
    ids = np.random.default_rng(1).integers(50, size=length).astype(np.uint16)
    stream = [0, *ids.tolist()]
    expected = 0.0
    for at in range(length):  # token by token, from the context its window gives it
        begin = 0 if at < context else (at - context) // stride * stride + stride
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([stream[begin : at + 1]])).logits[0, -1]
        expected -= float(torch.log_softmax(logits.double(), dim=-1)[stream[at + 1]])
    assert model_nats(model, ids, context, stride, windows_per_batch=2) == pytest.approx(expected, rel=1e-5)


def test_bits_per_byte() -> None:
    assert bits_per_byte(np.log(2.0) * 24, num_bytes=8) == pytest.approx(3.0)
