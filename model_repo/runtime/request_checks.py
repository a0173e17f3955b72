"""Whether an engine can take a request, found out before the request is queued."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from .contract import EngineSpec, Limits
from .cross_attention import EncoderSpec
from .errors import BadInput
from .request import Request


def check_request(request: Request, spec: EngineSpec, limits: Limits, has_tokenizer: bool) -> None:
    """Raises BadInput when the prompt does not fit or names tokens that the model does not have, when stop strings
    cannot be found, and when the encoder's input or the images' rows are missing, not wanted, or do not fit."""
    length = len(request.prompt_ids)
    if length >= limits.max_length:
        raise BadInput(
            f"the prompt has {length} tokens; this engine takes at most {limits.max_length - 1}, and "
            f"prompt and completion together at most {limits.max_length}. Shorten the prompt"
        )
    if not 0 <= min(request.prompt_ids) <= max(request.prompt_ids) < spec.vocab_size:
        wrong = next(token for token in request.prompt_ids if not 0 <= token < spec.vocab_size)
        raise BadInput(f"token id {wrong} is not in the vocabulary; ids are 0 to {spec.vocab_size - 1}")
    if request.sampling.stop and not has_tokenizer:
        raise BadInput("stop strings need a tokenizer, and this engine has none; use stop_token_ids")
    _check_encoder_input(request.encoder_input, spec)
    if spec.image_encoder is not None:
        spec.image_encoder.check(request.prompt_ids, request.prompt_embeds)
    elif request.prompt_embeds is not None:
        raise BadInput(f"engine {spec.name!r} takes no images; a request to it has no prompt_embeds")


def blank_input(encoder: EncoderSpec) -> npt.NDArray[Any]:
    """The smallest input that the encoder takes, of zeros."""
    shape = [size if isinstance(size, int) else 1 for size in encoder.input.shape]
    return np.zeros(shape, encoder.input.dtype)


def _check_encoder_input(array: npt.NDArray[Any] | None, spec: EngineSpec) -> None:
    encoder = spec.encoder
    if encoder is None or array is None:
        if (encoder is None) == (array is None):
            return
        if encoder is None:
            raise BadInput(f"engine {spec.name!r} has no encoder; a request to it has a prompt only")
        raise BadInput(
            f"engine {spec.name!r} is an encoder-decoder; a request to it needs the encoder's input "
            f"{encoder.input.name!r}"
        )
    if array.dtype.name != encoder.input.dtype:
        raise BadInput(
            f"the encoder's input {encoder.input.name!r} has the type {array.dtype.name}; it must be "
            f"{encoder.input.dtype}"
        )
    encoder.num_positions(array.shape)
    if array.dtype.kind == "f":
        if not np.isfinite(array).all():
            raise BadInput(f"the encoder's input {encoder.input.name!r} holds NaN or infinity")
    elif not 0 <= array.min() <= array.max() < spec.vocab_size:
        raise BadInput(
            f"the encoder's input {encoder.input.name!r} names a token that is not in the vocabulary; ids are 0 to "
            f"{spec.vocab_size - 1}"
        )
