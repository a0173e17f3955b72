"""Vision-language models in comparisons: prompts with images in them, and the rows that take the place of tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from model_repo.runtime.contract import ImageEncoderSpec, StepTensors
from model_repo.runtime.prompt_embeds import EMBED_INDEX, EMBED_OUTPUT, PIXELS, PROMPT_EMBEDS, PromptEmbeds

Array = npt.NDArray[np.float32]
IMAGES = (1, 0, 2)
"""Images of the first prompts; the others have none."""

_SEED = 20_11


def with_images(
    prompts: Sequence[Sequence[int]], images: ImageEncoderSpec, max_length: int
) -> list[list[int]]:
    """The prompts with the placeholders of IMAGES behind their first tokens, as far as `max_length` tokens go."""
    made = []
    for place, prompt in enumerate(prompts):
        # What a tokenizer makes of plain text is no image.
        text = [token if token != images.placeholder_id else (token + 1) % 2 for token in prompt]
        count = IMAGES[place] if place < len(IMAGES) else 0
        count = min(count, (max_length - len(text)) // images.rows)
        pieces = [text[row : row + 1] + [images.placeholder_id] * images.rows for row in range(count)]
        made.append([token for piece in pieces for token in piece] + text[count:])
    return made


def pixel_arrays(prompt: Sequence[int], place: int, images: ImageEncoderSpec) -> list[Array]:
    """The images of prompt number `place`, of normal numbers: float32 [1, channels, height, width] each."""
    random = np.random.default_rng((_SEED, place))
    count = list(prompt).count(images.placeholder_id) // images.rows
    shape = (1, *images.pixel_shape)
    return [random.standard_normal(shape).astype(np.float32) for _ in range(count)]


def embeds_of(
    session: ort.InferenceSession, prompts: Sequence[Sequence[int]], images: ImageEncoderSpec
) -> list[PromptEmbeds]:
    """What the image encoder's graph gives for the images of each prompt."""
    made = []
    for place, prompt in enumerate(prompts):
        rows = [
            session.run([EMBED_OUTPUT], {PIXELS: array})[0] for array in pixel_arrays(prompt, place, images)
        ]
        every = np.concatenate([np.zeros((0, images.hidden_size), np.float32), *rows])
        made.append(PromptEmbeds.of(prompt, every, images.placeholder_id))
    return made


def embed_arrays(
    embeds: Sequence[PromptEmbeds], parts: Sequence[tuple[int, int, int]], step: StepTensors
) -> dict[str, npt.NDArray[np.generic]]:
    """The inputs `prompt_embeds.embed_inputs` of a step: `parts` are (prompt, start, stop), in order.

    All rows of all prompts lie in it, so that a token's row is not where the token is.
    """
    firsts = np.cumsum([0, *(len(one.rows) for one in embeds)])
    unused = np.zeros((1, embeds[0].rows.shape[1]), np.float32)
    every = np.concatenate([*(one.rows for one in embeds), unused])
    index = np.concatenate(
        [
            np.where(rows < 0, -1, rows + firsts[prompt])
            for prompt, start, stop in parts
            for rows in [embeds[prompt].row_of[start:stop]]
        ]
    )
    assert len(index) == len(step.input_ids), "every token is some prompt's"
    return {PROMPT_EMBEDS: every, EMBED_INDEX: index.astype(np.int32)}
