"""JSON lines: one sample a line, as `text`, `messages` or `input_ids`, with a `domain` where it has one.

Requests that a server captured (`model_repo.runtime.capture`) are such lines behind one that says of which model.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from calibration.data import read_utf8
from model_repo.runtime.capture import HEADER
from model_repo.runtime.errors import BadInput

from .base import Found
from .text import Cutter


def read_lines(path: Path, cutter: Cutter) -> list[Found]:
    """The samples of a .jsonl file; empty lines and a capture's first one are passed over.

    Raises BadInput, with the line's number, for what is no JSON object with exactly one of the three.
    """
    found = []
    for number, line in enumerate(read_utf8(path).splitlines(), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number},"
        try:
            entry = json.loads(line)
        except json.JSONDecodeError as error:
            raise BadInput(f"{where} is no JSON ({error}); each line is one object") from error
        if not isinstance(entry, dict):
            raise BadInput(f"{where} is {line:.60}; each line is a JSON object")
        if HEADER in entry:
            continue
        found += _sample(entry, cutter, where)
    return found


def _sample(entry: Mapping[str, Any], cutter: Cutter, where: str) -> list[Found]:
    readers: Mapping[str, tuple[Callable[[Any], bool], Callable[..., list[Found]], str]] = {
        "text": (_is_text, cutter.text, "a text that is not empty"),
        "messages": (_is_chat, cutter.chat, "a list of {role, content}"),
        "input_ids": (_is_ids, cutter.ids, "a list of token ids"),
    }
    given = [name for name in readers if name in entry]
    if len(given) != 1:
        raise BadInput(
            f"{where} has {' and '.join(given) or 'none of them'}; give one of {', '.join(readers)}"
        )
    domain = entry.get("domain", "")
    if not isinstance(domain, str):
        raise BadInput(f"{where} has the domain {domain!r}; it must be a text")
    fits, read, words = readers[given[0]]
    if not fits(entry[given[0]]):
        raise BadInput(f"{where} has {given[0]} {entry[given[0]]!r:.60}; it must be {words}")
    return read(entry[given[0]], domain, where)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_chat(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(
            isinstance(m, dict) and all(isinstance(m.get(k), str) for k in ("role", "content")) for m in value
        )
    )


def _is_ids(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(t, int) and not isinstance(t, bool) for t in value)
