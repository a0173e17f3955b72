"""Encoded pictures become pixel values, and what is no picture becomes one clear error."""

from __future__ import annotations

import base64
import io
import struct
import zlib
from dataclasses import asdict, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from model_repo.runtime.errors import BadInput
from model_repo.runtime.image_steps import Normalization, Preprocessing, Resize
from model_repo.runtime.images import Preprocessor, batch, center_cropped
from tests.pictures import album, encoded, scene, see_through

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
PLAIN = Preprocessing(scale=1 / 255, normalizations=(Normalization(MEAN, STD),))
SQUARE = replace(PLAIN, resize=Resize("bilinear", 24, 32))
BOUNDED = replace(PLAIN, resize=Resize("bilinear", shortest_edge=30, longest_edge=50))
ALBUM = album()


def png(width: int, height: int, depth: int = 8, pixels: bytes = b"") -> bytes:
    """A PNG that promises these sizes, whatever it holds."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def deep(dtype: str) -> bytes:
    """A picture of more than 8 bits a channel."""
    return encoded(Image.fromarray(np.arange(64, dtype=dtype).reshape(8, 8) * 500), "TIFF")


def five_channels() -> bytes:
    """A TIFF whose pixels have five samples."""
    tags = {
        256: (3, 4),  # width
        257: (3, 4),  # height
        258: (3, 8),
        259: (3, 1),
        262: (3, 2),
        273: (4, 200),  # where the pixels are
        277: (3, 5),  # samples a pixel
        278: (3, 4),
        279: (4, 80),
    }
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, (kind, value) in tags.items())
    head = b"II*\x00" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)
    return head.ljust(200, b"\0") + bytes(80)


BAD = {
    "nothing": (b"", "image .0 bytes. is in no known format; send one of JPEG, PNG"),
    "text": (b"a ship left port", "in no known format"),
    "a program for printers": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "in no known format"),
    "half a JPEG": (ALBUM["a wide JPEG"][:2000], "is damaged: image file is truncated"),
    "half a PNG": (ALBUM["a high PNG"][:900], "is damaged: "),
    "half a WebP": (ALBUM["a square WebP"][:600], "cannot be read|is damaged|no known format"),
    "a header alone": (ALBUM["a wide JPEG"][:300], "cannot be read"),
    "a bomb": (png(60_000, 60_000), "cannot be read: Image size .3600000000 pixels. exceeds limit"),
    "huge": (png(10_000, 8_000), "has 8000 x 10000 pixels .height x width.; 1 to 64,000,000 are allowed"),
    "no width": (png(0, 5), "cannot be read|is in no known format|has 5 x 0 pixels"),
    "16 bits": (deep("uint16"), "more than 8 bits a channel .mode I;16.; convert it"),
    "32 bits": (deep("int32"), "more than 8 bits a channel .mode I.; convert it"),
    "floats": (deep("float32"), "more than 8 bits a channel .mode F.; convert it"),
    "five channels": (five_channels(), "cannot be read|in no known format"),
    "an open data URL": (b"data:image/png,abc", "data URL that begins with .*give data:image/...;base64"),
    "a wrong data URL": (b"data:image/png;base64,ab*c", "data URL whose base64 is wrong"),
}


@pytest.mark.parametrize(("data", "message"), BAD.values(), ids=BAD.keys())
def test_what_is_no_picture_is_one_clear_error(data: bytes, message: str) -> None:
    with pytest.raises(BadInput, match=message) as caught:
        Preprocessor(SQUARE)(data)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("width", "height", "resize", "message"),
    [
        (5000, 2, BOUNDED.resize, "would be resized to 0 x 50"),
        (
            30_000,
            2,
            Resize("nearest", shortest_edge=3000),
            "resized to 3000 x 45000000; 1 to 64,000,000 pixels",
        ),
    ],
)
def test_narrow_pictures_neither_vanish_nor_explode(
    width: int, height: int, resize: Resize, message: str
) -> None:
    data = encoded(Image.new("L", (width, height)), "PNG")
    with pytest.raises(BadInput, match=message):
        Preprocessor(replace(PLAIN, resize=resize))(data)


def test_a_picture_larger_than_its_padding_is_refused() -> None:
    steps = replace(BOUNDED, pad=(40, 40))
    assert Preprocessor(steps)(ALBUM["a square WebP"]).values.shape == (3, 40, 40)
    with pytest.raises(
        BadInput, match=r"50 x 20 pixels .height x width. when it is resized, more than the 40 x 40"
    ):
        Preprocessor(steps)(ALBUM["a high PNG"])


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(sorted(ALBUM)),
    st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), min_size=1, max_size=6),
    st.floats(0.1, 1),
)
def test_damaged_files_end_in_pixels_or_in_that_error(
    name: str, changes: list[tuple[float, int]], kept: float
) -> None:
    data = bytearray(ALBUM[name])
    for place, value in changes:
        data[int(place * len(data))] = value
    try:
        values = Preprocessor(SQUARE)(bytes(data[: int(kept * len(data)) + 1])).values
    except BadInput:
        return
    assert values.shape == (3, 24, 32)
    assert np.isfinite(values).all()


def test_values_are_scaled_and_normalized_by_channel() -> None:
    picture = scene(31, 17, 3)
    found = Preprocessor(PLAIN)(encoded(picture, "PNG"))
    pixels = np.asarray(picture, np.float64).transpose(2, 0, 1)
    expected = (pixels / 255 - np.reshape(MEAN, (3, 1, 1))) / np.reshape(STD, (3, 1, 1))
    np.testing.assert_allclose(found.values, expected, rtol=1e-5, atol=1e-6)
    assert (found.size, found.original_size) == ((17, 31), (17, 31))


def test_exif_turns_the_picture() -> None:
    picture = scene(40, 20, 4)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = Preprocessor(PLAIN)(encoded(picture, "PNG", exif=exif))
    upright = Preprocessor(PLAIN)(encoded(picture.transpose(Image.Transpose.ROTATE_270), "PNG"))
    np.testing.assert_array_equal(turned.values, upright.values)
    assert turned.original_size == (40, 20)


def test_white_shows_through_where_the_steps_say_so() -> None:
    data = encoded(see_through(Image.new("RGB", (256, 2), (10, 20, 30))), "PNG")
    plain, white = (Preprocessor(replace(PLAIN, over_white=over))(data).values for over in (False, True))
    black, full = (np.array(colour, np.float64) for colour in ((10, 20, 30), (255, 255, 255)))
    expected = ((full / 255) - MEAN) / STD
    np.testing.assert_allclose(white[:, 0, -1], expected, rtol=1e-5)
    np.testing.assert_allclose(plain[:, 0, -1], (black / 255 - MEAN) / STD, rtol=1e-5)
    np.testing.assert_array_equal(plain[:, 0, 0], white[:, 0, 0])


def test_grey_models_see_grey() -> None:
    steps = Preprocessing(channels=1, scale=1 / 255, crops=((10, 12),))
    values = Preprocessor(steps)(ALBUM["a high PNG"]).values
    grey = np.asarray(Image.open(io.BytesIO(ALBUM["a high PNG"])).convert("L"))
    np.testing.assert_allclose(values[0], grey[70:80, 24:36] / 255, rtol=1e-6)


def test_an_animation_gives_its_first_picture() -> None:
    first, second = scene(30, 20, 1).convert("P"), scene(30, 20, 2).convert("P")
    moving = encoded(first, "GIF", save_all=True, append_images=[second])
    still = encoded(first, "GIF")
    np.testing.assert_array_equal(Preprocessor(PLAIN)(moving).values, Preprocessor(PLAIN)(still).values)


def test_a_data_url_is_its_picture() -> None:
    data = ALBUM["a wide JPEG"]
    url = b"data:image/jpeg;base64," + base64.b64encode(data)
    np.testing.assert_array_equal(Preprocessor(SQUARE)(url).values, Preprocessor(SQUARE)(data).values)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 40), st.integers(1, 40))
def test_crops_keep_the_middle(height: int, width: int, rows: int, columns: int) -> None:
    pixels = np.random.default_rng(0).integers(1, 256, (height, width, 3)).astype(np.uint8)
    cropped = center_cropped(pixels, rows, columns)
    assert cropped.shape == (rows, columns, 3)
    kept = min(height, rows) * min(width, columns) * 3
    assert np.count_nonzero(cropped) == kept
    if rows <= height and columns <= width:
        top, left = (height - rows) // 2, (width - columns) // 2
        np.testing.assert_array_equal(cropped, pixels[top : top + rows, left : left + columns])


def test_a_batch_holds_each_picture_and_where_it_ends() -> None:
    prepare = Preprocessor(BOUNDED)
    images = [prepare(ALBUM[name]) for name in ("a wide JPEG", "a high PNG", "small")]
    made = batch(images)
    assert made.values.shape[:2] == (3, 3)
    for row, image in enumerate(images):
        height, width = image.size
        np.testing.assert_array_equal(made.values[row, :, :height, :width], image.values)
        assert made.sizes[row].tolist() == [height, width]
        assert made.mask[row].sum() == height * width
        assert np.count_nonzero(made.values[row]) == np.count_nonzero(image.values)
    assert made.original_sizes.tolist() == [[77, 203], [150, 61], [13, 9]]


def test_steps_are_read_back() -> None:
    for steps in (PLAIN, SQUARE, replace(BOUNDED, pad=(50, 50), crops=((3, 4), (5, 6)), over_white=True)):
        assert Preprocessing.from_dict(asdict(steps)) == steps
    assert (PLAIN.size, SQUARE.size, BOUNDED.size) == (None, (24, 32), None)
    assert replace(SQUARE, crops=((3, 4), (5, 6))).size == (5, 6)
