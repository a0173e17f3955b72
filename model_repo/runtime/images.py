"""From an encoded picture to a model's pixel_values, bit for bit as transformers' image processors on Pillow and numpy.

https://huggingface.co/docs/transformers/main_classes/image_processor; the order of the steps is in
`image_steps.Preprocessing`. Each picture is computed by itself: nothing depends on its company.
"""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from .errors import BadInput
from .image_steps import Preprocessing, Resize
from .prompt_embeds import ImageEncoderSpec

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
"""What is decoded. Pillow knows many more formats, some of which start other programs."""

MAX_PIXELS = 64_000_000
"""Of a picture as it was sent, and after its resizing: 192 MB in memory. A few bytes can promise far more."""

DATA_URL = b"data:image/"

Pixels = npt.NDArray[np.uint8]
"""[height, width, channels], values 0 to 255."""


class Prepared(NamedTuple):
    """pixel_values float32 [channels, height, width]; height and width of its picture within them, and of the picture
    as it was sent, turned as its EXIF orientation says."""

    values: npt.NDArray[np.float32]
    size: tuple[int, int]
    original_size: tuple[int, int]


class Preprocessor:
    """Does what `steps` says. Thread-safe."""

    def __init__(self, steps: Preprocessing) -> None:
        self.steps = steps
        self._table = value_table(steps)
        Image.init()  # or Pillow would look for its decoders at the first image, in several threads

    def __call__(self, data: bytes) -> Prepared:
        """Raises BadInput when `data` is no picture that can be used."""
        return self.prepare(decoded(data, self.steps))

    def prepare(self, picture: Image.Image) -> Prepared:
        """A picture of mode RGB, or L where the steps have one channel. Raises BadInput when it is too narrow."""
        original = picture.height, picture.width
        if self.steps.resize is not None:
            height, width = resized(original, self.steps.resize)
            picture = picture.resize((width, height), Image.Resampling[self.steps.resize.resample.upper()])
        pixels = np.asarray(picture).reshape(picture.height, picture.width, self.steps.channels)
        for height, width in self.steps.crops:
            pixels = center_cropped(pixels, height, width)
        height, width = pixels.shape[:2]
        padded = self.steps.pad or (height, width)
        if height > padded[0] or width > padded[1]:
            raise BadInput(
                f"the image has {height} x {width} pixels (height x width) when it is resized, more than the "
                f"{padded[0]} x {padded[1]} that the model takes; send another aspect ratio"
            )
        values = np.zeros((self.steps.channels, *padded), np.float32)
        for channel in range(self.steps.channels):
            values[channel, :height, :width] = self._table[channel][pixels[..., channel]]
        return Prepared(values, (height, width), original)


def decoded(data: bytes, steps: Preprocessing) -> Image.Image:
    """The picture in `data`, turned as its EXIF orientation says; of several frames the first.

    `data`: an encoded image, or a data URL (base64) with one. Raises BadInput when it is none, damaged, larger than
    MAX_PIXELS, or has more than 8 bits a channel.
    """
    if data.startswith(DATA_URL):
        data = _from_data_url(data)
    try:
        picture = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        raise BadInput(
            f"the image ({len(data)} bytes) is in no known format; send one of {', '.join(FORMATS)}"
        ) from None
    except Exception as error:  # what hostile headers make of decoders has no common base
        raise BadInput(f"the image cannot be read: {_words(error)}") from error
    if not 0 < picture.width * picture.height <= MAX_PIXELS:
        raise BadInput(
            f"the image has {picture.height} x {picture.width} pixels (height x width); 1 to {MAX_PIXELS:,} are "
            "allowed. Make it smaller"
        )
    if picture.mode.startswith(("I", "F")):
        raise BadInput(
            f"the image has more than 8 bits a channel (mode {picture.mode}); convert it to 8 bits"
        )
    try:
        return _in_mode(ImageOps.exif_transpose(picture), steps)
    except Exception as error:  # as above, in the pixels
        raise BadInput(f"the image is damaged: {_words(error)}") from error


class Batch(NamedTuple):
    """Several images; those that are smaller have zeros below and on the right.

    float32 [images, channels, height, width]; int32 [images, 2] height and width of each within that, and of each as
    it was sent.
    """

    values: npt.NDArray[np.float32]
    sizes: npt.NDArray[np.int32]
    original_sizes: npt.NDArray[np.int32]

    @property
    def mask(self) -> npt.NDArray[np.int64]:
        """int64 [images, height, width], 1 where the image is."""
        height, width = self.values.shape[2:]
        rows = np.arange(height) < self.sizes[:, :1]
        columns = np.arange(width) < self.sizes[:, 1:]
        return (rows[:, :, np.newaxis] & columns[:, np.newaxis, :]).astype(np.int64)


