"""Reading and writing Triton tensors in Python models."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import triton_python_backend_utils as pb_utils

from ..runtime.errors import BadInput, Busy


def check_round_trip() -> None:
    """Raises BadInput when tensors do not come through whole.

    A tritonserver whose Python backend was compiled for numpy 1 misreads the arrays of numpy 2: every tensor that
    a model returns has size 0, without a word.
    """
    sent = np.arange(1, 4, dtype=np.int32)
    received = pb_utils.Tensor.from_dlpack("probe", pb_utils.Tensor("probe", sent).to_dlpack()).as_numpy()
    if not np.array_equal(sent, received):
        raise BadInput(
            f"tensors arrive damaged: {sent.tolist()} came back as {received.tolist()}. This tritonserver's Python "
            f"backend does not fit numpy {np.__version__}; install 'numpy<2' in the server's Python environment"
        )


def arrays(request: Any) -> dict[str, npt.NDArray[Any]]:
    """The request's inputs as numpy arrays by name."""
    return {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}


def strings(values: Sequence[str | bytes], shape: tuple[int, ...]) -> npt.NDArray[np.object_]:
    """An array of UTF-8 bytes for a STRING tensor."""
    array = np.empty(len(values), dtype=np.object_)
    for index, value in enumerate(values):
        array[index] = value.encode() if isinstance(value, str) else value
    return array.reshape(shape)


def response(outputs: Mapping[str, npt.NDArray[Any]]) -> Any:
    """A response with these outputs."""
    return pb_utils.InferenceResponse([pb_utils.Tensor(name, array) for name, array in outputs.items()])


CODES: Mapping[str, str] = {
    "INVALID_ARGUMENT": "INVALID_ARG",
    "UNAVAILABLE": "UNAVAILABLE",
    "INTERNAL": "INTERNAL",
}
"""Name of a code in messages -> its name in the Python backend."""
_TOLD = re.compile(rf"({'|'.join(CODES)}): (.*)", re.DOTALL)


def error_response(error: Exception) -> Any:
    """A response that tells one client what was wrong: its own fault, a full queue, or ours.

    The message begins with the code's name: streams and calls inside the server deliver no code, only the text.
    """
    name = "INVALID_ARGUMENT" if isinstance(error, BadInput) else "INTERNAL"
    if isinstance(error, Busy):
        name = "UNAVAILABLE"
    return _refusal(name, str(error))


def passed_on(message: str) -> Any:
    """A response with the error of a model that was called inside the server, its code restored."""
    told = _TOLD.search(message)
    name = told[1] if told else "INTERNAL"
    text = told[2] if told else message
    return _refusal(name, text)


def _refusal(name: str, text: str) -> Any:
    code = getattr(pb_utils.TritonError, CODES[name])
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(f"{name}: {text}", code))
