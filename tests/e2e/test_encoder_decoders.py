"""Checkpoints of encoder-decoders through the build, the engine loop, `slipway generate` and a real server."""

from __future__ import annotations

import dataclasses
import json
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import tritonclient.grpc as grpcclient
from click.testing import CliRunner
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoModelForSpeechSeq2Seq,
    PreTrainedModel,
    WhisperFeatureExtractor,
)

from model_repo.emit import emit
from model_repo.runtime.engine import Engine
from model_repo.runtime.errors import BadInput
from model_repo.runtime.request import Request, SamplingParams
from pipeline.builder import build
from pipeline.cli import main
from pipeline.client import tensor
from pipeline.foreground import how_to_call, served_models
from pipeline.recipe import Recipe, ServeRecipe
from pipeline.serve import Server, server
from tests.e2e.conftest import until
from tests.export.cross_families import CARRIED
from tests.export.tiny_models import VOCABULARY, saved

TOKENS = 20
PREPROCESSOR = {
    "feature_extractor_type": "WhisperFeatureExtractor",
    "feature_size": 8,
    "sampling_rate": 16000,
    "hop_length": 160,
    "chunk_length": 1,
    "n_fft": 400,
}
FEATURES = {key: value for key, value in PREPROCESSOR.items() if key != "feature_extractor_type"}
STAGES = ("export", "fuse", "lower", "compile")


def recipe(folder: Path, **quantize: str) -> Recipe:
    values = Recipe.from_dict({"source": {"model": str(folder)}}).to_dict()
    values["target"] |= {"max_batch": 4, "token_budget": 64, "block_size": 8, "threads": 1}
    values["quantize"] |= quantize
    return Recipe.from_dict(values)