def batch(images: Sequence[Prepared]) -> Batch:
    """At least one image."""
    height, width = (max(each.values.shape[axis] for each in images) for axis in (1, 2))
    values = np.zeros((len(images), images[0].values.shape[0], height, width), np.float32)
    for row, each in enumerate(images):
        values[row, :, : each.values.shape[1], : each.values.shape[2]] = each.values
    sizes, originals = ([getattr(each, name) for each in images] for name in ("size", "original_size"))
    return Batch(values, np.array(sizes, np.int32), np.array(originals, np.int32))


def pixel_values(encoder: ImageEncoderSpec, images: Sequence[bytes]) -> npt.NDArray[np.float32]:
    """What a vision-language model's image encoder takes: float32 [images, channels, height, width] of encoded images.

    Raises BadInput that names, by its place among several, the image that cannot be used.
    """
    preprocessor = Preprocessor(encoder.preprocessing)
    values = np.zeros((len(images), *encoder.pixel_shape), np.float32)
    for place, image in enumerate(images):
        try:
            values[place] = preprocessor(image).values
        except BadInput as error:
            if len(images) == 1:
                raise
            raise BadInput(f"image {place + 1} of {len(images)}: {error}") from error
    return values


def resized(size: tuple[int, int], resize: Resize) -> tuple[int, int]:
    """Height and width after resizing a picture of height and width `size`.

    Raises BadInput when a side would vanish, or there would be more than MAX_PIXELS.
    """
    if resize.height:
        return resize.height, resize.width
    short, long = min(size), max(size)
    edge, bound = resize.shortest_edge, resize.longest_edge
    if bound and long / short * edge > bound:
        exact = bound * short / long
        edge = round(exact)
        other = int(exact * long / short)
    else:
        other = int(edge * long / short)
    height, width = (edge, other) if size[0] <= size[1] else (other, edge)
    if bound and edge == short:  # such a picture is left as it is
        height, width = size
    if not 0 < height * width <= MAX_PIXELS:
        raise BadInput(
            f"the image has {size[0]} x {size[1]} pixels (height x width), so it would be resized to {height} x "
            f"{width}; 1 to {MAX_PIXELS:,} pixels are allowed. Send another aspect ratio"
        )
    return height, width


def center_cropped(pixels: Pixels, height: int, width: int) -> Pixels:
    """The middle [height, width, channels], with zeros around a picture that is smaller."""
    rows, kept_rows = _middle(pixels.shape[0], height)
    columns, kept_columns = _middle(pixels.shape[1], width)
    cropped = np.zeros((height, width, pixels.shape[2]), np.uint8)
    cropped[kept_rows, kept_columns] = pixels[rows, columns]
    return cropped


def value_table(steps: Preprocessing) -> npt.NDArray[np.float32]:
    """float32 [channels, 256]: what each value of a channel becomes. The product is rounded from float64."""
    values = np.arange(256, dtype=np.float64)
    scaled = (values if steps.scale is None else values * steps.scale).astype(np.float32)
    table = np.tile(scaled, (steps.channels, 1))
    for normalization in steps.normalizations:
        mean, std = (
            np.array(numbers, np.float32)[:, np.newaxis]
            for numbers in (normalization.mean, normalization.std)
        )
        table = (table - mean) / std
    return table


def _middle(size: int, wanted: int) -> tuple[slice, slice]:
    """Of one axis: what is taken of the picture, and where it goes."""
    if size >= wanted:
        start = (size - wanted) // 2
        return slice(start, start + wanted), slice(0, wanted)
    before = -(-(wanted - size) // 2)
    return slice(0, size), slice(before, before + size)


def _in_mode(picture: Image.Image, steps: Preprocessing) -> Image.Image:
    """RGB, or L where the steps have one channel; `over_white` as in `Preprocessing`."""
    mode = "RGB" if steps.channels == 3 else "L"
    transparent = "A" in picture.getbands() or picture.info.get("transparency") is not None
    if steps.over_white and transparent:
        layer = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", layer.size, (255, 255, 255, 255)), layer)
    return picture.convert(mode)


def _from_data_url(url: bytes) -> bytes:
    head, comma, body = url.partition(b",")
    if not comma or not head.endswith(b";base64"):
        raise BadInput(
            f"the image is a data URL that begins with {url[:40]!r}; give data:image/...;base64,..."
        )
    try:
        return base64.b64decode(body, validate=True)
    except binascii.Error as error:
        raise BadInput(f"the image is a data URL whose base64 is wrong: {error}") from error


def _words(error: Any) -> str:
    """One line of a decoder's error, or what kind it is."""
    return " ".join(str(error).split())[:200] or type(error).__name__
