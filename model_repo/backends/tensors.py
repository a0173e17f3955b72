"""Reading and writing Triton tensors in Python models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import triton_python_backend_utils as pb_utils

from ..runtime.errors import BadInput, Busy


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


def error_response(error: Exception) -> Any:
    """A response that tells one client what was wrong: its own fault, a full queue, or ours."""
    if isinstance(error, BadInput):
        code = pb_utils.TritonError.INVALID_ARG
    elif isinstance(error, Busy):
        code = pb_utils.TritonError.UNAVAILABLE
    else:
        code = pb_utils.TritonError.INTERNAL
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error), code))
