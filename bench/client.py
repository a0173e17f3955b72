"""A streaming client in a process of its own: `python -m bench.client URL MODEL ...` prints JSON."""

from __future__ import annotations

import argparse
import json
import resource
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc as grpc

TIMEOUT_SECONDS = 600


class Stream:
    """One gRPC stream with one request: when its responses came and how many tokens each held."""

    def __init__(self, url: str, model: str, prompt: str, new_tokens: int) -> None:
        self.arrivals: list[tuple[float, int]] = []
        self.error: str | None = None
        self.done = threading.Event()
        self._client = grpc.InferenceServerClient(url)
        self._client.start_stream(self._take)
        self._model = model
        parameters = {"max_tokens": new_tokens, "temperature": 0.0, "ignore_eos": True}
        self._inputs = [
            _tensor("text_input", "BYTES", np.array([prompt.encode()], dtype=object)),
            _tensor("stream", "BOOL", np.array([True])),
            _tensor(
                "sampling_parameters", "BYTES", np.array([json.dumps(parameters).encode()], dtype=object)
            ),
        ]

    def start(self) -> None:
        self._client.async_stream_infer(self._model, self._inputs, enable_empty_final_response=True)

    def close(self) -> None:
        self._client.stop_stream()
        self._client.close()

    def _take(self, result: Any, error: Any) -> None:
        now = time.perf_counter()
        if error is not None:
            self.error = str(error)
            self.done.set()
            return
        count = result.as_numpy("num_output_tokens")
        if count is not None:
            self.arrivals.append((now, int(count.reshape(-1)[0])))
        if result.get_response().parameters["triton_final_response"].bool_param:
            self.done.set()


def _tensor(name: str, kind: str, values: Any) -> Any:
    tensor = grpc.InferInput(name, list(values.shape), kind)
    tensor.set_data_from_numpy(values)
    return tensor


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("model")
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--new-tokens", type=int, default=96)
    parser.add_argument("--prompts", type=Path, required=True, help="file: a JSON list of texts")
    options = parser.parse_args()
    prompts = json.loads(options.prompts.read_text(encoding="utf-8"))
    streams = [
        Stream(options.url, options.model, prompt, options.new_tokens)
        for prompt in prompts[: options.streams]
    ]
    start = time.perf_counter()
    cpu_before = time.process_time()
    for stream in streams:
        stream.start()
    for stream in streams:
        if not stream.done.wait(TIMEOUT_SECONDS) or stream.error:
            raise SystemExit(f"a stream failed: {stream.error or 'no end in time'}")
    cpu = time.process_time() - cpu_before
    seconds = time.perf_counter() - start
    for stream in streams:
        stream.close()
    # While all streams generate: from the last one's first token to the first one's end.
    begin = max(stream.arrivals[0][0] for stream in streams)
    end = min(stream.arrivals[-1][0] for stream in streams)
    tokens = sum(count for stream in streams for when, count in stream.arrivals if begin < when <= end)
    figures = {
        "tokens_per_second": tokens / (end - begin),
        "seconds": seconds,
        "time_to_first_token_seconds": sorted(stream.arrivals[0][0] - start for stream in streams),
        "responses": sum(len(stream.arrivals) for stream in streams),
        "tokens": sum(count for stream in streams for _, count in stream.arrivals),
        "client_cpu_seconds": cpu,
        "client_peak_megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
