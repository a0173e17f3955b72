"""Runs an encoder's graph on texts: alone and as one padded batch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import onnxruntime as ort


def run_encoder(
    session: ort.InferenceSession, texts: Sequence[Sequence[int]]
) -> list[npt.NDArray[np.float32]]:
    """Embeddings, float32 [2, hidden] a text: the first as part of one padded batch, the second alone."""
    inputs = [value.name for value in session.get_inputs()]
    together = _embed(session, inputs, texts)
    return [np.stack([together[row], _embed(session, inputs, [text])[0]]) for row, text in enumerate(texts)]


def padded(texts: Sequence[Sequence[int]]) -> dict[str, npt.NDArray[np.int64]]:
    """int64 [batch, longest] each: ids padded with 0, the mask that is 1 for tokens, and token types 0."""
    shape = (len(texts), max(len(text) for text in texts))
    ids, mask = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    for row, text in enumerate(texts):
        ids[row, : len(text)] = text
        mask[row, : len(text)] = 1
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros(shape, np.int64)}


def _embed(
    session: ort.InferenceSession, inputs: Sequence[str], texts: Sequence[Sequence[int]]
) -> npt.NDArray[np.float32]:
    batch = padded(texts)
    (embeddings,) = session.run(None, {name: batch[name] for name in inputs})
    result: npt.NDArray[np.float32] = embeddings
    return result
