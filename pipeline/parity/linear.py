"""Runs a decoder's graph of the linear contract on prompts: chunks of one slot, then single tokens of all slots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from model_repo.runtime.contract import LOGITS

from .decoder import CHUNK, DECODED

Caches = dict[str, npt.NDArray[np.generic]]
RUBBISH = 7.0
"""What slots hold before anything is written there: where a mask is wrong, it shows."""


class Session(Protocol):
    """As much of a session of ONNX Runtime as a run needs."""

    def get_inputs(self) -> Sequence[Any]:
        """Names, types and shapes of the inputs."""

    def run(self, names: Sequence[str], feeds: Mapping[str, npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
        """The outputs called `names`."""


def linear_feeds(
    session: ort.InferenceSession, prompts: Sequence[Sequence[int]]
) -> list[dict[str, npt.NDArray[Any]]]:
    """What each step of `run_linear` takes, the slots' caches among it, as the steps before it leave them."""
    recorder = _Recorder(session)
    run_linear(recorder, prompts)
    return recorder.feeds


class _Recorder:
    """A session that keeps what it is given."""

    def __init__(self, session: ort.InferenceSession) -> None:
        self._session = session
        self.feeds: list[dict[str, npt.NDArray[Any]]] = []

    def get_inputs(self) -> Sequence[Any]:
        found: Sequence[Any] = self._session.get_inputs()
        return found

    def run(self, names: Sequence[str], feeds: Mapping[str, npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
        self.feeds.append(dict(feeds))
        found: list[npt.NDArray[Any]] = self._session.run(names, feeds)
        return found


def run_linear(session: Session, prompts: Sequence[Sequence[int]]) -> list[npt.NDArray[np.float32]]:
    """Logits of every token of every prompt: one float32 [len(prompt), vocab] each; a prompt has a slot of its own.

    A prompt's last tokens come one a step, together with those of other prompts, whose lengths differ.
    """
    slots = [_fresh(session) for _ in prompts]
    results: list[list[npt.NDArray[np.float32]]] = [[] for _ in prompts]
    begins = [max(1, len(prompt) - DECODED) for prompt in prompts]
    for place, prompt in enumerate(prompts):
        for start in range(0, begins[place], CHUNK):
            chunk = prompt[start : min(start + CHUNK, begins[place])]
            (rows,) = _step(session, [chunk], [start], [slots[place]])
            results[place].append(rows)
    for offset in range(DECODED):
        going = [place for place, prompt in enumerate(prompts) if begins[place] + offset < len(prompt)]
        if not going:
            break
        past = [begins[place] + offset for place in going]
        ids = [[prompts[place][at]] for place, at in zip(going, past, strict=True)]
        found = _step(session, ids, past, [slots[place] for place in going])
        for place, rows in zip(going, found, strict=True):
            results[place].append(rows)
    return [np.concatenate(rows) for rows in results]


def _fresh(session: Session) -> Caches:
    """One slot of each cache, full of rubbish: [kv_heads, max_length, dim]."""
    kinds = {"tensor(float16)": np.float16, "tensor(float)": np.float32}
    return {
        value.name: np.full(value.shape[1:], RUBBISH, kinds[value.type])
        for value in session.get_inputs()
        if value.name.startswith(("key_cache_", "value_cache_"))
    }


def _step(
    session: Session,
    ids: Sequence[Sequence[int]],
    past: Sequence[int],
    slots: Sequence[Caches],
) -> list[npt.NDArray[np.float32]]:
    """Logits [length, vocab] of each of `ids`, which are equally long; writes the new keys and values to the slots."""
    tokens = np.array(ids, np.int32)
    feeds = {
        "input_ids": tokens,
        "past_lens": np.array(past, np.int32),
        "logits_indices": np.arange(tokens.size, dtype=np.int32),
        **{name: np.stack([slot[name] for slot in slots]) for name in slots[0]},
    }
    names = [LOGITS.name, *(name.replace("cache_", "cache_out_") for name in slots[0])]
    logits, *written = session.run(names, feeds)
    for name, cache in zip(slots[0], written, strict=True):
        for slot, rows in zip(slots, cache, strict=True):
            slot[name] = rows
    found: npt.NDArray[np.float32] = logits.reshape(*tokens.shape, -1)
    return list(found)