@pytest.fixture(scope="module")
def whisper(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Checkpoint and build of a Whisper that hears one second; completions begin with two forced tokens."""
    folder = tmp_path_factory.mktemp("whisper")
    family = dataclasses.replace(CARRIED[0], settings={**CARRIED[0].settings, "max_source_positions": 50})
    checkpoint = saved(family.model(), folder / "tiny-whisper")
    (checkpoint / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    generation = checkpoint / "generation_config.json"
    told = json.loads(generation.read_text()) | {
        "forced_decoder_ids": [[1, 17], [2, 30]],
        "begin_suppress_tokens": None,
    }
    generation.write_text(json.dumps(told))
    build(recipe(checkpoint), folder / "out", stages=STAGES)
    return checkpoint, folder / "out"


@pytest.fixture(scope="module")
def bart(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("bart")
    checkpoint = saved(CARRIED[1].model(), folder / "tiny-bart")
    build(recipe(checkpoint), folder / "out", stages=STAGES)
    return checkpoint, folder / "out"


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Of the kind of v1.1: its head shares no weight with its embedding, whatever its config says."""
    folder = tmp_path_factory.mktemp("t5")
    (family,) = (family for family in CARRIED if family.name == "T5 v1.1")
    checkpoint = saved(family.model(), folder / "tiny-t5")
    build(recipe(checkpoint), folder / "out", stages=STAGES)
    return checkpoint, folder / "out"


def sound(samples: int, seed: int) -> Any:
    random = np.random.default_rng(seed)
    pitch = random.uniform(100, 2000, 5).repeat(samples // 5 + 1)[:samples]
    return (0.5 * np.sin(np.cumsum(2 * np.pi * pitch / 16000)) * random.uniform(0.1, 1)).astype(np.float32)


@torch.no_grad()
def greedy(model: PreTrainedModel, source: dict[str, torch.Tensor], prompt: tuple[int, ...]) -> list[int]:
    """transformers alone, without a cache, past its end token."""
    ids = torch.tensor([prompt])
    for _ in range(TOKENS):
        ids = torch.cat(
            [ids, model(**source, decoder_input_ids=ids, use_cache=False).logits[:, -1:].argmax(-1)], 1
        )
    return ids[0, len(prompt) :].tolist()


def sampling() -> SamplingParams:
    return SamplingParams(max_tokens=TOKENS, temperature=0.0, ignore_eos=True)


def test_whisper_transcribes_as_transformers(whisper: tuple[Path, Path]) -> None:
    checkpoint, out = whisper
    engine = Engine.load(out)
    engine.warm_up()
    encoder = engine.spec.encoder
    assert encoder is not None
    assert encoder.log_mel is not None
    assert encoder.prompt_ids == (3, 17, 30)
    assert encoder.max_positions == 50
    model = AutoModelForSpeechSeq2Seq.from_pretrained(checkpoint)
    extractor = WhisperFeatureExtractor(**FEATURES)
    sounds = [sound(samples, seed) for seed, samples in enumerate((16000, 3000, 9001, 12345, 800, 15999))]
    requests = [
        Request(str(place), encoder.prompt_ids, sampling(), encoder_input=encoder.log_mel(one))
        for place, one in enumerate(sounds)
    ]
    tokens = [list(one.token_ids) for one in engine.generate(requests)]
    expected = [
        greedy(model, dict(extractor(one, sampling_rate=16000, return_tensors="pt")), encoder.prompt_ids)
        for one in sounds
    ]
    assert tokens == expected
    assert len({tuple(one) for one in expected}) > 3, "the sounds are not told apart"


@pytest.mark.parametrize(("built", "start"), [("bart", 3), ("t5", 0)])
def test_texts_continue_as_transformers(built: str, start: int, request: pytest.FixtureRequest) -> None:
    checkpoint, out = request.getfixturevalue(built)
    engine = Engine.load(out)
    encoder = engine.spec.encoder
    assert encoder is not None
    assert encoder.prompt_ids == (start,)
    model = AutoModelForSeq2SeqLM.from_pretrained(checkpoint)
    random = np.random.default_rng(0)
    texts = [random.integers(3, VOCABULARY, (1, length)) for length in (5, 23, 8, 1, 33, 96)]
    requests = [
        Request(str(place), encoder.prompt_ids, sampling(), encoder_input=text)
        for place, text in enumerate(texts)
    ]
    tokens = [list(one.token_ids) for one in engine.generate(requests)]
    expected = [greedy(model, {"input_ids": torch.from_numpy(text)}, encoder.prompt_ids) for text in texts]
    assert tokens == expected
    assert len({tuple(one) for one in expected}) > 3, "the texts are not told apart"


def test_generate_reads_texts_and_audio(
    bart: tuple[Path, Path], whisper: tuple[Path, Path], tmp_path: Path
) -> None:
    arguments = ["--prompt", "w7", "--prompt-ids", "7", "--json", "--ignore-eos"]
    result = CliRunner().invoke(main, ["generate", str(bart[1]), *arguments])
    first, second = (json.loads(line) for line in result.output.splitlines())
    assert first["token_ids"] == second["token_ids"]
    assert len(first["token_ids"]) == 32
    begun = CliRunner().invoke(
        main, ["generate", str(bart[1]), *arguments[:2], *arguments[4:], "--begin-with", "w9"]
    )
    assert json.loads(begun.output)["prompt_ids"] == [9]

    audio = sound(9000, 1)
    np.save(tmp_path / "a.npy", np.round(audio * 32768).astype(np.float32) / 32768)
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", ""))
        file.writeframes(np.round(audio * 32768).astype("<i2").tobytes())
    files = ["--audio", str(tmp_path / "a.npy"), "--audio", str(tmp_path / "a.wav")]
    result = CliRunner().invoke(main, ["generate", str(whisper[1]), *files, "--json", "--ignore-eos"])
    first, second = (json.loads(line) for line in result.output.splitlines())
    assert first["token_ids"] == second["token_ids"]
    assert first["prompt_ids"] == [3, 17, 30]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--prompt", "w5"), "takes audio; give --audio FILE"),
        (("--audio", "nothing.wav"), "cannot be read as audio"),
        (("--audio", "low.wav"), "1 channels of 16 bits at 8000 Hz; one channel of 16 bits at 16000 Hz"),
    ],
)
def test_what_cannot_be_heard_is_refused(
    whisper: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    with wave.open("low.wav", "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(bytes(100))
    result = CliRunner().invoke(main, ["generate", str(whisper[1]), *arguments])
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())


def test_what_is_for_plain_decoders_only_says_so(whisper: tuple[Path, Path], tmp_path: Path) -> None:
    checkpoint, out = whisper
    with pytest.raises(
        BadInput, match="precision int8 with pools of float32 is asked for, and the model is an enc"
    ):
        build(recipe(checkpoint, precision="int8"), tmp_path / "out", stages=("export",))
    for arguments, message in {
        ("parity", str(out), str(out)): "is an encoder-decoder",
        ("plan-memory", str(checkpoint)): "is an encoder-decoder; memory is planned for decoders",
    }.items():
        result = CliRunner().invoke(main, list(arguments))
        assert result.exit_code == 2
        assert message in " ".join(result.output.split())


def test_a_checkpoint_with_another_preprocessor_is_refused(
    whisper: tuple[Path, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "other"
    folder.mkdir()
    for file in whisper[0].iterdir():
        (folder / file.name).symlink_to(file)
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(BadInput, match="describes no WhisperFeatureExtractor"):
        build(recipe(folder), tmp_path / "out", stages=("export",))


@pytest.fixture(scope="module")
def serving(
    whisper: tuple[Path, Path],
    bart: tuple[Path, Path],
    t5: tuple[Path, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Server]:
    """One server for all; they share nothing with the other end-to-end tests."""
    repository = tmp_path_factory.mktemp("served") / "repository"
    emit([("whisper", whisper[1]), ("bart", bart[1]), ("t5", t5[1])], repository, ServeRecipe())
    with server(repository, drain_seconds=5) as running:
        yield running


def ask(running: Server, model: str, requests: list[dict[str, Any]]) -> list[Any]:
    """The answers to requests that are all in flight together, in order; errors as they are."""
    answers: list[Any] = []
    limit = {"max_tokens": np.array([TOKENS], np.int32), "ignore_eos": np.array([True])}
    greedily = {"temperature": np.array([0.0], np.float32)}
    with grpcclient.InferenceServerClient(running.grpc) as client:
        waiting = [
            client.async_infer(
                f"{model}_unary",
                [tensor(name, array) for name, array in {**request, **limit, **greedily}.items()],
                lambda result, error, place=place: answers.append((place, error or result)),
                request_id=str(place),
            )
            for place, request in enumerate(requests)
        ]
        until(lambda: len(answers) == len(waiting), "all requests are answered", seconds=120)
    return [answer for _, answer in sorted(answers, key=lambda item: item[0])]


def text_of(answer: Any) -> str:
    return str(answer.as_numpy("text_output")[0].decode())


def test_the_server_transcribes_audio(serving: Server, whisper: tuple[Path, Path]) -> None:
    engine = Engine.load(whisper[1])
    encoder = engine.spec.encoder
    assert encoder is not None
    assert encoder.log_mel is not None
    sounds = [sound(samples, seed) for seed, samples in enumerate((16000, 3000, 9001, 12345, 800, 15999))]
    requests = [
        Request(str(place), encoder.prompt_ids, sampling(), encoder_input=encoder.log_mel(one))
        for place, one in enumerate(sounds)
    ]
    expected = [completion.text for completion in engine.generate(requests)]
    answers = ask(serving, "whisper", [{"audio": one} for one in sounds])
    assert [text_of(answer) for answer in answers] == expected
    assert len(set(expected)) > 3
    (begun,) = ask(serving, "whisper", [{"audio": sounds[0], "text_input": np.array([b"w3"], dtype=object)}])
    other = Request("a", (3,), sampling(), encoder_input=encoder.log_mel(sounds[0]))
    assert text_of(begun) == engine.generate([other])[0].text


@pytest.mark.parametrize(("model", "start"), [("bart", 3), ("t5", 0)])
def test_the_server_reads_text(
    serving: Server, model: str, start: int, request: pytest.FixtureRequest
) -> None:
    """Completions begin as the checkpoint says, or, every second here, as the request says."""
    engine = Engine.load(request.getfixturevalue(model)[1])
    words, beginnings = [5, 77, 120, 9, 33, 150], [start, 17] * 3
    requests = [
        Request(str(word), (begin,), sampling(), encoder_input=np.array([[word]]))
        for word, begin in zip(words, beginnings, strict=True)
    ]
    expected = [completion.text for completion in engine.generate(requests)]
    asked = [{"text_input": np.array([f"w{word}".encode()], dtype=object)} for word in words]
    for one in asked[1::2]:
        one["decoder_text_input"] = np.array([b"w17"], dtype=object)
    assert [text_of(answer) for answer in ask(serving, model, asked)] == expected
    assert len(set(expected)) > 3


def test_the_server_says_how_it_is_called(serving: Server, capsys: pytest.CaptureFixture[str]) -> None:
    """The snippet that `slipway serve` prints works as it is."""
    repository = serving.log.with_name("repository")
    told = how_to_call(serving, {"whisper": served_models(repository)["whisper"]}, repository)
    exec(told[told.index("import numpy") :], {})
    assert len(capsys.readouterr().out.split()) == 16, "the default of max_tokens"


@pytest.mark.parametrize(
    ("model", "request_", "message"),
    [
        (
            "whisper",
            {},
            "send audio: the sound, one channel at the model's rate, between -1 and 1 (16000 Hz)",
        ),
        (
            "whisper",
            {"audio": np.zeros(16001, np.float32)},
            "the audio has 16001 samples; this model takes 1 to 16000",
        ),
        ("whisper", {"audio": np.full(9, np.nan, np.float32)}, "the audio holds NaN or infinity"),
        ("bart", {}, "send text_input"),
    ],
)
def test_the_server_says_what_it_cannot_use(
    serving: Server, model: str, request_: dict[str, Any], message: str
) -> None:
    (answer,) = ask(serving, model, [request_])
    assert message in str(answer)
