"""Triton model `<model>_postprocess`: from the loop's packed pieces to the outputs that apps know.

Keeps nothing of a request. It also finds clients that are gone: tritonserver tells an ensemble's running step nothing
when a client disconnects, it only marks the steps that follow as cancelled. So some pieces ask to be looked at, and
the loop fetches what was found.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import triton_python_backend_utils as pb_utils

from . import startup
from .interface import GONE
from .wire import Piece, unpack

WRITERS: Mapping[str, Callable[[Piece], npt.NDArray[Any]]] = {
    "text_output": lambda piece: np.array([piece.text], dtype=np.object_),
    "finish_reason": lambda piece: np.array([piece.finish_reason], dtype=np.object_),
    "num_input_tokens": lambda piece: np.array([piece.num_prompt_tokens], dtype=np.uint32),
    "num_output_tokens": lambda piece: np.array([piece.num_new_tokens], dtype=np.uint32),
    "cumulative_logprob": lambda piece: np.array([piece.cumulative_logprob], dtype=np.float32),
    "logprobs": lambda piece: np.array([piece.logprobs], dtype=np.object_),
}
"""Output name -> its tensor, [1]."""


class TritonPythonModel:
    """One instance and no batching: pieces keep their order, and those of clients that left come here too.

    (A dynamic batcher drops requests of clients that left; the ensemble then never ends in tritonserver 2.51.)
    """

    def initialize(self, args: dict[str, str]) -> None:
        """Raises BadInput when the version folder or the environment is not as emitted."""
        startup.check(startup.version_folder(args))
        self.gone: set[int] = set()

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response a request, in order."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        (packed,) = request.inputs()
        piece = unpack(packed.as_numpy())
        if piece is None:
            return self._report()
        if piece.check and request.is_cancelled():
            self.gone.add(piece.stream)
        wanted = request.requested_output_names()
        return pb_utils.InferenceResponse(
            [pb_utils.Tensor(name, write(piece)) for name, write in WRITERS.items() if name in wanted]
        )

    def _report(self) -> Any:
        """Streams whose client is gone, since the last report: uint64 [1 + n], the first one is 0."""
        gone = np.array([0, *self.gone], dtype=np.uint64)
        self.gone.clear()
        return pb_utils.InferenceResponse([pb_utils.Tensor(GONE.name, gone)])
