"""A server in the foreground: it says how to be called, and Ctrl-C drains and stops it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from model_repo.backends.interface import label_outputs
from model_repo.emit.files import ENGINE, VERSION
from model_repo.emit.images import ENGINE_SUFFIX, PREPROCESS_SUFFIX, served_outputs
from model_repo.runtime.contract import Head
from model_repo.runtime.engine_files import ENGINE_MANIFEST, EXAMPLE
from model_repo.runtime.errors import BadInput
from model_repo.runtime.manifest import Manifest

from .serve import POLL_SECONDS, Server, ServerFailed, free_or, interrupt_on_sigterm, server, tail

STANDARD_PORTS = (8000, 8001, 8002)
DRAIN_SECONDS = 30

AUDIO = """
{model}, with tritonclient (the audio is one channel at {rate} Hz, between -1 and 1):

import numpy as np
import tritonclient.grpc as triton

samples = np.zeros({rate}, np.float32)
audio = triton.InferInput("audio", [len(samples)], "FP32")
audio.set_data_from_numpy(samples)
result = triton.InferenceServerClient("{grpc}").infer("{model}_unary", [audio])
print(result.as_numpy("text_output")[0].decode())
"""

SEES = """
{model}, with tritonclient (each {placeholder} in the text is the place of an image):

import numpy as np
import tritonclient.grpc as triton

files = ["picture.jpg"]
text = triton.InferInput("text_input", [1], "BYTES")
text.set_data_from_numpy(np.array([b"{placeholder} The old man"], dtype=object))
images = triton.InferInput("image", [len(files)], "BYTES")
images.set_data_from_numpy(np.array([open(file, "rb").read() for file in files], dtype=object))
result = triton.InferenceServerClient("{grpc}").infer("{model}_unary", [text, images])
print(result.as_numpy("text_output")[0].decode())
"""

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
client.stop_stream(cancel_requests=True)  # the last response is here: nothing to wait for
"""

ENCODER = """
{model}, with curl:

curl -s {url}/v2/models/{model}/generate -d '{{{json}}}'

{model}, with tritonclient:

import numpy as np
import tritonclient.grpc as triton

def tensor(name, texts):
    made = triton.InferInput(name, [len(texts), 1], "BYTES")
    made.set_data_from_numpy(np.array([[text.encode()] for text in texts], dtype=object))
    return made

result = triton.InferenceServerClient("{grpc}").infer("{model}", [
{inputs}
])
{outputs}
"""
TEXTS = {"text_input": ("The old man", "and the sea"), "text_pair": ("A ship left port", "He fished alone")}
"""Encoder's input -> the texts of its snippet."""

IMAGES = """
{model}, with curl:

echo "{{\\"image\\": \\"data:image/jpeg;base64,$(base64 -w0 picture.jpg)\\"}}" |
  curl -s {url}/v2/models/{model}/generate -d @-

{model}, with tritonclient:

import numpy as np
import tritonclient.grpc as triton

files = ["picture.jpg"]
images = triton.InferInput("image", [len(files), 1], "BYTES")
images.set_data_from_numpy(np.array([[open(file, "rb").read()] for file in files], dtype=object))
result = triton.InferenceServerClient("{grpc}").infer("{model}", [images])
{outputs}
"""

TENSORS = """
{model}, with tritonclient:

import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import np_to_triton_dtype

def tensor(name, array):
    made = triton.InferInput(name, array.shape, np_to_triton_dtype(array.dtype))
    made.set_data_from_numpy(array)
    return made

result = triton.InferenceServerClient("{grpc}").infer("{model}", [
{inputs}
])
{outputs}
"""


def served_models(repository: Path) -> dict[str, str]:
    """Models of an emitted repository that apps call -> 'decoder', 'encoder', 'images' or 'tensors'.

    Raises BadInput without any.
    """
    names = {path.parent.name for path in repository.glob("*/config.pbtxt")}
    kinds = {"decoder": "_generate", "encoder": "_encoder"}
    models = {
        name: kind for name in sorted(names) for kind, suffix in kinds.items() if f"{name}{suffix}" in names
    }
    # The engine of named tensors is itself what apps call; the others' engines stand behind an ensemble.
    for name in sorted(names):
        behind = any(name == f"{model}{suffix}" for model in names for suffix in kinds.values())
        if behind or not _engine(repository, name).is_file():
            continue
        ensemble = name.removesuffix(ENGINE_SUFFIX)
        if ensemble != name and f"{ensemble}{PREPROCESS_SUFFIX}" in names:
            models[ensemble] = "images"
        else:
            models[name] = "tensors"
    if not models:
        raise BadInput(
            f"{repository} holds no model that slipway emitted; `slipway emit` writes a repository"
        )
    return models


