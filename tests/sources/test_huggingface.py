"""Checkpoint folders: what the small files of a good one say, and how each bad one is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from model_repo.runtime.errors import BadInput
from model_repo.runtime.tokenizer import Tokenizer as RuntimeTokenizer
from pipeline.recipe import SourceRecipe
from pipeline.sources import open_source
from tests.sources.checkpoints import WEIGHTS, Spoil, config, edit, opened, text, without


def test_a_decoder_is_opened_with_what_its_files_say(folder: Path) -> None:
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages }}"}), "utf-8")
    source = opened(folder)
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
    template = opened(folder).chat_template
    assert template is not None
    messages = [{"role": "user", "content": "hi"}]
    expected = tokenizer.apply_chat_template(messages, tokenize=False)
    assert RuntimeTokenizer(words, template).render(messages) == expected == "\n<s>hi</s>"


def test_the_generation_config_says_where_to_end(folder: Path) -> None:
    edit(folder / "generation_config.json", eos_token_id=7)
    assert opened(folder).end_token_ids == (7,)


def test_a_chat_template_file_comes_first_and_named_ones_give_their_default(folder: Path) -> None:
    named = [{"name": "tool", "template": "T"}, {"name": "default", "template": "D"}]
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}), "utf-8")
    assert opened(folder).chat_template == "D"
    (folder / "chat_template.jinja").write_text("J", "utf-8")
    assert opened(folder).chat_template == "J"


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
        opened(folder / WEIGHTS)


BAD = {
    "no config": (without("config.json"), r"has no config\.json; a folder in Hugging Face format"),
    "config no JSON": (text("config.json", "{,"), r"config\.json is not readable JSON .*get the file again"),
    "config a list": (text("config.json", "[]"), r"config\.json holds a JSON list; an object is expected"),
    "no architecture": (config(architectures=None), r"names no architecture; carried are decoders"),
    "no model type": (config(model_type=None), r"names no model_type; carried are decoders"),
    "other architecture": (
        config(architectures=["T5ForConditionalGeneration"], model_type="t5"),
        r"T5ForConditionalGeneration \(model_type 't5'\), which is not supported; carried are decoders of the "
        r"Llama kind .* and encoders of the BERT kind",
    ),
    "no vocabulary": (config(vocab_size=None), r"vocab_size is None; it must be a positive whole number"),
    "no length": (config(max_position_embeddings=None), r"says no maximum length"),
    "remote code": (
        config(auto_map={"AutoModelForCausalLM": "modeling_x.XForCausalLM"}),
        r"wants Python code of the checkpoint to be run \(modeling_x\.XForCausalLM\).*--trust-remote-code",
    ),
    "no tokenizer": (without("tokenizer.json"), r"has no tokenizer\.json"),
}


@pytest.mark.parametrize(("spoil", "message"), BAD.values(), ids=BAD.keys())
def test_a_bad_folder_is_refused(folder: Path, spoil: Spoil, message: str) -> None:
    spoil(folder)
    with pytest.raises(BadInput, match=message):
        opened(folder)


def test_remote_code_is_opened_with_leave_and_counts_as_a_file(folder: Path) -> None:
    edit(folder / "config.json", auto_map={"AutoModelForCausalLM": "modeling_x.XForCausalLM"})
    (folder / "modeling_x.py").write_text("", "utf-8")
    source = opened(folder, trust_remote_code=True)
    assert folder / "modeling_x.py" in source.files
