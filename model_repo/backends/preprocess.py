"""Triton model `<model>_preprocess`: reads and checks a request, applies the chat template, tokenizes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ..runtime.contract import EncoderSpec
from ..runtime.errors import BadInput
from ..runtime.tokenizer import Tokenizer
from . import startup
from .calls import Call, parse
from .interface import AUDIO
from .tensors import arrays, error_response, response, strings
from .text import tokenized


class TritonPythonModel:
    """Stateless but for the tokenizer."""

    def initialize(self, args: dict[str, str]) -> None:
        """Loads the tokenizer. Raises BadInput when folder or environment are not as emitted."""
        folder = startup.version_folder(args)
        startup.check(folder)
        config = json.loads(args["model_config"])
        self.tokenizer = Tokenizer.load(folder / "tokenizer.json")
        self.max_length = int(startup.parameter(config, "max_length"))
        self.default_max_tokens = int(startup.parameter(config, "default_max_tokens"))
        self.default_timeout = float(startup.parameter(config, "request_timeout_seconds"))
        encoder = startup.optional_parameter(config, "encoder")
        self.encoder = None if encoder is None else EncoderSpec.from_dict(json.loads(encoder))
        tokenized(self.tokenizer, "warm up", self.max_length)

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response a request, each with its own error."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        try:
            parameters = json.loads(request.parameters() or "{}")
            if self.encoder is not None:
                return self._for_encoder(request, self.encoder)
            call = parse(arrays(request), parameters, self.default_max_tokens)
            return response(self.handed_on(call, self.prompt_ids(call), request))
        except BadInput as error:
            return error_response(error)

    def prompt_ids(self, call: Call) -> list[int]:
        """The tokens of a request's text or messages. Raises BadInput."""
        if call.messages is None:
            return tokenized(self.tokenizer, call.text or "", self.max_length)
        text = self.tokenizer.render(call.messages)  # the template writes special tokens itself
        return tokenized(self.tokenizer, text, self.max_length, add_special_tokens=False)

    def handed_on(self, call: Call, input_ids: Sequence[int], request: Any) -> dict[str, npt.NDArray[Any]]:
        """`interface.PREPROCESSED` by name."""
        return {
            "input_ids": np.asarray(input_ids, dtype=np.int32),
            "request": strings([self._request(call, request)], (1,)),
        }

    def _for_encoder(self, request: Any, encoder: EncoderSpec) -> Any:
        """The request's text or sound for the encoder, and what the completion begins with. Raises BadInput."""
        inputs, hears = arrays(request), encoder.log_mel is not None
        parameters = json.loads(request.parameters() or "{}")
        call = parse(inputs, parameters, self.default_max_tokens, needs_text=not hears)
        if call.messages is not None:
            raise BadInput("messages are for chat models; this is an encoder-decoder: send text_input")
        prompt = list(encoder.prompt_ids)
        if encoder.log_mel is None:
            text = tokenized(self.tokenizer, call.text or "", encoder.max_positions)
            source = np.array(text, encoder.input.dtype)
            beginning = call.beginning
        else:
            if AUDIO.name not in inputs:
                raise BadInput(f"send {AUDIO.name}: {AUDIO.meaning} ({encoder.log_mel.sampling_rate} Hz)")
            source = encoder.log_mel(inputs[AUDIO.name].reshape(-1))[0]
            beginning = call.text
        if beginning is not None:
            prompt = tokenized(self.tokenizer, beginning, self.max_length, add_special_tokens=False)
        return response(
            {**self.handed_on(replace(call, echo=False), prompt, request), "encoder_input": source}
        )

    def _request(self, call: Call, request: Any) -> str:
        timeout = call.timeout_seconds or self.default_timeout
        microseconds = request.timeout()
        if microseconds:
            timeout = min(timeout, microseconds / 1e6)
        return json.dumps(
            {
                "sampling": asdict(call.sampling),
                "stream": call.stream,
                "echo": call.text if call.echo else "",
                "timeout_seconds": timeout,
            }
        )
