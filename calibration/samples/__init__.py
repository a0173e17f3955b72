"""Calibration samples: read from one of several kinds of source, cut to length, chosen the same way every time.

`open_samples` reads a file or folder; one module a kind: `text.py` (.txt), `lines.py` (.jsonl, captured requests
included), `arrays.py` (.npz), `captured.py` (captured requests of named tensors), `pictures.py` (a folder of images).
`choice.py` chooses among what was read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from calibration.batches import Model
from model_repo.runtime.errors import BadInput
from model_repo.runtime.tokenizer import Tokenizer

from .base import Found, Samples
from .choice import chosen

__all__ = ["DEFAULT_FILE", "DEFAULT_SAMPLES", "MOST_TOKENS", "Samples", "open_samples"]

DEFAULT_FILE = Path(__file__).resolve().parents[2] / "demo" / "calibration.txt"
"""English prose, set apart from the demo model's training and held-out text."""

DEFAULT_SAMPLES = 512
"""Samples taken at most where nobody says how many."""

MOST_TOKENS = 512
"""Tokens of one sample at most; longer text is cut."""


def open_samples(
    path: Path | None,
    model: Model,
    *,
    vocab_size: int = 0,
    max_length: int = MOST_TOKENS,
    tokenizer: Tokenizer | None = None,
    preprocessor: Any = None,
    count: int | None = None,
) -> Samples:
    """Samples for a model from a file or folder (None: DEFAULT_FILE, of which encoders get the sentences).

    `count`: how many; None takes what there is, up to DEFAULT_SAMPLES. `max_length`: tokens that the model takes.
    `preprocessor`: from a picture's bytes to an object with `values`, for models of images. The same file, model and
    count give the same samples in the same order. Raises BadInput when the source is missing, empty, of a kind that
    the model has no use for, or holds too little or what the model does not take.
    """
    source = DEFAULT_FILE if path is None else path
    if not source.exists():
        raise BadInput(
            f"no calibration data at {source}; give a .jsonl, .txt or .npz file or a folder of images"
        )
    if path is None and model.kind == "tensors":
        raise BadInput(
            f"a model of named tensors ({', '.join(spec.name for spec in model.inputs)}) has no calibration data "
            "of its own; give --data FILE.npz or a folder of images"
        )
    found = _read(source, model, vocab_size, min(max_length, MOST_TOKENS), tokenizer, preprocessor)
    return chosen(source, found, count, DEFAULT_SAMPLES, model.kind)


def _read(
    source: Path,
    model: Model,
    vocab_size: int,
    max_length: int,
    tokenizer: Tokenizer | None,
    preprocessor: Any,
) -> list[Found]:
    if model.kind == "tensors":
        if source.is_dir():
            from .pictures import read_pictures

            return read_pictures(source, model.inputs, preprocessor)
        if source.suffix == ".npz":
            from .arrays import read_arrays

            return read_arrays(source, model.inputs, model.batched)
        if source.suffix == ".jsonl":
            from .captured import read_captured

            return read_captured(source, model.inputs, model.batched)
        raise BadInput(
            f"{source} is of no use to a model of named tensors; give a .npz file, a folder of images, or requests "
            "that a server captured"
        )
    from .lines import read_lines
    from .text import Cutter, read_text

    cutter = Cutter(model.kind, tokenizer, vocab_size, max_length)
    if source.suffix == ".jsonl":
        return read_lines(source, cutter)
    if source.suffix == ".txt":
        return read_text(source, cutter, by_sentence=model.kind == "encoder" and source == DEFAULT_FILE)
    raise BadInput(
        f"{source} is of no use to a model of texts; give a .jsonl file (text, messages or input_ids a line), a .txt "
        "file, or requests that a server captured"
    )
