"""Calls of a served model over gRPC with tritonclient: what apps do, for the demo, tests and benchmarks."""

from __future__ import annotations

import queue
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import tritonclient.grpc as grpcclient
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from model_repo.backends.interface import DECODER_INPUTS, IMAGES

DTYPES: dict[str, Any] = {
    "STRING": np.object_,
    "BOOL": np.bool_,
    "INT32": np.int32,
    "UINT64": np.uint64,
    "FP32": np.float32,
}


@dataclass(frozen=True)
class Chunk:
    """One response. `seconds` passed since the request was sent; counts as in the model's outputs."""

    text: str
    finish_reason: str
    num_input_tokens: int
    num_output_tokens: int
    seconds: float


def tensor(name: str, array: npt.NDArray[Any]) -> grpcclient.InferInput:
    """An input tensor that holds `array`."""
    made = grpcclient.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
    made.set_data_from_numpy(array)
    return made


def decoder_inputs(**values: Any) -> list[grpcclient.InferInput]:
    """Input tensors of a decoder from plain values, by name; lists for what takes several."""
    kinds = {field.name: field.kind for field in (*DECODER_INPUTS, IMAGES)}
    inputs = []
    for name, value in values.items():
        items = value if isinstance(value, list) else [value]
        if kinds[name] == "STRING":
            items = [item.encode() if isinstance(item, str) else item for item in items]
        inputs.append(tensor(name, np.array(items, dtype=DTYPES[kinds[name]])))
    return inputs


def stream(url: str, model: str, request_id: str = "", **values: Any) -> Iterator[Chunk]:
    """Streams a completion; `values` are the model's inputs. Closing the iterator cancels the request.

    Raises InferenceServerException for what the server refuses.
    """
    answers: queue.Queue[tuple[Any, InferenceServerException | None]] = queue.Queue()
    with grpcclient.InferenceServerClient(url) as client:
        client.start_stream(lambda result, error: answers.put((result, error)))
        finished = False
        try:
            inputs = decoder_inputs(stream=True, **values)
            begin = time.perf_counter()
            client.async_stream_infer(model, inputs, request_id=request_id)
            while not finished:
                result, error = answers.get()
                if error is not None:
                    finished = True
                    raise error
                chunk = _chunk(result, begin)
                finished = bool(chunk.finish_reason)
                yield chunk
        finally:
            client.stop_stream(cancel_requests=not finished)


def complete(url: str, model: str, **values: Any) -> Chunk:
    """One whole completion in one response, from a decoder's unary form. Raises InferenceServerException."""
    with grpcclient.InferenceServerClient(url) as client:
        begin = time.perf_counter()
        return _chunk(client.infer(model, decoder_inputs(**values)), begin)


def embed(url: str, model: str, texts: Sequence[str]) -> npt.NDArray[np.float32]:
    """Embeddings float32 [texts, hidden]. Raises InferenceServerException."""
    array = np.array([[text.encode()] for text in texts], dtype=np.object_)
    with grpcclient.InferenceServerClient(url) as client:
        return np.asarray(client.infer(model, [tensor("text_input", array)]).as_numpy("embedding"))


def _chunk(result: Any, begin: float) -> Chunk:
    return Chunk(
        text=result.as_numpy("text_output")[0].decode(),
        finish_reason=result.as_numpy("finish_reason")[0].decode(),
        num_input_tokens=int(result.as_numpy("num_input_tokens")[0]),
        num_output_tokens=int(result.as_numpy("num_output_tokens")[0]),
        seconds=time.perf_counter() - begin,
    )
