"""A checkpoint of a vision-language model through the build, the engine loop, `slipway generate` and a real server."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
import tritonclient.grpc as grpcclient
from click.testing import CliRunner
from transformers import LlavaForConditionalGeneration

from model_repo.backends.wire import unpack
from model_repo.runtime.engine import Engine
from model_repo.runtime.errors import BadInput
from model_repo.runtime.image_encoder import ImageEncoder
from model_repo.runtime.images import pixel_values
from model_repo.runtime.output import Output
from model_repo.runtime.prompt_embeds import ImageEncoderSpec
from model_repo.runtime.request import Request, SamplingParams
from pipeline.builder import build
from pipeline.cli import main
from pipeline.client import complete, decoder_inputs, stream, tensor
from pipeline.foreground import how_to_call, served_models
from pipeline.recipe import Recipe
from pipeline.serve import Server, server
from pipeline.workspace import REPOSITORY
from tests.e2e.conftest import until
from tests.export.tiny_llava import IMAGE_TOKEN, ROWS, generated, llava_checkpoint
from tests.export.tiny_models import VOCABULARY
from tests.pictures import encoded, scene

TOKENS = 16
PICTURES = [scene(60 + 20 * place, 90 - 7 * place, place) for place in range(4)]
FILES = [encoded(picture, "PNG") for picture in PICTURES]


class Case(NamedTuple):
    """A prompt with one placeholder an image, and which of PICTURES take their places."""

    prompt: list[int]
    pictures: list[int]

    @property
    def text(self) -> str:
        return " ".join("<image>" if token == IMAGE_TOKEN else f"w{token}" for token in self.prompt)


def cases() -> list[Case]:
    """Ragged prompts with 0, 1 and 2 images; the same text with other images and with the same ones."""
    random = np.random.default_rng(3)

    def text(length: int) -> list[int]:
        return random.integers(IMAGE_TOKEN + 1, VOCABULARY, length).tolist()

    one = [*text(3), IMAGE_TOKEN, *text(4)]
    two = [*text(2), IMAGE_TOKEN, *text(19), IMAGE_TOKEN, *text(1)]
    return [
        Case(text(5), []),
        Case(one, [0]),
        Case(one, [1]),
        Case(one, [0]),
        Case([IMAGE_TOKEN, *text(30)], [2]),
        Case(two, [2, 3]),
        Case(two, [3, 2]),
        Case([IMAGE_TOKEN], [1]),
        Case(text(50), []),
        Case([IMAGE_TOKEN, IMAGE_TOKEN], [1, 1]),
    ]


class Built(NamedTuple):
    """A checkpoint, its build, and what transformers' generate gives for each of `cases`."""

    checkpoint: Path
    folder: Path
    expected: list[list[int]]


def recipe(folder: Path, **changed: dict[str, Any]) -> Recipe:
    values = Recipe.from_dict({"source": {"model": str(folder)}}).to_dict()
    values["target"] |= {"max_batch": 4, "token_budget": 24, "block_size": 8, "threads": 1}
    for section, changes in changed.items():
        values[section] |= changes
    return Recipe.from_dict(values)


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Built:
    root = tmp_path_factory.mktemp("llava")
    checkpoint = llava_checkpoint(root / "llava")
    build(recipe(checkpoint), root / "out")
    model = LlavaForConditionalGeneration.from_pretrained(checkpoint)
    expected = [
        generated(model, checkpoint, expanded(case), [PICTURES[place] for place in case.pictures], TOKENS)
        for case in cases()
    ]
    return Built(checkpoint, root / "out", expected)


def expanded(case: Case) -> list[int]:
    """Written out here, beside the runtime's own."""
    made: list[int] = []
    for token in case.prompt:
        made += [token] * (ROWS if token == IMAGE_TOKEN else 1)
    return made


def engine_of(built: Built, **options: Any) -> Engine:
    return Engine.load(built.folder, threads=1, **options)


def image_encoder(engine: Engine) -> ImageEncoderSpec:
    assert engine.spec.image_encoder is not None
    return engine.spec.image_encoder


def rows_of(built: Built, engine: Engine, pictures: Sequence[int]) -> npt.NDArray[np.float32]:
    encoder = ImageEncoder(built.folder, image_encoder(engine), 1, engine.spec.plugin)
    return encoder.encode(pixel_values(encoder.spec, [FILES[place] for place in pictures]))


