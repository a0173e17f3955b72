"""Checkpoint folders: what a good one gives, and how each bad one is refused."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models
from transformers import (
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaModel,
)

from model_repo.runtime.errors import BadInput
from model_repo.runtime.tokenizer import Tokenizer as RuntimeTokenizer
from pipeline.recipe import SourceRecipe
from pipeline.sources import Source, open_source
from pipeline.sources.checkpoint import read_header

WEIGHTS = "model.safetensors"


def _open(folder: Path, **recipe: Any) -> Source:
    return open_source(str(folder), SourceRecipe(str(folder), **recipe))


def _edit(path: Path, **changes: Any) -> None:
    """Changes keys of a JSON file; None takes a key out."""
    data = {**json.loads(path.read_text(encoding="utf-8")), **changes}
    path.write_text(json.dumps({key: value for key, value in data.items() if value is not None}), "utf-8")


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama checkpoint."""
    folder = tmp_path_factory.mktemp("sources") / "tiny llama!"
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=77,
        eos_token_id=[3, 4],
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    (folder / "tokenizer.json").write_text("{}", "utf-8")
    return folder


@pytest.fixture
def folder(pristine: Path, tmp_path: Path) -> Path:
    """A copy to spoil. Weights are copied by content, not linked: tests truncate them."""
    copy = tmp_path / pristine.name
    copy.mkdir()
    for file in pristine.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    return copy


def test_a_decoder_is_opened_with_what_its_files_say(folder: Path) -> None:
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages }}"}), "utf-8")
    source = _open(folder)
    assert (source.name, source.kind) == ("tiny-llama", "decoder")
    assert (source.max_length, source.vocab_size, source.end_token_ids) == (77, 40, (3, 4))
    assert source.chat_template == "{{ messages }}"
    assert source.tokenizer_file == folder / "tokenizer.json"
    names = {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", WEIGHTS}
    assert {file.name for file in source.files} == names


def test_a_chat_template_knows_the_special_tokens(folder: Path) -> None:
    words = Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1, "?": 2}, unk_token="?"))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<s>", eos_token="</s>", unk_token="?"
    )
    tokenizer.chat_template = "\n{{ bos_token }}{{ messages[0].content }}{{ eos_token }}"
    tokenizer.save_pretrained(folder)
    template = _open(folder).chat_template
    assert template is not None
    messages = [{"role": "user", "content": "hi"}]
    expected = tokenizer.apply_chat_template(messages, tokenize=False)
    assert RuntimeTokenizer(words, template).render(messages) == expected == "\n<s>hi</s>"


def test_a_decoder_is_loaded_in_float32_without_gradients(folder: Path) -> None:
    model = _open(folder).load()
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not model.training


def test_half_precision_is_loaded_as_float32(folder: Path, pristine: Path) -> None:
    model = LlamaForCausalLM.from_pretrained(pristine, dtype=torch.float16)
    model.save_pretrained(folder)
    loaded = _open(folder).load()
    expected = model.model.norm.weight.float()
    assert loaded.dtype == torch.float32
    assert torch.equal(loaded.get_parameter("model.norm.weight"), expected)


def test_the_generation_config_says_where_to_end(folder: Path) -> None:
    _edit(folder / "generation_config.json", eos_token_id=7)
    assert _open(folder).end_token_ids == (7,)


def test_a_chat_template_file_comes_first_and_named_ones_give_their_default(folder: Path) -> None:
    named = [{"name": "tool", "template": "T"}, {"name": "default", "template": "D"}]
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}), "utf-8")
    assert _open(folder).chat_template == "D"
    (folder / "chat_template.jinja").write_text("J", "utf-8")
    assert _open(folder).chat_template == "J"


