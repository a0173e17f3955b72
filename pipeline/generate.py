"""`generate`: prompts through the engine loop, all in flight together, without a server."""

from __future__ import annotations

import wave
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from model_repo.runtime.engine import Engine
from model_repo.runtime.errors import BadInput
from model_repo.runtime.output import Completion
from model_repo.runtime.request import Request, SamplingParams

Prompt = str | Sequence[int] | Path
"""A text, for the engine's tokenizer, or token ids; a file of audio, for engines that hear."""


def generate(
    folder: Path,
    prompts: Sequence[Prompt],
    sampling: SamplingParams,
    threads: int | None = None,
    on_text: Callable[[str], None] | None = None,
    images: Sequence[Path] = (),
    beginning: str | None = None,
) -> list[Completion]:
    """Completions in the order of the prompts; the engine in `folder` runs them as one batch in flight.

    A seed gives each prompt what it gives it alone. `threads`: None for what was built in. `on_text` gets each
    piece of new text, of whichever prompt. Raises BadInput when the engine is missing or damaged, is no decoder, or
    cannot take a prompt.

    Prompts of an encoder-decoder are its encoder's input; completions begin with `beginning`, or as the checkpoint
    says. `images` of a vision-language model take the places that the prompts have for them, in order.
    """
    if not prompts:
        raise BadInput("no prompt given; give --prompt TEXT, --prompt-ids 5,17,9 or --audio FILE")
    engine = Engine.load(folder, threads=threads)
    if beginning is not None and engine.spec.encoder is None:
        raise BadInput(f"engine {engine.spec.name!r} is no encoder-decoder; leave --begin-with out")
    if engine.spec.image_encoder is not None:
        requests = _with_images(engine, folder, prompts, sampling, images, threads)
    elif images:
        raise BadInput(f"engine {engine.spec.name!r} takes no images; leave --image out")
    else:
        requests = [
            _request(engine, str(place), prompt, sampling, beginning) for place, prompt in enumerate(prompts)
        ]
    if on_text is None:
        return engine.generate(requests)
    return engine.generate(requests, lambda output: on_text(output.text))


def parse_ids(text: str) -> tuple[int, ...]:
    """Token ids from '5,17,9'. Raises BadInput."""
    try:
        return tuple(int(piece) for piece in text.split(","))
    except ValueError:
        raise BadInput(
            f"--prompt-ids is {text!r}; it must be token ids with commas between, as in 5,17,9"
        ) from None


def to_dict(completion: Completion) -> dict[str, Any]:
    """What `slipway generate --json` prints for one prompt."""
    values: dict[str, Any] = {
        "prompt_ids": list(completion.prompt_ids),
        "token_ids": list(completion.token_ids),
        "text": completion.text,
        "finish_reason": completion.finish_reason,
        "seconds_to_first_token": completion.seconds_to_first_token,
        "seconds": completion.seconds,
    }
    return values if completion.error is None else {**values, "error": completion.error}


def _request(
    engine: Engine, request_id: str, prompt: Prompt, sampling: SamplingParams, beginning: str | None
) -> Request:
    encoder = engine.spec.encoder
    begun: tuple[int, ...] = () if encoder is None else encoder.prompt_ids
    if beginning is not None:
        begun = _ids(engine, beginning, add_special_tokens=False)
    if isinstance(prompt, Path):
        if encoder is None or encoder.log_mel is None:
            raise BadInput(f"engine {engine.spec.name!r} takes no audio; give --prompt TEXT or --prompt-ids")
        features = encoder.log_mel(read_audio(prompt, encoder.log_mel.sampling_rate))
        return Request(request_id, begun, sampling, encoder_input=features)
    if encoder is None:
        return Request(request_id, _ids(engine, prompt), sampling)
    if encoder.log_mel is not None:
        raise BadInput(f"engine {engine.spec.name!r} takes audio; give --audio FILE")
    ids = np.array([_ids(engine, prompt)], encoder.input.dtype)
    return Request(request_id, begun, sampling, encoder_input=ids)


def _with_images(
    engine: Engine,
    folder: Path,
    prompts: Sequence[Prompt],
    sampling: SamplingParams,
    images: Sequence[Path],
    threads: int | None,
) -> list[Request]:
    """Requests of a vision-language model; each prompt takes as many images as it has places. Raises BadInput."""
    from model_repo.runtime.image_encoder import ImageEncoder
    from model_repo.runtime.images import pixel_values

    spec = engine.spec
    assert spec.image_encoder is not None, "the caller saw it"
    encoder = spec.image_encoder
    all_ids = []
    for prompt in prompts:
        if isinstance(prompt, Path):
            raise BadInput(f"engine {spec.name!r} takes no audio; give --prompt TEXT or --prompt-ids")
        all_ids.append(_ids(engine, prompt))
    counts = [ids.count(encoder.placeholder_id) for ids in all_ids]
    if sum(counts) != len(images):
        raise BadInput(
            f"the prompts have {sum(counts)} places for images, and {len(images)} images are given; write "
            f"{encoder.placeholder} once for each --image, where it belongs"
        )
    given = iter([_read(path) for path in images])
    count = spec.threads if threads is None else threads
    running = ImageEncoder(folder, encoder, count, spec.plugin) if images else None
    requests = []
    for place, (ids, wanted) in enumerate(zip(all_ids, counts, strict=True)):
        full = encoder.expanded(ids, wanted, engine.limits.max_length)
        rows = None
        if running is not None and wanted:
            rows = running.encode(pixel_values(encoder, [next(given) for _ in range(wanted)]))
        requests.append(Request(str(place), tuple(full), sampling, prompt_embeds=rows))
    return requests


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadInput(f"{path} cannot be read ({error.strerror}); give an image file") from error


def read_audio(path: Path, sampling_rate: int) -> npt.NDArray[np.float32]:
    """float32 [samples] of a .wav file (one channel, 16 bit) or a .npy file.

    Raises BadInput when it is missing, something else, or a .wav file of another rate.
    """
    try:
        if path.suffix == ".npy":
            audio: npt.NDArray[np.float32] = np.load(path)
            return audio
        with wave.open(str(path), "rb") as file:
            found = (file.getnchannels(), file.getsampwidth(), file.getframerate())
            data = file.readframes(file.getnframes())
    except (OSError, EOFError, ValueError, wave.Error) as error:
        raise BadInput(f"{path} cannot be read as audio ({error}); give a .wav or .npy file") from error
    if found != (1, 2, sampling_rate):
        raise BadInput(
            f"{path} has {found[0]} channels of {8 * found[1]} bits at {found[2]} Hz; one channel of 16 bits at "
            f"{sampling_rate} Hz is needed"
        )
    return np.asarray(np.frombuffer(data, "<i2") / 32768, np.float32)


def _ids(engine: Engine, prompt: str | Sequence[int], add_special_tokens: bool = True) -> tuple[int, ...]:
    if not isinstance(prompt, str):
        return tuple(prompt)
    if engine.tokenizer is None:
        raise BadInput("this engine was built without a tokenizer; give --prompt-ids")
    return tuple(engine.tokenizer.encode(prompt, add_special_tokens=add_special_tokens))