def requests_of(built: Built, engine: Engine) -> list[Request]:
    sampling = SamplingParams(max_tokens=TOKENS, temperature=0.0, ignore_eos=True)
    return [
        Request(
            str(place),
            tuple(expanded(case)),
            sampling,
            prompt_embeds=rows_of(built, engine, case.pictures) if case.pictures else None,
        )
        for place, case in enumerate(cases())
    ]


def test_the_images_decide_the_tokens(llava: Built) -> None:
    """So the tests below would see that an image is lost, or taken for another."""
    assert llava.expected[1] != llava.expected[2]
    assert llava.expected[1] == llava.expected[3]
    assert llava.expected[5] != llava.expected[6]
    assert len({token for tokens in llava.expected for token in tokens}) > 50


@pytest.mark.parametrize("share_prefixes", [True, False])
def test_it_completes_as_transformers(llava: Built, share_prefixes: bool) -> None:
    """All in flight together, in chunks of at most 24 tokens, which cut the 16 rows of images."""
    engine = engine_of(llava, share_prefixes=share_prefixes)
    engine.warm_up()
    completions = engine.generate(requests_of(llava, engine))
    assert [list(one.token_ids) for one in completions] == llava.expected


def test_late_and_preempted_requests_complete_as_transformers(llava: Built) -> None:
    """One a step joins, and so few blocks are left that running ones are computed again."""
    engine = engine_of(llava, num_blocks=24)
    outputs: dict[str, list[Output]] = {}
    waiting = requests_of(llava, engine)
    while engine.step() or waiting:
        if waiting:
            request = waiting.pop(0)
            engine.submit(request, outputs.setdefault(request.request_id, []).append)
    found = [
        [token for one in outputs[str(place)] for token in one.token_ids] for place in range(len(outputs))
    ]
    assert found == llava.expected
    assert engine.stats()["preemptions"] > 0


def test_blocks_are_shared_by_the_same_image_only(llava: Built) -> None:
    """Prompts 1, 2 and 3 have the same tokens; 1 and 3 have the same image."""
    engine = engine_of(llava)
    first, other, same = requests_of(llava, engine)[1:4]
    tokens = []
    for request in (first, other, same):
        engine.submit(request, lambda output: None)
        engine.step()
        (sequence,) = engine._scheduler.running
        tokens.append((sequence.block_ids[:2], sequence.num_computed_tokens))
        while engine.step():
            pass
    assert tokens[2][0] == tokens[0][0]
    assert not set(tokens[1][0]) & set(tokens[0][0])


def test_rows_of_another_image_change_the_tokens(llava: Built) -> None:
    engine = engine_of(llava)
    requests = requests_of(llava, engine)
    swapped = [
        Request(request.request_id, request.prompt_ids, request.sampling, prompt_embeds=other.prompt_embeds)
        for request, other in ((requests[1], requests[2]), (requests[5], requests[6]))
    ]
    found = [list(one.token_ids) for one in engine.generate(swapped)]
    assert found == [llava.expected[2], llava.expected[6]]


def test_what_does_not_fit_is_refused(llava: Built) -> None:
    engine = engine_of(llava)
    sampling = SamplingParams(max_tokens=2)
    rows = rows_of(llava, engine, [0])
    prompt = (9, *[IMAGE_TOKEN] * ROWS)
    for given, message in {
        (9,): r"the prompt has 0 places .*; it must be float32 \[0, 64\]",
        (9, *[IMAGE_TOKEN] * (ROWS + 1)): "the prompt has 17 places",
    }.items():
        with pytest.raises(BadInput, match=message):
            engine.generate([Request("a", given, sampling, prompt_embeds=rows)])
    for wrong in (None, rows[:, :32], rows.astype(np.float64), rows[:8]):
        with pytest.raises(BadInput, match=r"the prompt has 16 places for their rows \(token 7, <image>\)"):
            engine.generate([Request("a", prompt, sampling, prompt_embeds=wrong)])
    with pytest.raises(BadInput, match="prompt_embeds holds NaN or infinity"):
        engine.generate([Request("a", prompt, sampling, prompt_embeds=rows * np.float32(np.inf))])