def test_opening_imports_no_torch(pristine: Path) -> None:
    script = (
        "import sys\n"
        "from pipeline.recipe import SourceRecipe\n"
        "from pipeline.sources import open_source\n"
        f"open_source({str(pristine)!r}, SourceRecipe({str(pristine)!r}))\n"
        "assert not {'torch', 'transformers', 'onnx'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(__file__).parents[2])


@pytest.mark.parametrize("name", ["no/such/model", "../model", "a\\b"])
def test_a_path_that_is_no_folder_is_refused(name: str) -> None:
    with pytest.raises(BadInput, match=r"no folder at .*; give demo, minilm, or a folder"):
        open_source(name, SourceRecipe(name))


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(BadInput, match="unknown model 'nosuchmodel'; give demo, minilm, or a folder"):
        open_source("nosuchmodel", SourceRecipe("nosuchmodel"))


def test_a_file_is_refused(folder: Path) -> None:
    with pytest.raises(BadInput, match="is a file; give the folder"):
        _open(folder / WEIGHTS)


def _without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def _config(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: _edit(folder / "config.json", **changes)


def _text(name: str, text: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / name).write_text(text, "utf-8")

    return write


def _truncated(keep: float) -> Callable[[Path], None]:
    def truncate(folder: Path) -> None:
        path = folder / WEIGHTS
        os.truncate(path, int(path.stat().st_size * keep))

    return truncate


def _header(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    """Rewrites the header of the weights, with its length."""

    def rewrite(folder: Path) -> None:
        data = (folder / WEIGHTS).read_bytes()
        length = struct.unpack("<Q", data[:8])[0]
        header = change(data[8 : 8 + length])
        (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(header)) + header + data[8 + length :])

    return rewrite


def _appended(folder: Path) -> None:
    with (folder / WEIGHTS).open("ab") as file:
        file.write(b"more")


BAD = {
    "no config": (_without("config.json"), r"has no config\.json; a folder in Hugging Face format"),
    "config no JSON": (_text("config.json", "{,"), r"config\.json is not readable JSON .*get the file again"),
    "config a list": (_text("config.json", "[]"), r"config\.json holds a JSON list; an object is expected"),
    "no architecture": (_config(architectures=None), r"names no architecture; carried are decoders"),
    "no model type": (_config(model_type=None), r"names no model_type; carried are decoders"),
    "other architecture": (
        _config(architectures=["T5ForConditionalGeneration"], model_type="t5"),
        r"T5ForConditionalGeneration \(model_type 't5'\), which is not supported; carried are decoders of the "
        r"Llama kind .* and encoders of the BERT kind",
    ),
    "no vocabulary": (_config(vocab_size=None), r"vocab_size is None; it must be a positive whole number"),
    "no length": (_config(max_position_embeddings=None), r"says no maximum length"),
    "remote code": (
        _config(auto_map={"AutoModelForCausalLM": "modeling_x.XForCausalLM"}),
        r"wants Python code of the checkpoint to be run \(modeling_x\.XForCausalLM\).*--trust-remote-code",
    ),
    "no tokenizer": (_without("tokenizer.json"), r"has no tokenizer\.json"),
    "no weights": (_without(WEIGHTS), r"holds no weights; it needs model\.safetensors"),
    "truncated data": (
        _truncated(0.9),
        r"truncated or corrupt: its tensors take \d+ bytes, but \d+ are there",
    ),
    "truncated header": (_truncated(0.01), r"its header should take \d+ bytes, but the file has \d+"),
    "nearly empty": (lambda folder: os.truncate(folder / WEIGHTS, 5), r"it has only 5 bytes"),
    "data appended": (_appended, r"its tensors take \d+ bytes, but \d+ are there; get the file again"),
    "header no JSON": (_header(lambda header: header.replace(b"{", b"<")), r"its header is not JSON"),
    "header a list": (_header(lambda header: b"[]"), r"its header is not a JSON object"),
    "wrong dtype": (
        _header(lambda header: header.replace(b'"F32"', b'"F16"', 1)),
        r"tensor '.*' F16\[.*\] has \d+ bytes",
    ),
    "unknown dtype": (
        _header(lambda header: header.replace(b'"F32"', b'"X32"', 1)),
        r"entry '.*' is not valid",
    ),
    "a hole": (
        _header(lambda _: b'{"a":{"dtype":"U8","shape":[4],"data_offsets":[2,6]}}'),
        r"the data of 'a' begins at byte 2, where 0 is expected",
    ),
}


@pytest.mark.parametrize(("spoil", "message"), BAD.values(), ids=BAD.keys())
def test_a_bad_folder_is_refused(folder: Path, spoil: Callable[[Path], None], message: str) -> None:
    spoil(folder)
    with pytest.raises(BadInput, match=message):
        _open(folder)


def test_remote_code_is_opened_with_leave_and_counts_as_a_file(folder: Path) -> None:
    _edit(folder / "config.json", auto_map={"AutoModelForCausalLM": "modeling_x.XForCausalLM"})
    (folder / "modeling_x.py").write_text("", "utf-8")
    source = _open(folder, trust_remote_code=True)
    assert folder / "modeling_x.py" in source.files


def test_the_checks_agree_with_the_safetensors_library(folder: Path) -> None:
    header = read_header(folder / WEIGHTS)
    assert header["model.norm.weight"]["shape"] == [16]
    assert "lm_head.weight" not in header, "tied"


def _sharded(folder: Path) -> None:
    """Splits the weights over two files with an index, as save_pretrained does for large models."""
    model = LlamaForCausalLM.from_pretrained(folder)
    (folder / WEIGHTS).unlink()
    tensors = {
        name: value.contiguous() for name, value in model.state_dict().items() if name != "lm_head.weight"
    }
    names = sorted(tensors)
    shards = {"model-00001-of-00002.safetensors": names[:5], "model-00002-of-00002.safetensors": names[5:]}
    for file, held in shards.items():
        save_file({name: tensors[name] for name in held}, folder / file, metadata={"format": "pt"})
    weight_map = {name: file for file, held in shards.items() for name in held}
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index), "utf-8")


