"""`slipway generate`: prompts as text and as ids, one batch in flight, JSON, bad input."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from tokenizers import Tokenizer

from model_repo.backends.text import tokenized
from model_repo.runtime.errors import BadInput
from model_repo.runtime.request import SamplingParams
from model_repo.runtime.tokenizer import Tokenizer as RuntimeTokenizer
from pipeline import BuildResult
from pipeline.cli import main
from pipeline.generate import generate, parse_ids
from pipeline.workspace import ENGINE


def run(folder: Path, *options: str) -> list[dict[str, Any]]:
    """The JSON objects that the command prints, one a line."""
    result = CliRunner().invoke(main, ["generate", str(folder), "--threads", "1", "--json", *options])
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_texts_and_ids_come_back_in_order(real_build: BuildResult, tiny_llama: Path) -> None:
    tokenizer = Tokenizer.from_file(str(tiny_llama / "tokenizer.json"))
    ids = tokenizer.encode("hello").ids
    options = ("--max-tokens", "7", "--ignore-eos")
    rows = run(real_build.folder, "--prompt-ids", "5,17,9", "--prompt", "hello", "--prompt", "a b", *options)
    assert [row["prompt_ids"] for row in rows] == [ids, tokenizer.encode("a b").ids, [5, 17, 9]]
    assert [len(row["token_ids"]) for row in rows] == [7, 7, 7]
    assert {row["finish_reason"] for row in rows} == {"length"}
    for row in rows:
        assert row["text"] == tokenizer.decode(row["token_ids"])
        assert 0 < row["seconds_to_first_token"] <= row["seconds"]
    alone = run(real_build.folder, "--prompt", "hello", *options)
    assert alone[0]["token_ids"] == rows[0]["token_ids"]


def test_a_seed_gives_the_same_tokens_whatever_the_company(real_build: BuildResult) -> None:
    options = ("--temperature", "1.5", "--seed", "4", "--max-tokens", "12", "--ignore-eos")
    alone = run(real_build.folder, "--prompt", "hello", *options)[0]["token_ids"]
    together = run(real_build.folder, "--prompt", "other", "--prompt", "hello", *options)
    assert together[1]["token_ids"] == alone
    other = ("--temperature", "1.5", "--seed", "5", "--max-tokens", "12", "--ignore-eos")
    assert run(real_build.folder, "--prompt", "hello", *other)[0]["token_ids"] != alone


def test_without_json_the_text_follows_its_prompt(real_build: BuildResult) -> None:
    rows = run(real_build.folder, "--prompt", "hello", "--max-tokens", "4")
    command = ["generate", str(real_build.folder), "--prompt", "hello", "--max-tokens", "4", "--threads", "1"]
    result = CliRunner().invoke(main, command)
    assert result.stdout == f"hello{rows[0]['text']}\n"
    assert "4 tokens in" in result.stderr


def test_the_text_of_one_prompt_comes_in_pieces(real_build: BuildResult) -> None:
    pieces: list[str] = []
    sampling = SamplingParams(max_tokens=5, temperature=0.0, ignore_eos=True)
    (completion,) = generate(real_build.folder, ["hello"], sampling, threads=1, on_text=pieces.append)
    assert len(pieces) == 5
    assert "".join(pieces) == completion.text


def test_a_prompt_is_tokenized_as_the_server_does(real_build: BuildResult) -> None:
    tokenizer = RuntimeTokenizer.load(real_build.folder / "tokenizer.json")
    (row,) = run(real_build.folder, "--prompt", "  to BE, or\tnot", "--max-tokens", "1")
    assert row["prompt_ids"] == tokenized(tokenizer, "  to BE, or\tnot", 64)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "no prompt given"),
        (["--prompt", ""], "prompt is empty"),
        (["--prompt-ids", "5,x"], "must be token ids with commas"),
        (["--prompt-ids", "5,500"], "500"),
        (["--prompt", "x" * 64], "64"),
        (["--prompt", "x", "--max-tokens", "-1"], "max_tokens is -1"),
        (["--prompt", "x", "--temperature", "nan"], "temperature is nan"),
        (["--prompt", "a", "--begin-with", "b"], "is no encoder-decoder; leave --begin-with out"),
    ],
)
def test_bad_input(real_build: BuildResult, options: list[str], words: str) -> None:
    result = CliRunner().invoke(main, ["generate", str(real_build.folder), *options])
    assert result.exit_code == 2, result.output
    assert words in result.stderr


def test_an_engine_that_was_changed_on_disk_is_not_run(built: Path) -> None:
    data = bytearray((built / ENGINE).read_bytes())
    data[100] ^= 1
    (built / ENGINE).write_bytes(data)
    with pytest.raises(BadInput, match=r"engine\.onnx has changed since it was built"):
        generate(built, ["x"], SamplingParams())
    shutil.rmtree(built)
    with pytest.raises(BadInput, match="no folder"):
        generate(built, ["x"], SamplingParams())


def test_ids_are_read() -> None:
    assert parse_ids("5, 17,9") == (5, 17, 9)