def cli(arguments: Sequence[str]) -> Any:
    return CliRunner().invoke(main, ["generate", *arguments])


def test_generate_reads_images(llava: Built, tmp_path: Path) -> None:
    """Two prompts, of which the second takes two images."""
    for place, file in enumerate(FILES):
        (tmp_path / f"{place}.png").write_bytes(file)
    chosen = [cases()[1], cases()[5], cases()[0]]
    arguments = [argument for case in chosen for argument in ("--prompt", case.text)]
    arguments += [
        argument
        for case in chosen
        for place in case.pictures
        for argument in ("--image", str(tmp_path / f"{place}.png"))
    ]
    result = cli([str(llava.folder), *arguments, "--json", "--ignore-eos", "--max-tokens", str(TOKENS)])
    assert result.exit_code == 0, result.output
    found = [json.loads(line)["token_ids"] for line in result.output.splitlines()]
    assert found == [llava.expected[1], llava.expected[5], llava.expected[0]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--prompt", "w9", "--image", "a.png"), "have 0 places for images, and 1 images are given"),
        (("--prompt", "<image> w9"), "have 1 places for images, and 0 images are given"),
        (("--prompt", "<image>", "--image", "none.png"), "none.png cannot be read"),
        (("--prompt", "<image>", "--image", "bad.png"), "is in no known format"),
        (("--prompt", "<image> " * 12, *("--image", "a.png") * 12), "has 192 tokens with its 12 images"),
        (("--audio", "a.wav"), "takes no audio"),
    ],
)
def test_generate_says_what_it_cannot_use(
    llava: Built,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.png").write_bytes(FILES[0])
    (tmp_path / "bad.png").write_bytes(b"no image")
    result = cli([str(llava.folder), *arguments])
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())


def test_what_is_for_plain_decoders_only_says_so(llava: Built, tmp_path: Path) -> None:
    changed = recipe(llava.checkpoint, quantize={"precision": "int8"})
    with pytest.raises(BadInput, match="the model is a vision-language model: only fp32 with float32"):
        build(changed, tmp_path / "out", stages=("export",))
    for arguments in (
        ("parity", str(llava.folder), str(llava.folder)),
        ("plan-memory", str(llava.checkpoint)),
        ("evaluate", str(llava.folder)),
    ):
        result = CliRunner().invoke(main, list(arguments))
        assert result.exit_code == 2
        assert "a vision-language model" in " ".join(result.output.split())


def test_the_build_is_whole_and_holds_each_graph_once(llava: Built) -> None:
    """Of a repository, the engine loop lacks the image encoder's files and the image encoder those of the loop."""
    result = CliRunner().invoke(main, ["check", str(llava.folder)])
    assert result.exit_code == 0, result.output
    found = {
        path.relative_to(llava.folder / REPOSITORY).parts[0]: path
        for path in (llava.folder / REPOSITORY).glob("*/1/*/*.onnx")
    }
    assert {model: path.name for model, path in found.items()} == {
        "llava_generate": "engine.onnx",
        "llava_images": "engine.encoder.onnx",
    }


@pytest.fixture(scope="module")
def serving(llava: Built) -> Iterator[Server]:
    with server(llava.folder / REPOSITORY, drain_seconds=5) as running:
        yield running


def text_of(llava: Built, place: int) -> str:
    """What transformers' tokens are as text."""
    tokenizer = engine_of(llava).tokenizer
    assert tokenizer is not None
    return tokenizer.decode(llava.expected[place])


GREEDY: dict[str, Any] = {"max_tokens": TOKENS, "temperature": 0.0, "ignore_eos": True}


def sent(case: Case) -> dict[str, Any]:
    values: dict[str, Any] = {"text_input": case.text, "exclude_input_in_output": True, **GREEDY}
    return values | ({"image": [FILES[place] for place in case.pictures]} if case.pictures else {})