def test_shards_are_all_opened_and_loaded(folder: Path, pristine: Path) -> None:
    _sharded(folder)
    source = _open(folder)
    assert sum(file.suffix == ".safetensors" for file in source.files) == 2
    expected = LlamaForCausalLM.from_pretrained(pristine).state_dict()
    for name, value in source.load().state_dict().items():
        assert torch.equal(value, expected[name])


def test_a_missing_shard_is_refused(folder: Path) -> None:
    _sharded(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(BadInput, match=r"lacks 1 of 2 shards, first model-00002-of-00002\.safetensors"):
        _open(folder)


def test_a_truncated_shard_is_refused(folder: Path) -> None:
    _sharded(folder)
    os.truncate(folder / "model-00002-of-00002.safetensors", 900)
    with pytest.raises(BadInput, match=r"model-00002-of-00002\.safetensors is truncated or corrupt"):
        _open(folder)


def test_a_shard_without_a_tensor_of_the_index_is_refused(folder: Path) -> None:
    _sharded(folder)
    index = folder / f"{WEIGHTS}.index.json"
    weight_map = json.loads(index.read_text("utf-8"))["weight_map"]
    weight_map["model.extra.weight"] = "model-00001-of-00002.safetensors"
    _edit(index, weight_map=weight_map)
    with pytest.raises(BadInput, match=r"says that it holds 'model\.extra\.weight', which it does not"):
        _open(folder)


def test_a_shard_outside_the_folder_is_refused(folder: Path) -> None:
    _sharded(folder)
    _edit(folder / f"{WEIGHTS}.index.json", weight_map={"a": "../elsewhere.safetensors"})
    with pytest.raises(BadInput, match="shards must lie in the same folder"):
        _open(folder)


def test_an_index_without_a_map_is_refused(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / f"{WEIGHTS}.index.json").write_text("{}", "utf-8")
    with pytest.raises(BadInput, match="has no weight_map"):
        _open(folder)


def _pickled(folder: Path, state: Any) -> None:
    (folder / WEIGHTS).unlink()
    torch.save(state, folder / "pytorch_model.bin")


def test_a_pickled_checkpoint_is_refused_without_leave(folder: Path) -> None:
    _pickled(folder, LlamaForCausalLM.from_pretrained(folder).state_dict())
    with pytest.raises(BadInput, match=r"only pickled weights \(pytorch_model\.bin\).*--allow-pickle"):
        _open(folder)


def test_a_pickled_checkpoint_is_loaded_with_leave(folder: Path, pristine: Path) -> None:
    expected = LlamaForCausalLM.from_pretrained(pristine).state_dict()
    _pickled(folder, dict(expected))
    for name, value in _open(folder, allow_pickle=True).load().state_dict().items():
        assert torch.equal(value, expected[name])


class _Harmful:
    """Unpickling it would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_pickled_code_is_not_run_even_with_leave(folder: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    _pickled(folder, {"model.norm.weight": _Harmful(trace)})
    with pytest.raises(BadInput, match="hold more than tensors"):
        _open(folder, allow_pickle=True).load()
    assert not trace.exists()


def test_missing_weights_are_refused_when_loaded(folder: Path) -> None:
    """transformers itself fills them with random numbers."""
    state = LlamaForCausalLM.from_pretrained(folder).state_dict()
    kept = {n: v.contiguous() for n, v in state.items() if n not in ("lm_head.weight", "model.norm.weight")}
    save_file(kept, folder / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(BadInput, match=r"lacks 1 weights of LlamaForCausalLM.*first model\.norm\.weight"):
        _open(folder).load()


def test_weights_of_another_shape_are_refused_when_loaded(folder: Path) -> None:
    _edit(folder / "config.json", intermediate_size=32)
    with pytest.raises(BadInput, match=r"cannot load|in another shape"):
        _open(folder).load()


def test_an_unknown_model_type_is_refused_when_loaded(folder: Path) -> None:
    _edit(folder / "config.json", model_type="llamazon", architectures=["LlamazonForCausalLM"])
    with pytest.raises(BadInput, match=r"transformers cannot load .*llamazon"):
        _open(folder).load()


@pytest.fixture
def encoder_folder(tmp_path: Path) -> Path:
    """A tiny BERT as sentence-transformers lays it out."""
    config = BertConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2
    )
    BertModel(config).save_pretrained(tmp_path)
    modules = [{"type": f"sentence_transformers.models.{kind}", "path": path} for kind, path in MODULES]
    (tmp_path / "modules.json").write_text(json.dumps(modules), "utf-8")
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}', "utf-8")
    return tmp_path


MODULES = (("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize"))


def test_an_encoder_is_opened_with_its_sentence_modules(encoder_folder: Path) -> None:
    source = _open(encoder_folder)
    assert (source.kind, source.pooling, source.normalize) == ("encoder", "cls", True)
    assert encoder_folder / "1_Pooling" / "config.json" in source.files
    assert source.max_length == 512
    (encoder_folder / "sentence_bert_config.json").write_text('{"max_seq_length": 99}', "utf-8")
    assert _open(encoder_folder).max_length == 99


def test_roberta_numbers_its_positions_from_the_padding_id(tmp_path: Path) -> None:
    config = RobertaConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=70,
        pad_token_id=1,
    )
    RobertaModel(config).save_pretrained(tmp_path)
    source = _open(tmp_path)
    assert source.max_length == 68
    model = source.load()
    model(input_ids=torch.full((1, 68), 5))
    with pytest.raises((IndexError, RuntimeError)):
        model(input_ids=torch.full((1, 69), 5))


def test_an_encoder_without_modules_is_pooled_by_the_mean(encoder_folder: Path) -> None:
    (encoder_folder / "modules.json").unlink()
    source = _open(encoder_folder)
    assert (source.pooling, source.normalize) == ("mean", False)


ENCODER_BAD = {
    "other pooling": (
        _text("1_Pooling/config.json", '{"pooling_mode_max_tokens": true}'),
        "asks for pooling_mode_max_tokens; supported are mean and cls",
    ),
    "other module": (
        _text("modules.json", '[{"type": "sentence_transformers.models.Dense", "path": "d"}]'),
        "has a module 'Dense'; Transformer, Pooling and Normalize are supported",
    ),
    "no module list": (_text("modules.json", "{}x"), "is not a list of sentence-transformers modules"),
}


@pytest.mark.parametrize(("spoil", "message"), ENCODER_BAD.values(), ids=ENCODER_BAD.keys())
def test_bad_sentence_modules_are_refused(
    encoder_folder: Path, spoil: Callable[[Path], None], message: str
) -> None:
    spoil(encoder_folder)
    with pytest.raises(BadInput, match=message):
        _open(encoder_folder)
