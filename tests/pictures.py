"""Pictures for tests, drawn by Pillow: of odd sizes, every colour mode, turned by EXIF, in several formats."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

ORIENTATION = 0x0112
"""EXIF tag; 6: the camera was turned, so what is shown is turned right by 90 degrees."""


def scene(width: int, height: int, seed: int = 0) -> Image.Image:
    """An RGB picture with slopes, edges, text and noise."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:height, 0:width]
    waves = np.stack(
        [np.sin(columns / width * (seed + 2)), np.cos(rows / height * 3), (rows + columns) % 64 / 64]
    )
    pixels = 110 + 70 * waves + random.normal(0, 12, (3, height, width))
    picture = Image.fromarray(pixels.clip(0, 255).astype(np.uint8).transpose(1, 2, 0))
    draw = ImageDraw.Draw(picture)
    for _ in range(6):
        left, top = random.uniform(0, 0.8, 2) * (width, height)
        right, bottom = left + random.uniform(4, width / 2), top + random.uniform(4, height / 2)
        colour = tuple(random.integers(0, 256, 3).tolist())
        draw.ellipse((left, top, right, bottom), fill=colour, outline="white")
    draw.text((3, 3), f"slipway {seed}", fill="black")
    return picture.filter(ImageFilter.SMOOTH)


def encoded(picture: Image.Image, suffix: str, **options: Any) -> bytes:
    """The file's bytes; `options` as Pillow's `save` takes them."""
    file = io.BytesIO()
    picture.save(file, suffix, **options)
    return file.getvalue()


def see_through(picture: Image.Image) -> Image.Image:
    """RGBA: from left to right less can be seen."""
    alpha = np.tile(np.linspace(255, 0, picture.width).astype(np.uint8), (picture.height, 1))
    layered = picture.convert("RGBA")
    layered.putalpha(Image.fromarray(alpha))
    return layered


def album() -> Mapping[str, bytes]:
    """Encoded pictures by what is particular about them."""
    turned = Image.Exif()
    turned[ORIENTATION] = 6
    palette = scene(57, 43, 5).quantize(32)
    return {
        "a wide JPEG": encoded(scene(203, 77, 1), "JPEG", quality=90),
        "a high PNG": encoded(scene(61, 150, 2), "PNG"),
        "a square WebP": encoded(scene(96, 96, 3), "WEBP", lossless=True),
        "grey": encoded(scene(91, 64, 4).convert("L"), "PNG"),
        "a palette": encoded(palette, "PNG"),
        "a palette with a hole": encoded(palette, "PNG", transparency=7),
        "see-through": encoded(see_through(scene(80, 60, 6)), "PNG"),
        "turned by EXIF": encoded(scene(120, 70, 7), "JPEG", exif=turned),
        "CMYK": encoded(scene(70, 90, 8).convert("CMYK"), "JPEG"),
        "black and white": encoded(scene(75, 40, 9).convert("1"), "PNG"),
        "a GIF": encoded(scene(64, 48, 10), "GIF"),
        "small": encoded(scene(9, 13, 11), "BMP"),
    }
