"""The torch module itself, run on the parity inputs one by one: no packing, no padding, no cache."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from model_repo.runtime.prompt_embeds import PIXELS
from pipeline.export.positions import positions_given
from pipeline.export.sentence import dense_modules

from .cross import encoder_arrays
from .embeds import pixel_arrays
from .encoder import rows_of, token_types

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from model_repo.runtime.contract import ImageEncoderSpec
    from pipeline.sources import Source
    from pipeline.sources.base import Pooling


def run_module(
    source: Source, inputs: Sequence[Sequence[int]], images: ImageEncoderSpec | None = None
) -> list[npt.NDArray[np.float32]]:
    """What `run_decoder` or `run_encoder` should give for these token ids, in float32.

    Loads the module and lets go of it: an export prepares its module in place, so that one is no reference.
    """
    return run_loaded(source.load(), source, inputs, images)


def run_loaded(
    model: PreTrainedModel,
    source: Source,
    inputs: Sequence[Sequence[int]],
    images: ImageEncoderSpec | None = None,
) -> list[npt.NDArray[np.float32]]:
    """`run_module` on a module that is loaded already. `images`: what the prompts hold beside text."""
    with torch.inference_mode():
        if source.encoder is not None:
            arrays = encoder_arrays(source.encoder, source.vocab_size)
            name = source.encoder.input.name
            return [
                _attending_logits(model, ids, name, arrays[place % len(arrays)])
                for place, ids in enumerate(inputs)
            ]
        if images is not None:
            return [_seeing_logits(model, ids, place, images) for place, ids in enumerate(inputs)]
        if source.kind == "decoder":
            return [_logits(model, ids) for ids in inputs]
        if source.head.kind == "embedding":
            return [_embedding(model, ids, source) for ids in inputs]
        return [_head_logits(model, ids) for ids in inputs]


def _logits(model: PreTrainedModel, ids: Sequence[int]) -> npt.NDArray[np.float32]:
    """float32 [len(ids), vocab]."""
    logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits
    return np.asarray(logits[0].float().numpy(), np.float32)


def _seeing_logits(
    model: PreTrainedModel, ids: Sequence[int], place: int, images: ImageEncoderSpec
) -> npt.NDArray[np.float32]:
    """float32 [len(ids), vocab] of prompt number `place`, whose placeholders stand for the images of `pixel_arrays`."""
    arrays = pixel_arrays(ids, place, images)
    seen = {PIXELS: torch.from_numpy(np.concatenate(arrays))} if arrays else {}
    logits = model(input_ids=torch.tensor([ids]), use_cache=False, **seen).logits
    return np.asarray(logits[0].float().numpy(), np.float32)


def _attending_logits(
    model: PreTrainedModel, ids: Sequence[int], name: str, array: npt.NDArray[Any]
) -> npt.NDArray[np.float32]:
    """float32 [len(ids), vocab] of an encoder-decoder whose encoder gets `array` as its input `name`.

    Every token counts, as it does where tokens come one by one: without a cache, models of the M2M-100 kind skip
    padding, and the inputs are random.
    """
    encoded = model.get_encoder()(**{name: torch.from_numpy(array)})
    with positions_given(model, torch.arange(len(ids))):
        logits = model(encoder_outputs=encoded, decoder_input_ids=torch.tensor([ids]), use_cache=False).logits
    return np.asarray(logits[0].float().numpy(), np.float32)


def _embedding(model: PreTrainedModel, ids: Sequence[int], source: Source) -> npt.NDArray[np.float32]:
    """float32 [2, width], both rows the same: `run_encoder` gives one row batched and one alone."""
    hidden = model(input_ids=torch.tensor([ids]), **_types(model, ids)).last_hidden_state[0].double()
    pooled = _POOLED[source.pooling](hidden)
    for layer in dense_modules(source.dense):
        pooled = layer.double()(pooled)
    if source.normalize:
        pooled = pooled / pooled.norm()
    return np.stack([pooled.float().numpy()] * 2)


_POOLED: Mapping[Pooling, Callable[[torch.Tensor], torch.Tensor]] = {
    "mean": lambda hidden: hidden.mean(dim=0),
    "cls": lambda hidden: hidden[0],
    "lasttoken": lambda hidden: hidden[-1],
    "max": lambda hidden: hidden.max(dim=0).values,
    "mean_sqrt_len": lambda hidden: hidden.sum(dim=0) / len(hidden) ** 0.5,
    "weightedmean": lambda hidden: (
        torch.arange(1, len(hidden) + 1).double() @ hidden / sum(range(len(hidden) + 1))
    ),
}
"""One text's hidden states [length, hidden] -> [hidden]; no padding, so no masks."""


def _head_logits(model: PreTrainedModel, ids: Sequence[int]) -> npt.NDArray[np.float32]:
    """As `rows_of` lays them out: what `run_encoder` gives batched and what it gives alone are the same here."""
    logits = model(input_ids=torch.tensor([ids]), **_types(model, ids)).logits[0].float().numpy()
    return rows_of([logits] * 2, len(ids), logits=True)


def _types(model: PreTrainedModel, ids: Sequence[int]) -> dict[str, torch.Tensor]:
    """Token types as `padded` gives them, where the exported graph takes any."""
    from pipeline.export.encoder import encoder_inputs

    if "token_type_ids" not in encoder_inputs(model):
        return {}
    return {"token_type_ids": torch.tensor([token_types(len(ids)).tolist()])}
