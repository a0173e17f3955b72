"""Triton model `<model>_unary`: one request, one response with the whole text, for infer() and /generate.

Asks the ensemble inside the server with stream=false, so weights are loaded once. Requests wait on an event
loop; none of them holds up another.
"""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from . import startup
from .interface import DECODER_OUTPUTS
from .tensors import error_response, passed_on

FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL


class TritonPythonModel:
    """A door to the ensemble for callers that want one answer."""

    def initialize(self, args: dict[str, str]) -> None:
        """Starts the event loop. Raises BadInput when folder or environment are not as emitted."""
        startup.check(startup.version_folder(args))
        self.ensemble = startup.parameter(json.loads(args["model_config"]), "ensemble")
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, name="slipway-unary", daemon=True)
        self.thread.start()

    def execute(self, requests: list[Any]) -> None:
        """Forwards each request and returns; the answer is sent when it is there."""
        for request in requests:
            asyncio.run_coroutine_threadsafe(self._answer(request, request.get_response_sender()), self.loop)

    def finalize(self) -> None:
        """Ends the event loop; Triton calls this when no request is left."""
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()

    async def _answer(self, request: Any, sender: Any) -> None:
        try:
            answer = await self._asked(request)
        except Exception as error:
            answer = error_response(error)
        sender.send(answer, flags=FINAL)

    async def _asked(self, request: Any) -> Any:
        inputs = [tensor for tensor in request.inputs() if tensor.name() != "stream"]
        inputs.append(pb_utils.Tensor("stream", np.array([False])))
        inner = pb_utils.InferenceRequest(
            model_name=self.ensemble,
            request_id=request.request_id(),
            requested_output_names=[field.name for field in DECODER_OUTPUTS],
            inputs=inputs,
            timeout=request.timeout(),
        )
        for answer in await inner.async_exec(decoupled=True):
            if answer.has_error():
                return passed_on(answer.error().message())
            if answer.output_tensors():
                return answer
        raise RuntimeError(f"{self.ensemble} sent no response")
