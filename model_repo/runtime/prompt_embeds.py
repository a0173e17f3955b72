"""Prompts with images: the rows that take the place of tokens' own embeddings, and the encoder that gives them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .errors import BadInput
from .image_steps import Preprocessing
from .tensor_spec import TensorSpec

PROMPT_EMBEDS, EMBED_INDEX = "prompt_embeds", "embed_index"
PIXELS = "pixel_values"
"""The image encoder's input, [1, channels, height, width]."""
EMBED_OUTPUT = "image_embeds"
"""Its output, [rows, hidden]."""
_KEY_BYTES = 16


def embed_inputs(hidden_size: int) -> tuple[TensorSpec, ...]:
    """Step inputs of a decoder whose prompts may hold images, beside `STEP_INPUTS`."""
    return (
        TensorSpec(
            PROMPT_EMBEDS,
            "float32",
            ("rows", hidden_size),
            "embeddings that take the place of tokens' own; at least one row, which nobody need refer to",
        ),
        TensorSpec(
            EMBED_INDEX, "int32", ("tokens",), "row of prompt_embeds for each token; -1: its own embedding"
        ),
    )


@dataclass(frozen=True)
class ImageEncoderSpec:
    """The image encoder of a vision-language model: vision tower and projector, one image at a time.

    `graph`: path beside the decoder's; from PIXELS to EMBED_OUTPUT, both float32. `preprocessing`: how an image
    becomes pixel values; all images get one size. `placeholder`: what marks an image's place in a text, the token
    `placeholder_id`; in a request's prompt it stands `rows` times an image.
    """

    graph: str
    preprocessing: Preprocessing
    placeholder: str
    placeholder_id: int
    rows: int
    hidden_size: int

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ImageEncoderSpec:
        """The inverse of `dataclasses.asdict`. Raises TypeError or KeyError when it does not fit."""
        return cls(**{**data, "preprocessing": Preprocessing.from_dict(data["preprocessing"])})

    @property
    def pixel_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image's pixel_values."""
        size = self.preprocessing.size
        assert size is not None, "checked when the model was loaded"
        return (self.preprocessing.channels, *size)

    def expanded(self, prompt_ids: Sequence[int], num_images: int, max_length: int) -> list[int]:
        """A prompt with one placeholder an image as the engine takes it, with `rows` of them an image.

        Raises BadInput when there are more or fewer images than placeholders, and when the result leaves no room for a
        completion within `max_length` tokens.
        """
        places = sum(token == self.placeholder_id for token in prompt_ids)
        if places != num_images:
            raise BadInput(
                f"the prompt has {places} places for images, and {num_images} images are given; write "
                f"{self.placeholder} once for each image, where it belongs"
            )
        length = len(prompt_ids) + places * (self.rows - 1)
        if length >= max_length:
            raise BadInput(
                f"the prompt has {length} tokens with its {num_images} images, each of which takes {self.rows}; this "
                f"engine takes at most {max_length - 1}, and prompt and completion together at most {max_length}. "
                "Shorten the prompt, or send fewer images"
            )
        repeats = {self.placeholder_id: self.rows}
        return [token for token in prompt_ids for _ in range(repeats.get(token, 1))]

    def check(self, prompt_ids: Sequence[int], prompt_embeds: npt.NDArray[Any] | None) -> None:
        """Raises BadInput unless there is one row of finite float32 for each placeholder of the prompt."""
        places = sum(token == self.placeholder_id for token in prompt_ids)
        given = np.zeros((0, self.hidden_size), np.float32) if prompt_embeds is None else prompt_embeds
        if given.dtype != np.float32 or given.shape != (places, self.hidden_size):
            raise BadInput(
                f"prompt_embeds is {given.dtype.name} {list(given.shape)}, and the prompt has {places} places for "
                f"their rows (token {self.placeholder_id}, {self.placeholder}); it must be float32 "
                f"[{places}, {self.hidden_size}]"
            )
        if not np.isfinite(given).all():
            raise BadInput("prompt_embeds holds NaN or infinity")


class PromptEmbeds(NamedTuple):
    """The images of one request: `rows` float32 [rows, hidden], and `row_of` int32 [prompt tokens], the row that takes
    the place of each token's own embedding, -1 for none."""

    rows: npt.NDArray[np.float32]
    row_of: npt.NDArray[np.int32]

    @classmethod
    def of(
        cls, prompt_ids: Sequence[int], rows: npt.NDArray[np.float32], placeholder_id: int
    ) -> PromptEmbeds:
        """Placeholders get the rows in order; there are as many."""
        row_of = np.full(len(prompt_ids), -1, np.int32)
        places = np.flatnonzero(np.asarray(prompt_ids) == placeholder_id)
        row_of[places] = np.arange(len(rows))
        return cls(rows, row_of)

    def content(self, prompt_ids: Sequence[int]) -> list[int]:
        """What cached blocks of this prompt are known by: its tokens, and where a row takes a token's place a hash of
        that row, below 0. The same image is the same content in any prompt, another image is another."""
        hashes = [
            -1 - int.from_bytes(hashlib.blake2b(row.tobytes(), digest_size=_KEY_BYTES).digest())
            for row in self.rows
        ]
        return [
            token if row < 0 else hashes[row]
            for token, row in zip(prompt_ids, self.row_of.tolist(), strict=True)
        ]
