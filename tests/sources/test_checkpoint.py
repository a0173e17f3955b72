"""Weight files: whole, in shards, pickled; and what is wrong with those that are refused."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from model_repo.runtime.errors import BadInput
from pipeline.sources.checkpoint import read_header
from tests.sources.checkpoints import (
    WEIGHTS,
    Spoil,
    appended,
    edit,
    header,
    opened,
    sharded,
    truncated,
    without,
)

BAD = {
    "no weights": (without(WEIGHTS), r"holds no weights; it needs model\.safetensors"),
    "truncated data": (
        truncated(0.9),
        r"truncated or corrupt: its tensors take \d+ bytes, but \d+ are there",
    ),
    "truncated header": (truncated(0.01), r"its header should take \d+ bytes, but the file has \d+"),
    "nearly empty": (lambda folder: os.truncate(folder / WEIGHTS, 5), r"it has only 5 bytes"),
    "data appended": (appended, r"its tensors take \d+ bytes, but \d+ are there; get the file again"),
    "header no JSON": (header(lambda header: header.replace(b"{", b"<")), r"its header is not JSON"),
    "header a list": (header(lambda header: b"[]"), r"its header is not a JSON object"),
    "wrong dtype": (
        header(lambda header: header.replace(b'"F32"', b'"F16"', 1)),
        r"tensor '.*' F16\[.*\] has \d+ bytes",
    ),
    "unknown dtype": (
        header(lambda header: header.replace(b'"F32"', b'"X32"', 1)),
        r"entry '.*' is not valid",
    ),
    "a hole": (
        header(lambda _: b'{"a":{"dtype":"U8","shape":[4],"data_offsets":[2,6]}}'),
        r"the data of 'a' begins at byte 2, where 0 is expected",
    ),
}


@pytest.mark.parametrize(("spoil", "message"), BAD.values(), ids=BAD.keys())
def test_bad_weights_are_refused(folder: Path, spoil: Spoil, message: str) -> None:
    spoil(folder)
    with pytest.raises(BadInput, match=message):
        opened(folder)


def test_the_checks_agree_with_the_safetensors_library(folder: Path) -> None:
    header = read_header(folder / WEIGHTS)
    assert header["model.norm.weight"]["shape"] == [16]
    assert "lm_head.weight" not in header, "tied"


def test_shards_are_all_opened_and_loaded(folder: Path, pristine: Path) -> None:
    sharded(folder)
    source = opened(folder)
    assert sum(file.suffix == ".safetensors" for file in source.files) == 2
    expected = LlamaForCausalLM.from_pretrained(pristine).state_dict()
    for name, value in source.load().state_dict().items():
        assert torch.equal(value, expected[name])


def test_a_missing_shard_is_refused(folder: Path) -> None:
    sharded(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(BadInput, match=r"lacks 1 of 2 shards, first model-00002-of-00002\.safetensors"):
        opened(folder)


def test_a_truncated_shard_is_refused(folder: Path) -> None:
    sharded(folder)
    os.truncate(folder / "model-00002-of-00002.safetensors", 900)
    with pytest.raises(BadInput, match=r"model-00002-of-00002\.safetensors is truncated or corrupt"):
        opened(folder)


def test_a_shard_without_a_tensor_of_the_index_is_refused(folder: Path) -> None:
    sharded(folder)
    index = folder / f"{WEIGHTS}.index.json"
    weight_map = json.loads(index.read_text("utf-8"))["weight_map"]
    weight_map["model.extra.weight"] = "model-00001-of-00002.safetensors"
    edit(index, weight_map=weight_map)
    with pytest.raises(BadInput, match=r"says that it holds 'model\.extra\.weight', which it does not"):
        opened(folder)


def test_a_shard_outside_the_folder_is_refused(folder: Path) -> None:
    sharded(folder)
    edit(folder / f"{WEIGHTS}.index.json", weight_map={"a": "../elsewhere.safetensors"})
    with pytest.raises(BadInput, match="shards must lie in the same folder"):
        opened(folder)


def test_an_index_without_a_map_is_refused(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / f"{WEIGHTS}.index.json").write_text("{}", "utf-8")
    with pytest.raises(BadInput, match="has no weight_map"):
        opened(folder)


def pickled(folder: Path, state: Any) -> None:
    (folder / WEIGHTS).unlink()
    torch.save(state, folder / "pytorch_model.bin")


def test_a_pickled_checkpoint_is_refused_without_leave(folder: Path) -> None:
    pickled(folder, LlamaForCausalLM.from_pretrained(folder).state_dict())
    with pytest.raises(BadInput, match=r"only pickled weights \(pytorch_model\.bin\).*--allow-pickle"):
        opened(folder)


def test_a_pickled_checkpoint_is_loaded_with_leave(folder: Path, pristine: Path) -> None:
    expected = LlamaForCausalLM.from_pretrained(pristine).state_dict()
    pickled(folder, dict(expected))
    for name, value in opened(folder, allow_pickle=True).load().state_dict().items():
        assert torch.equal(value, expected[name])


class Harmful:
    """Unpickling it would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_pickled_code_is_not_run_even_with_leave(folder: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    pickled(folder, {"model.norm.weight": Harmful(trace)})
    with pytest.raises(BadInput, match="hold more than tensors"):
        opened(folder, allow_pickle=True).load()
    assert not trace.exists()
