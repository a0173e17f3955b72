"""Calibration samples: what each source gives, which of them are taken, and what is refused."""

from __future__ import annotations

import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tokenizers import Tokenizer as RawTokenizer
from tokenizers import models, pre_tokenizers, processors

from calibration.samples import DEFAULT_FILE, open_samples
from calibration.samples.base import Found
from calibration.samples.choice import allotted, chosen
from model_repo.runtime.capture import Capture
from model_repo.runtime.contract import TensorSpec
from model_repo.runtime.errors import BadInput
from model_repo.runtime.image_steps import Preprocessing, Resize
from model_repo.runtime.images import Preprocessor
from model_repo.runtime.tokenizer import Tokenizer
from tests.calibration.small_graphs import Facts

DECODER, ENCODER = Facts("decoder"), Facts("encoder")
ROWS = Facts(
    "tensors", inputs=(TensorSpec("x", "float32", ("batch", 3)), TensorSpec("y", "int64", ("batch",)))
)
WORDS = {"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, **{f"w{n}": n + 3 for n in range(50)}}
TEMPLATE = "{% for m in messages %}{{ m.role }} {{ m.content }} {% endfor %}"


@pytest.fixture
def tokenizer() -> Tokenizer:
    """w0, w1, ... are words; [CLS] and [SEP] stand around a text."""
    raw = RawTokenizer(models.WordLevel(WORDS, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    raw.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return Tokenizer(raw, TEMPLATE)


def sentence(length: int, first: int = 0) -> str:
    """So many words."""
    return " ".join(f"w{(first + place) % 50}" for place in range(length))


def write_lines(path: Path, entries: list[dict[str, Any]]) -> Path:
    path.write_text("\n".join(json.dumps(entry) for entry in entries) + "\n\n", encoding="utf-8")
    return path


def opened(path: Path, model: Facts, tokenizer: Tokenizer | None, **options: Any) -> Any:
    return open_samples(path, model, vocab_size=len(WORDS), tokenizer=tokenizer, **options)  # type: ignore[arg-type]


def test_lines_of_text_chats_and_tokens(tmp_path: Path, tokenizer: Tokenizer) -> None:
    entries: list[dict[str, Any]] = [
        {"text": sentence(100), "domain": "prose"},
        {"messages": [{"role": "w7", "content": sentence(90)}, {"role": "w8", "content": "w9"}]},
        {"input_ids": list(range(3, 50)) * 3, "domain": "code"},
    ]
    samples = opened(write_lines(tmp_path / "data.jsonl", entries), DECODER, tokenizer)
    assert sorted(samples.items, key=len) == [
        (10, *range(3, 53), *range(3, 43), 11, 12),
        (1, *(3 + n % 50 for n in range(100)), 2),
        tuple(range(3, 50)) * 3,
    ]
    assert samples.tokens == 93 + 102 + 141
    assert samples.domains == {"code": 1, "prose": 1}
    assert samples.source == "data.jsonl"


def test_documents_of_a_text_file_are_cut_to_the_models_length(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = tmp_path / "data.txt"
    path.write_text(f"{sentence(250)}\n<|endoftext|>\n\n{sentence(29, 7)}<|endoftext|>", encoding="utf-8")
    samples = opened(path, DECODER, tokenizer, max_length=100)
    assert sorted(map(len, samples.items)) == [31, 52, 100, 100]
    whole = [1, *(3 + n % 50 for n in range(250)), 2]
    assert {samples.items[place] for place in range(4) if len(samples.items[place]) != 31} == {
        tuple(whole[:100]),
        tuple(whole[100:200]),
        tuple(whole[200:]),
    }


def test_a_piece_of_one_token_is_left_out(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = write_lines(tmp_path / "data.jsonl", [{"input_ids": [3 + n * n % 47 for n in range(301)]}])
    assert Counter(map(len, opened(path, DECODER, tokenizer, max_length=100).items)) == {100: 3}


def test_an_encoders_texts_keep_their_last_token(tmp_path: Path, tokenizer: Tokenizer) -> None:
    entries = [{"text": sentence(60, first)} for first in range(30)]
    samples = opened(write_lines(tmp_path / "d.jsonl", entries), ENCODER, tokenizer, max_length=20)
    assert {len(item) for item in samples.items} == {20}
    assert {(item[0], item[-1]) for item in samples.items} == {(1, 2)}


def test_the_same_samples_wherever_they_stand_in_the_file(tmp_path: Path, tokenizer: Tokenizer) -> None:
    entries = [{"input_ids": [3 + n % 50, *range(3, 4 + n % 40)]} for n in range(200)]
    one = opened(write_lines(tmp_path / "a.jsonl", entries), DECODER, tokenizer, count=40)
    other = opened(write_lines(tmp_path / "b.jsonl", entries[::-1]), DECODER, tokenizer, count=40)
    assert one.items == other.items
    assert one.sha256 == other.sha256
    more = opened(write_lines(tmp_path / "c.jsonl", entries), DECODER, tokenizer, count=41)
    assert more.sha256 != one.sha256
    assert len(set(more.items) & set(one.items)) >= 38


def test_every_length_and_domain_has_its_share(tmp_path: Path) -> None:
    found = [
        Found((place, *range(length)), length + 1, domain)
        for place, (length, domain) in enumerate(
            [(10, "prose")] * 600 + [(100, "prose")] * 300 + [(100, "code")] * 90 + [(400, "code")] * 10
        )
    ]
    samples = chosen(tmp_path / "x", found, 100, 512, "decoder")
    assert Counter((len(item) - 1, domain_of(found, item)) for item in samples.items) == {
        (10, "prose"): 60,
        (100, "prose"): 30,
        (100, "code"): 9,
        (400, "code"): 1,
    }
    assert samples.domains == {"code": 10, "prose": 90}


def domain_of(found: list[Found], item: Any) -> str:
    return next(sample.domain for sample in found if sample.item == item)


def test_seats_are_in_proportion_and_nobody_gets_more_than_there_are() -> None:
    draw = np.random.default_rng(0)
    for _ in range(200):
        sizes = {
            ("", place): int(size) for place, size in enumerate(draw.integers(1, 60, draw.integers(1, 9)))
        }
        seats = int(draw.integers(1, sum(sizes.values()) + 1))
        given = allotted(sizes, seats)
        assert sum(given.values()) == seats
        assert all(0 <= given[stratum] <= size for stratum, size in sizes.items())
        if seats >= len(sizes):
            assert min(given.values()) >= 1


def test_arrays_are_samples_along_their_first_axis(tmp_path: Path) -> None:
    x, y = np.arange(60, dtype=np.float32).reshape(20, 3), np.arange(20)
    np.savez(tmp_path / "d.npz", x=x, y=y, other=np.ones(3))
    samples = opened(tmp_path / "d.npz", ROWS, None)
    assert sorted(int(item["y"][0]) for item in samples.items) == list(range(20))
    for item in samples.items:
        np.testing.assert_array_equal(item["x"], x[item["y"]])
    whole = Facts("tensors", inputs=(TensorSpec("x", "float32", (3,)),), batched=False)
    np.savez(tmp_path / "w.npz", x=x)
    assert {item["x"].shape for item in opened(tmp_path / "w.npz", whole, None).items} == {(3,)}


def test_images_are_prepared_as_the_server_does_and_folders_are_domains(tmp_path: Path) -> None:
    steps = Preprocessing(resize=Resize("bilinear", height=4, width=5), scale=1 / 255)
    draw = np.random.default_rng(2)
    for place in range(12):
        folder = tmp_path / "images" / ("cats" if place < 9 else "dogs")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (9, 7, 3), np.uint8)).save(folder / f"{place}.png")
    (tmp_path / "images" / "notes.txt").write_text("no image")
    model = Facts("tensors", inputs=(TensorSpec("pixel_values", "float32", ("batch", 3, 4, 5)),))
    samples = opened(tmp_path / "images", model, None, preprocessor=Preprocessor(steps))
    assert samples.domains == {"cats": 9, "dogs": 3}
    assert {item["pixel_values"].shape for item in samples.items} == {(1, 3, 4, 5)}
    first = Image.open(tmp_path / "images" / "cats" / "0.png").resize((5, 4), Image.Resampling.BILINEAR)
    wanted = np.asarray(first, np.float32).transpose(2, 0, 1) / 255
    assert min(np.abs(item["pixel_values"][0] - wanted).max() for item in samples.items) < 1e-6


REFUSED: list[tuple[str, str]] = [
    ('{"text": "w1"', "line 1, is no JSON"),
    ("[1, 2]", "line 1, is .1, 2.; each line is a JSON object"),
    ('{"prompt": "w1"}', "line 1, has none of them; give one of text, messages, input_ids"),
    ('{"text": "w1", "input_ids": [1]}', "has text and input_ids; give one of"),
    ('{"text": "  "}', "has text '  '; it must be a text that is not empty"),
    ('{"text": 5}', "has text 5; it must be"),
    ('{"messages": [{"role": "user"}]}', "it must be a list of {role, content}"),
    ('{"input_ids": [1, "2"]}', "it must be a list of token ids"),
    ('{"input_ids": []}', "has no tokens"),
    ('{"input_ids": [1, 53]}', "has the token 53; this model's ids are 0 to 52"),
    ('{"input_ids": [-1]}', "has the token -1"),
    ('{"text": "w1", "domain": 3}', "has the domain 3; it must be a text"),
    ("", "holds no samples"),
    ('{"input_ids": [1, 2, 3]}', "gives 1 samples of 3 tokens in all; calibration takes at least 256 tokens"),
]


@pytest.mark.parametrize(("line", "message"), REFUSED)
def test_lines_that_are_no_samples_are_refused(
    line: str, message: str, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    (tmp_path / "d.jsonl").write_text(line, encoding="utf-8")
    with pytest.raises(BadInput, match=message):
        opened(tmp_path / "d.jsonl", DECODER, tokenizer)


def test_sources_that_are_of_no_use_are_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    data = write_lines(tmp_path / "d.jsonl", [{"input_ids": [3 + n] * 40} for n in range(9)])
    with pytest.raises(
        BadInput, match="gives 9 different samples, and 10 are asked for; give more data, or --samples 9"
    ):
        opened(data, DECODER, tokenizer, count=10)
    with pytest.raises(BadInput, match="no calibration data at"):
        opened(tmp_path / "none.jsonl", DECODER, tokenizer)
    with pytest.raises(BadInput, match=r"line 1, holds no tensors; .* a \.npz file or a folder"):
        opened(data, ROWS, None)
    (tmp_path / "a.csv").write_text("x")
    with pytest.raises(BadInput, match=r"a\.csv is of no use to a model of texts"):
        opened(tmp_path / "a.csv", DECODER, tokenizer)
    (tmp_path / "e.txt").write_text(" <|endoftext|> ")
    with pytest.raises(BadInput, match="holds no text"):
        opened(tmp_path / "e.txt", DECODER, tokenizer)
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(BadInput, match="is not readable text"):
        opened(tmp_path / "b.txt", DECODER, tokenizer)
    (tmp_path / "f.txt").write_text("w1 w2")
    with pytest.raises(BadInput, match="came without a tokenizer; give input_ids"):
        opened(tmp_path / "f.txt", DECODER, None)
    with pytest.raises(BadInput, match="nothing is known about how images become its inputs"):
        opened(tmp_path, ROWS, None)
    with pytest.raises(BadInput, match=r"named tensors \(x, y\) has no calibration data of its own"):
        open_samples(None, ROWS)  # type: ignore[arg-type]


def test_wrong_arrays_are_refused(tmp_path: Path) -> None:
    x, y = np.ones((9, 3), np.float32), np.arange(9)
    for arrays, message in (
        ({"x": x}, "has no array 'y'; it has x, and the model takes x, y"),
        ({"x": x.astype(np.float64), "y": y}, r"'x' is float64 \[9, 3\]; it must be float32 \[samples, 3\]"),
        ({"x": x[:, :2], "y": y}, r"it must be float32 \[samples, 3\]"),
        ({"x": x, "y": y[:8]}, "different numbers of samples"),
        ({"x": x * np.inf, "y": y}, "'x' holds NaN or infinity"),
        ({"x": x[:5], "y": y[:5]}, "calibration takes at least 8 samples"),
    ):
        np.savez(tmp_path / "d.npz", **arrays)
        with pytest.raises(BadInput, match=message):
            opened(tmp_path / "d.npz", ROWS, None)
    (tmp_path / "d.npz").write_bytes(b"PK nothing")
    with pytest.raises(BadInput, match=r"is not a readable \.npz file"):
        opened(tmp_path / "d.npz", ROWS, None)


def test_an_image_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    model = Facts("tensors", inputs=(TensorSpec("pixel_values", "float32", ("batch", 3, 4, 5)),))
    (tmp_path / "broken.png").write_bytes(b"none")
    steps = Preprocessor(Preprocessing(resize=Resize("bilinear", height=4, width=5)))
    with pytest.raises(BadInput, match=r"broken\.png cannot be used"):
        opened(tmp_path, model, None, preprocessor=steps)
    buffer = io.BytesIO()
    Image.new("RGB", (6, 6)).save(buffer, "PNG")
    (tmp_path / "broken.png").write_bytes(buffer.getvalue())
    Image.new("RGB", (7, 7)).save(tmp_path / "other.png")
    with pytest.raises(BadInput, match="2 shapes"):
        opened(tmp_path, model, None, preprocessor=Preprocessor(Preprocessing()))


def test_the_default_text_is_not_the_held_out_one() -> None:
    heldout = (DEFAULT_FILE.parent / "heldout.txt").read_text(encoding="utf-8")
    paragraphs = [p for p in DEFAULT_FILE.read_text(encoding="utf-8").split("\n\n") if len(p) > 40]
    assert len(paragraphs) >= 200
    assert [p for p in paragraphs if p in heldout] == []


def captured(path: Path, requests: list[dict[str, np.ndarray]]) -> Path:
    """A file as a server writes it."""
    capture = Capture(path, "rows")
    for request in requests:
        capture.write_tensors(request)
    capture.close()
    return path


def test_captured_requests_of_named_tensors_are_samples_row_by_row(tmp_path: Path) -> None:
    random = np.random.default_rng(2)
    x, y = random.standard_normal((12, 3)).astype(np.float32), random.integers(0, 5, 12)
    cuts = [slice(0, 1), slice(1, 8), slice(8, 12)]
    path = captured(tmp_path / "rows.jsonl", [{"x": x[cut], "y": y[cut]} for cut in cuts])
    np.savez(tmp_path / "rows.npz", x=x, y=y)
    samples, arrays = (opened(tmp_path / f"rows.{suffix}", ROWS, None) for suffix in ("jsonl", "npz"))
    assert samples.sha256 == arrays.sha256  # the same samples, whichever way they came
    assert len(samples.items) == 12
    assert path.read_text().count("\n") == 4


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"x": np.zeros((1, 3), np.float32)}, r"line 2, has no tensor 'y'; it has x"),
        (
            {"x": np.zeros((1, 4), np.float32), "y": np.zeros(1, np.int64)},
            r"line 2, has 'x' as float32 \[1, 4\]; the model takes float32 \[batch, 3\]",
        ),
        (
            {"x": np.full((1, 3), np.nan, np.float32), "y": np.zeros(1, np.int64)},
            r"line 2, holds NaN or infinity in 'x'",
        ),
        (
            {"x": np.zeros((2, 3), np.float32), "y": np.zeros(1, np.int64)},
            r"line 2, has different numbers of rows",
        ),
    ],
)
def test_captured_tensors_that_do_not_fit_are_refused(
    tmp_path: Path, request_: dict[str, np.ndarray], message: str
) -> None:
    with pytest.raises(BadInput, match=message):
        opened(captured(tmp_path / "rows.jsonl", [request_]), ROWS, None)


def test_a_capture_of_texts_is_no_data_for_named_tensors(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "data.jsonl", [{"input_ids": [1, 2]}])
    with pytest.raises(BadInput, match="line 1, holds no tensors; a model of named tensors takes"):
        opened(path, ROWS, None)
    path.write_text("notes\n")
    with pytest.raises(BadInput, match="line 1, is no JSON"):
        opened(path, ROWS, None)


def test_captured_images_are_of_one_size(tmp_path: Path) -> None:
    pixels = Facts("tensors", inputs=(TensorSpec("pixels", "float32", ("batch", "height", "width")),))
    sizes = [(4, 4), (4, 5)]
    requests = [{"pixels": np.zeros((1, *size), np.float32)} for size in sizes]
    with pytest.raises(BadInput, match="line 3, has other sizes than the requests before it"):
        opened(captured(tmp_path / "pixels.jsonl", requests), pixels, None)