def test_the_server_completes_as_transformers(serving: Server, llava: Built) -> None:
    """All requests at once, then one streamed."""
    answers: list[Any] = []
    with grpcclient.InferenceServerClient(serving.grpc) as client:
        waiting = [
            client.async_infer(
                "llava_unary",
                decoder_inputs(**sent(case)),
                lambda result, error, place=place: answers.append((place, error or result)),
            )
            for place, case in enumerate(cases())
        ]
        until(lambda: len(answers) == len(waiting), "all requests are answered", seconds=120)
    ordered = [answer for _, answer in sorted(answers, key=lambda item: item[0])]
    assert [answer.as_numpy("text_output")[0].decode().strip() for answer in ordered] == [
        text_of(llava, place) for place in range(len(ordered))
    ]
    assert int(ordered[5].as_numpy("num_input_tokens")[0]) == len(expanded(cases()[5]))
    streamed = "".join(chunk.text for chunk in stream(serving.grpc, "llava", **sent(cases()[2])))
    assert streamed.strip() == text_of(llava, 2)


def test_the_server_says_how_it_is_called(
    serving: Server,
    llava: Built,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The snippet that `slipway serve` prints works as it is, beside a picture."""
    monkeypatch.chdir(tmp_path)
    Path("picture.jpg").write_bytes(encoded(PICTURES[0], "JPEG"))
    repository = llava.folder / REPOSITORY
    assert served_models(repository) == {"llava": "decoder"}
    told = how_to_call(serving, served_models(repository), repository)
    exec(told[told.index("import numpy") :], {})
    assert capsys.readouterr().out.split()[:2] == ["<image>", "The"], "the prompt comes first"


def test_messages_hold_places_of_images(serving: Server) -> None:
    parts = [{"type": "image"}, {"type": "text", "text": "w9 w10"}]
    chat = json.dumps([{"role": "w4", "content": parts}])
    plain = "w4 <image> w9 w10  w3"
    values: dict[str, Any] = {"image": FILES[0], "exclude_input_in_output": True, **GREEDY}
    found = complete(serving.grpc, "llava_unary", messages=chat, **values)
    assert found.text == complete(serving.grpc, "llava_unary", text_input=plain, **values).text
    assert found.num_input_tokens == ROWS + 4


def test_the_engine_loop_takes_rows_of_apps(serving: Server, llava: Built) -> None:
    """`llava_images` and `llava_generate` by themselves: an app may keep an image's rows, or make its own."""
    engine = engine_of(llava)
    case = cases()[1]
    pixels = pixel_values(image_encoder(engine), [FILES[0]])
    with grpcclient.InferenceServerClient(serving.grpc) as client:
        result = client.infer("llava_images", [tensor("pixel_values", pixels)])
        rows = result.as_numpy("prompt_embeds")
    np.testing.assert_array_equal(rows, rows_of(llava, engine, case.pictures))
    call = {"sampling": GREEDY, "stream": False, "echo": "", "timeout_seconds": 60}
    inputs = [
        tensor("input_ids", np.array(expanded(case), np.int32)),
        tensor("request", np.array([json.dumps(call).encode()], dtype=object)),
        tensor("prompt_embeds", rows),
    ]
    answers: list[Any] = []
    with grpcclient.InferenceServerClient(serving.grpc) as client:
        client.start_stream(lambda result, error: answers.append(error or result))
        client.async_stream_infer("llava_generate", inputs)
        until(lambda: bool(answers), "the loop answers", seconds=60)
    piece = unpack(answers[0].as_numpy("piece"))
    assert piece is not None
    assert piece.text.decode().strip() == text_of(llava, 1)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"text_input": "w9", "image": FILES[0]},
            "the prompt has 0 places for images, and 1 images are given",
        ),
        ({"text_input": "<image> w9"}, "the prompt has 1 places for images, and 0 images are given"),
        (
            {"text_input": "<image> <image>", "image": [FILES[0], b"none"]},
            "image 2 of 2: the image (4 bytes)",
        ),
        ({"text_input": "<image>", "image": FILES[0][:200]}, "the image"),
        ({"text_input": "<image> " * 12, "image": [FILES[0]] * 12}, "has 192 tokens with its 12 images"),
        ({"image": FILES[0]}, "send text_input or messages"),
        ({"messages": '[{"role": "w4", "content": [{"type": "sound"}]}]'}, "content may be a list of"),
    ],
)
def test_the_server_says_what_it_cannot_use(serving: Server, values: dict[str, Any], message: str) -> None:
    with pytest.raises(Exception, match="INVALID_ARGUMENT") as caught:
        complete(serving.grpc, "llava_unary", **values)
    assert message in str(caught.value)