def _engine(repository: Path, model: str) -> Path:
    return repository / model / VERSION / ENGINE / ENGINE_MANIFEST


def how_to_call(running: Server, models: dict[str, str], repository: Path) -> str:
    """URLs, and for each model a tritonclient snippet (and for texts a curl line) that work as they are."""
    lines = f"HTTP {running.url}  gRPC {running.grpc}  metrics {running.metrics_url}  log {running.log}\n"
    for model, kind in models.items():
        if kind == "tensors":
            lines += _call_of_tensors(running, model, _engine(repository, model))
            continue
        if kind == "images":
            lines += _call_of_images(running, model, _engine(repository, f"{model}{ENGINE_SUFFIX}"))
            continue
        if kind == "encoder":
            lines += _call_of_encoder(running, model, _engine(repository, f"{model}_encoder"))
            continue
        engine = Manifest.read(_engine(repository, f"{model}_generate")).engine
        if engine is not None and engine.encoder is not None and engine.encoder.log_mel is not None:
            rate = engine.encoder.log_mel.sampling_rate
            lines += AUDIO.format(model=model, grpc=running.grpc, rate=rate)
            continue
        if engine is not None and engine.image_encoder is not None:
            placeholder = engine.image_encoder.placeholder
            lines += SEES.format(model=model, grpc=running.grpc, placeholder=placeholder)
            continue
        lines += DECODER.format(model=model, url=running.url, grpc=running.grpc)
    return lines


def _call_of_encoder(running: Server, model: str, manifest: Path) -> str:
    """The snippet of an encoder; rerankers get pairs of texts."""
    spec = Manifest.read(manifest).engine
    head = Head() if spec is None else spec.head
    outputs = [head.output]
    if head.kind != "embedding":
        per_token = head.kind == "token_classification"
        outputs = [field.name for field in label_outputs(len(head.labels), per_token)]
    inputs = ["text_input", "text_pair"] if outputs == ["score"] else ["text_input"]
    return ENCODER.format(
        model=model,
        url=running.url,
        grpc=running.grpc,
        json=", ".join(f'"{name}": "{TEXTS[name][0]}"' for name in inputs),
        inputs="\n".join(f'    tensor("{name}", {list(TEXTS[name])}),' for name in inputs),
        outputs="\n".join(f'print(result.as_numpy("{name}"))' for name in outputs),
    )


def _call_of_images(running: Server, model: str, manifest: Path) -> str:
    """The snippet of a model of images."""
    spec = Manifest.read(manifest).engine
    if spec is None or spec.images is None:
        return ""
    outputs = "\n".join(f'print(result.as_numpy("{name}"))' for name in served_outputs(spec.images))
    return IMAGES.format(model=model, url=running.url, grpc=running.grpc, outputs=outputs)


def _call_of_tensors(running: Server, model: str, manifest: Path) -> str:
    """The snippet of a model of named tensors: zeros in the shapes that the engine was tried with."""
    spec = Manifest.read(manifest).engine
    if spec is None:
        return ""
    inputs = []
    with np.load(manifest.with_name(EXAMPLE)) as arrays:
        for place, tensor in enumerate(spec.inputs):
            shape = list(arrays[f"0.{place}"].shape)
            if len(shape) == (1 if spec.batched else 0):
                shape.append(1)  # as `model_repo.emit.tensors.served_dims` says
            inputs.append(f'    tensor("{tensor.name}", np.zeros({shape}, "{tensor.dtype}")),')
    outputs = "\n".join(
        f'print("{tensor.name}", result.as_numpy("{tensor.name}").shape)' for tensor in spec.outputs
    )
    return TENSORS.format(model=model, grpc=running.grpc, inputs="\n".join(inputs), outputs=outputs)


def serve_until_interrupted(repository: Path, say: Callable[[str], None] = print) -> None:
    """Serves until Ctrl-C or SIGTERM; requests that run then have DRAIN_SECONDS to finish.

    Listens on this machine only, on Triton's usual ports where they are free. Raises BadInput without a
    repository or a tritonserver, ServerFailed when the server does not come up or ends by itself.
    """
    models = served_models(repository)
    interrupt_on_sigterm()
    try:
        with server(repository, ports=free_or(STANDARD_PORTS), drain_seconds=DRAIN_SECONDS) as running:
            say(how_to_call(running, models, repository))
            say("Serving. Ctrl-C drains and stops.")
            while running.alive():
                time.sleep(POLL_SECONDS)
            raise ServerFailed(f"tritonserver ended by itself{tail(running.log)}")
    except KeyboardInterrupt:
        say("Stopped.")
