"""Loaded weights: float32 whatever they were stored as; missing, extra, misshapen ones and NaN are named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaForCausalLM

from model_repo.runtime.errors import BadInput
from tests.sources.checkpoints import WEIGHTS, edit, opened


def test_a_decoder_is_loaded_in_float32_without_gradients(folder: Path) -> None:
    model = opened(folder).load()
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not model.training


def test_half_precision_is_loaded_as_float32(folder: Path, pristine: Path) -> None:
    model = LlamaForCausalLM.from_pretrained(pristine, dtype=torch.float16)
    model.save_pretrained(folder)
    loaded = opened(folder).load()
    expected = model.model.norm.weight.float()
    assert loaded.dtype == torch.float32
    assert torch.equal(loaded.get_parameter("model.norm.weight"), expected)


def test_an_unknown_model_type_is_refused_when_loaded(folder: Path) -> None:
    edit(folder / "config.json", model_type="llamazon", architectures=["LlamazonForCausalLM"])
    with pytest.raises(BadInput, match=r"transformers cannot load .*llamazon"):
        opened(folder).load()


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    """Changes the tensors of the checkpoint."""
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(
        {name: value.contiguous() for name, value in tensors.items()}, folder / WEIGHTS, {"format": "pt"}
    )


def test_missing_weights_are_named(folder: Path) -> None:
    """transformers itself fills them with random numbers."""

    def change(tensors: dict[str, Tensor]) -> None:
        del tensors["model.norm.weight"], tensors["model.layers.0.mlp.up_proj.weight"]

    rewrite(folder, change)
    with pytest.raises(
        BadInput,
        match=r"lacks 2 weights of LlamaForCausalLM \(model\.layers\.0\.mlp\.up_proj\.weight, model\.norm\.weight\)",
    ):
        opened(folder).load()


def test_weights_of_another_shape_are_named_with_both_shapes(folder: Path) -> None:
    edit(folder / "config.json", intermediate_size=32)
    with pytest.raises(
        BadInput,
        match=r"has 3 weights of LlamaForCausalLM in another shape \(.*down_proj.*gate_proj.*up_proj\.weight\): "
        r"model\.layers\.0\.mlp\.down_proj\.weight is \[16, 24\], the config asks for \[16, 32\]",
    ):
        opened(folder).load()


def test_tensors_that_nobody_reads_are_told_and_do_no_harm(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rewrite(folder, lambda tensors: tensors.update({"model.extra.weight": torch.zeros(3)}))
    source = opened(folder)
    for _ in range(2):
        source.load()
    told = capsys.readouterr().err
    assert told.count("holds 1 tensors that LlamaForCausalLM does not read (model.extra.weight)") == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_no_numbers_are_named(folder: Path, value: float) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        tensors["model.layers.0.self_attn.q_proj.weight"][3, 1] = value

    rewrite(folder, change)
    with pytest.raises(
        BadInput,
        match=r"has 1 weights that hold NaN or infinity \(model\.layers\.0\.self_attn\.q_proj\.weight\)",
    ):
        opened(folder).load()


def test_many_bad_weights_are_counted_and_the_first_are_named(folder: Path) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        for tensor in tensors.values():
            tensor.view(-1)[0] = float("nan")

    rewrite(folder, change)
    count = len(load_file(folder / WEIGHTS))
    assert count > 3
    with pytest.raises(
        BadInput, match=rf"has {count} weights that hold NaN or infinity \(\S+, \S+, \S+, \.\.\.\)"
    ):
        opened(folder).load()


def test_a_checkpoint_without_faults_says_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = opened(folder).load()
    assert isinstance(model, LlamaForCausalLM)
    assert "note:" not in capsys.readouterr().err
