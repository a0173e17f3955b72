"""A server in the foreground: it says how to be called, and Ctrl-C drains and stops it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from model_repo.runtime.errors import BadInput

from .serve import POLL_SECONDS, Server, ServerFailed, free_or, interrupt_on_sigterm, server, tail

STANDARD_PORTS = (8000, 8001, 8002)
DRAIN_SECONDS = 30

DECODER = """
{model}, with curl:

curl -sN {url}/v2/models/{model}/generate_stream -d '{{"text_input": "The old man", "max_tokens": 32, "stream": true}}'

{model}, with tritonclient:

import queue
import numpy as np
import tritonclient.grpc as triton

def tensor(name, dtype, values):
    made = triton.InferInput(name, [len(values)], dtype)
    made.set_data_from_numpy(np.array(values, dtype=object if dtype == "BYTES" else bool))
    return made

answers = queue.Queue()
client = triton.InferenceServerClient("{grpc}")
client.start_stream(lambda result, error: answers.put((result, error)))
inputs = [tensor("text_input", "BYTES", [b"The old man"]), tensor("stream", "BOOL", [True])]
client.async_stream_infer("{model}", inputs)
finished = False
while not finished:
    result, error = answers.get()
    if error:
        raise error
    print(result.as_numpy("text_output")[0].decode(), end="", flush=True)
    finished = bool(result.as_numpy("finish_reason")[0])
client.stop_stream()
"""

ENCODER = """
{model}, with curl:

curl -s {url}/v2/models/{model}/generate -d '{{"text_input": "The old man and the sea"}}'

{model}, with tritonclient:

import numpy as np
import tritonclient.grpc as triton

texts = np.array([[b"The old man"], [b"and the sea"]], dtype=object)
text_input = triton.InferInput("text_input", list(texts.shape), "BYTES")
text_input.set_data_from_numpy(texts)
result = triton.InferenceServerClient("{grpc}").infer("{model}", [text_input])
print(result.as_numpy("embedding").shape)
"""


def served_models(repository: Path) -> dict[str, str]:
    """Models of an emitted repository that apps call -> 'decoder' or 'encoder'. Raises BadInput without any."""
    names = {path.parent.name for path in repository.glob("*/config.pbtxt")}
    kinds = {"decoder": "_generate", "encoder": "_encoder"}
    models = {
        name: kind for name in sorted(names) for kind, suffix in kinds.items() if f"{name}{suffix}" in names
    }
    if not models:
        raise BadInput(
            f"{repository} holds no model that slipway emitted; `slipway emit` writes a repository"
        )
    return models


def how_to_call(running: Server, models: dict[str, str]) -> str:
    """URLs, and for each model a curl line and a tritonclient snippet that work as they are."""
    lines = f"HTTP {running.url}  gRPC {running.grpc}  metrics {running.metrics_url}  log {running.log}\n"
    for model, kind in models.items():
        snippet = DECODER if kind == "decoder" else ENCODER
        lines += snippet.format(model=model, url=running.url, grpc=running.grpc)
    return lines


def serve_until_interrupted(repository: Path, say: Callable[[str], None] = print) -> None:
    """Serves until Ctrl-C or SIGTERM; requests that run then have DRAIN_SECONDS to finish.

    Listens on this machine only, on Triton's usual ports where they are free. Raises BadInput without a
    repository or a tritonserver, ServerFailed when the server does not come up or ends by itself.
    """
    models = served_models(repository)
    interrupt_on_sigterm()
    try:
        with server(repository, ports=free_or(STANDARD_PORTS), drain_seconds=DRAIN_SECONDS) as running:
            say(how_to_call(running, models))
            say("Serving. Ctrl-C drains and stops.")
            while running.alive():
                time.sleep(POLL_SECONDS)
            raise ServerFailed(f"tritonserver ended by itself{tail(running.log)}")
    except KeyboardInterrupt:
        say("Stopped.")
