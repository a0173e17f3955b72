"""Runs an encoder's graph on texts: alone and as one padded batch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

LOGIT_SCALE = 4.0
"""About as large as logits are: a further column of rows that are logits. Without it the cosine, which sees only
directions, would pass any logit of a single label that has the right sign."""


def run_encoder(
    session: ort.InferenceSession, texts: Sequence[Sequence[int]]
) -> list[npt.NDArray[np.float32]]:
    """What the graph gives for each text as part of one padded batch, then alone, as `rows_of` lays it out."""
    together = _run(session, texts)
    logits = session.get_outputs()[0].name == "logits"
    return [
        rows_of([together[row], _run(session, [text])[0]], len(text), logits)
        for row, text in enumerate(texts)
    ]


def rows_of(results: Sequence[npt.NDArray[np.float32]], tokens: int, logits: bool) -> npt.NDArray[np.float32]:
    """The results for one text of `tokens` tokens as rows for a comparison: float32 [rows, width].

    A result is an embedding [hidden], logits [labels], or logits [length, labels] of which the text's own rows count;
    logits get LOGIT_SCALE as a further column.
    """
    rows = np.concatenate([result[:tokens] if result.ndim == 2 else result[None] for result in results])
    if not logits:
        return rows
    return np.concatenate([rows, np.full((len(rows), 1), LOGIT_SCALE, np.float32)], axis=1)


def padded(texts: Sequence[Sequence[int]]) -> dict[str, npt.NDArray[np.int64]]:
    """int64 [batch, longest] each: ids padded with 0, the mask that is 1 for tokens, and token types."""
    shape = (len(texts), max(len(text) for text in texts))
    ids, mask, types = (np.zeros(shape, np.int64) for _ in range(3))
    for row, text in enumerate(texts):
        ids[row, : len(text)] = text
        mask[row, : len(text)] = 1
        types[row, : len(text)] = token_types(len(text))
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}


def token_types(tokens: int) -> npt.NDArray[np.int64]:
    """Token types of a parity text: its second half is of type 1, so that a lost type embedding is seen."""
    return (np.arange(tokens) >= (tokens + 1) // 2).astype(np.int64)


def _run(session: ort.InferenceSession, texts: Sequence[Sequence[int]]) -> npt.NDArray[np.float32]:
    batch = padded(texts)
    (output,) = session.run(None, {value.name: batch[value.name] for value in session.get_inputs()})
    result: npt.NDArray[np.float32] = output
    return result
