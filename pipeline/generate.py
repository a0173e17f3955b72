"""`generate`: prompts through the engine loop, all in flight together, without a server."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from model_repo.runtime.engine import Engine
from model_repo.runtime.errors import BadInput
from model_repo.runtime.output import Completion
from model_repo.runtime.request import Request, SamplingParams

Prompt = str | Sequence[int]
"""A text, for the engine's tokenizer, or token ids."""


def generate(
    folder: Path,
    prompts: Sequence[Prompt],
    sampling: SamplingParams,
    threads: int | None = None,
    on_text: Callable[[str], None] | None = None,
) -> list[Completion]:
    """Completions in the order of the prompts; the engine in `folder` runs them as one batch in flight.

    A seed gives each prompt what it gives it alone. `threads`: None for what was built in. `on_text` gets each
    piece of new text, of whichever prompt. Raises BadInput when the engine is missing or damaged, is no decoder, or
    cannot take a prompt.
    """
    if not prompts:
        raise BadInput("no prompt given; give --prompt TEXT or --prompt-ids 5,17,9")
    engine = Engine.load(folder, threads=threads)
    requests = [Request(str(place), _ids(engine, prompt), sampling) for place, prompt in enumerate(prompts)]
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


def _ids(engine: Engine, prompt: Prompt) -> tuple[int, ...]:
    if not isinstance(prompt, str):
        return tuple(prompt)
    if engine.tokenizer is None:
        raise BadInput("this engine was built without a tokenizer; give --prompt-ids")
    return tuple(engine.tokenizer.encode(prompt))
