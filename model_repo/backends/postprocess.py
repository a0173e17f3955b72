"""Triton model `<model>_postprocess`: from the loop's packed pieces to the outputs that apps know.

Keeps nothing of a request; it only notes which pieces came through, until the loop asks (see `liveness`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import triton_python_backend_utils as pb_utils

from . import startup
from .wire import Piece, unpack

WRITERS: Mapping[str, Callable[[Piece], npt.NDArray[Any]]] = {
    "text_output": lambda piece: np.array([[piece.text]], dtype=np.object_),
    "finish_reason": lambda piece: np.array([[piece.finish_reason]], dtype=np.object_),
    "num_input_tokens": lambda piece: np.array([[piece.num_prompt_tokens]], dtype=np.uint32),
    "num_output_tokens": lambda piece: np.array([[piece.num_new_tokens]], dtype=np.uint32),
    "cumulative_logprob": lambda piece: np.array([[piece.cumulative_logprob]], dtype=np.float32),
    "logprobs": lambda piece: np.array([[piece.logprobs]], dtype=np.object_),
}
"""Output name -> its tensor, [1, 1]."""


class TritonPythonModel:
    """One instance: responses of a stream keep their order. Pieces that wait together are one call."""

    def initialize(self, args: dict[str, str]) -> None:
        """Raises BadInput when the version folder or the environment is not as emitted."""
        startup.check(startup.version_folder(args))
        self.seen: dict[int, int] = {}

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response a request, in order."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        (packed,) = request.inputs()
        piece = unpack(packed.as_numpy())
        if piece is None:
            return self._report()
        self.seen[piece.stream] = piece.ordinal
        wanted = request.requested_output_names()
        return pb_utils.InferenceResponse(
            [pb_utils.Tensor(name, write(piece)) for name, write in WRITERS.items() if name in wanted]
        )

    def _report(self) -> Any:
        """`seen` since the last report, uint64 [1, 2 + 2n]: 0, 0, stream, ordinal, stream, ordinal, ..."""
        flat = [0, 0, *(number for pair in self.seen.items() for number in pair)]
        self.seen.clear()
        return pb_utils.InferenceResponse([pb_utils.Tensor("seen", np.array([flat], dtype=np.uint64))])
