"""Weights mapped from files named by their content: the same numbers, the same errors, and no memory held."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
)

from model_repo.runtime.errors import BadInput
from pipeline.sources.mapped import mapped_tensors
from tests.sources.checkpoints import WEIGHTS, edit, opened, sharded

MIB = 2**20


def mapped(folder: Path, store: Path) -> PreTrainedModel:
    model = opened(folder).with_weights_in(store).load()
    assert isinstance(model, PreTrainedModel)
    return model


def mapped_from(model: PreTrainedModel, store: Path) -> set[str]:
    """The files of `store` that parameters of the model lie in, by the kernel's list of mappings."""
    files: set[str] = set()
    for line in Path("/proc/self/maps").read_text(encoding="ascii", errors="replace").splitlines():
        fields = line.split()
        if str(store) not in line:
            continue
        start, end = (int(address, 16) for address in fields[0].split("-"))
        if any(start <= parameter.data_ptr() < end for parameter in model.parameters()):
            files.add(Path(fields[-1]).name)
    return files


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_numbers_are_those_that_transformers_loads(
    folder: Path, pristine: Path, tmp_path: Path, dtype: torch.dtype
) -> None:
    LlamaForCausalLM.from_pretrained(pristine, dtype=dtype).save_pretrained(folder)
    if dtype == torch.bfloat16:
        sharded(folder)
    expected = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()
    model = mapped(folder, tmp_path / "store")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert not model.training
    for name, value in model.state_dict().items():
        assert torch.equal(value, expected[name]), name
    names = {path.name for path in (tmp_path / "store").iterdir()}
    assert all(hashlib.sha256((tmp_path / "store" / name).read_bytes()).hexdigest() == name for name in names)
    assert mapped_from(model, tmp_path / "store") == names


def test_experts_that_transformers_stacks_have_the_same_numbers(tmp_path: Path) -> None:
    """Its conversion of old checkpoints works on mapped tensors too."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "vocab_size": 40}
    config = MixtralConfig(
        **sizes, num_attention_heads=2, num_key_value_heads=1, num_local_experts=4, tie_word_embeddings=False
    )
    MixtralForCausalLM(config).save_pretrained(tmp_path / "model")
    expected = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32).state_dict()
    tensors = mapped_tensors([tmp_path / "model" / WEIGHTS], tmp_path / "store")
    assert tensors is not None
    assert set(tensors) != set(expected)  # or nothing would be converted
    model = MixtralForCausalLM.from_pretrained(None, config=config, state_dict=tensors)
    for name, value in model.state_dict().items():
        assert torch.equal(value, expected[name]), name


def test_faults_of_a_checkpoint_are_named(folder: Path, tmp_path: Path) -> None:
    good = load_file(folder / WEIGHTS)
    for change, message in (
        ({"model.norm.weight": None}, r"lacks 1 weights of LlamaForCausalLM \(model\.norm\.weight\)"),
        ({"model.norm.weight": torch.zeros(7)}, r"model\.norm\.weight is \[7\], the config asks for \[16\]"),
        ({"model.norm.weight": torch.full((16,), torch.nan)}, r"NaN or infinity \(model\.norm\.weight\)"),
    ):
        tensors = {name: tensor for name, tensor in {**good, **change}.items() if tensor is not None}
        broken = tmp_path / message[:5]
        broken.mkdir()
        for path in folder.iterdir():
            (broken / path.name).write_bytes(path.read_bytes())
        save_file(tensors, broken / WEIGHTS, {"format": "pt"})
        with pytest.raises(BadInput, match=message):
            mapped(broken, tmp_path / "store")


def test_writing_to_a_parameter_leaves_the_file_alone(folder: Path, tmp_path: Path) -> None:
    model = mapped(folder, tmp_path / "store")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    for path in (tmp_path / "store").iterdir():
        assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name


def test_tensors_of_other_types_are_left_to_transformers(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(4, 4).to(torch.float8_e4m3fn)}, tmp_path / "eight.safetensors")
    assert mapped_tensors([tmp_path / "eight.safetensors"], tmp_path / "store") is None
    assert mapped_tensors([tmp_path / "pytorch_model.bin"], tmp_path / "store") is None
    assert not (tmp_path / "store").exists()


def test_a_checkpoint_of_an_unknown_quantizer_leaves_nothing(folder: Path, tmp_path: Path) -> None:
    edit(folder / "config.json", quantization_config={"quant_method": "unheard-of"})
    with pytest.raises(BadInput, match="quantized by 'unheard-of' are not read"):
        mapped(folder, tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_integers_and_empty_tensors_keep_type_and_shape(tmp_path: Path) -> None:
    wanted = {"ids": torch.arange(5), "mask": torch.tensor([[True], [False]]), "none": torch.zeros(0, 3)}
    save_file(wanted, tmp_path / "others.safetensors")
    found = mapped_tensors([tmp_path / "others.safetensors"], tmp_path / "store")
    assert found is not None
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].shape == tensor.shape
        assert torch.equal(found[name], tensor)


MEASURED = """
import json, sys, threading, time
from pathlib import Path
import torch
from pipeline.sources import mapped

mapped.PIECE_BYTES = int(sys.argv[3])

def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))

most, end = [before := anonymous()], threading.Event()
def watch():
    while not end.wait(0.001):
        most.append(anonymous())
thread = threading.Thread(target=watch)
thread.start()
tensors = mapped.mapped_tensors([Path(sys.argv[1])], Path(sys.argv[2]))
total = float(sum(tensor.sum() for tensor in tensors.values()))
end.set()
thread.join()
print(json.dumps({"grown": max(most) - before, "total": total}))
"""


def test_memory_does_not_grow_with_the_checkpoint(tmp_path: Path) -> None:
    """128 MiB of float32, in one tensor of 64 MiB and smaller ones: a few pieces of 4 MiB are held at a time."""
    generator = torch.Generator().manual_seed(0)
    sizes, piece = (16, 8, 4, 4), 4 * MIB
    tensors = {
        str(place): torch.randint(-3, 4, (size, MIB), generator=generator).to(torch.bfloat16)
        for place, size in enumerate(sizes)
    }
    save_file(tensors, tmp_path / "model.safetensors")
    total = float(sum(tensor.double().sum() for tensor in tensors.values()))
    del tensors
    command = [
        sys.executable,
        "-c",
        MEASURED,
        str(tmp_path / "model.safetensors"),
        str(tmp_path / "store"),
        str(piece),
    ]
    found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    assert found["total"] == total
    assert found["grown"] < 8 * piece < 4 * MIB * max(sizes)
