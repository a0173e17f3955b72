"""Text to token ids and back, and chats to text, from the checkpoint's own files."""

from __future__ import annotations

import datetime
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import jinja2
import jinja2.sandbox
import tokenizers

from .errors import BadInput

CHAT_TEMPLATE = "chat_template.jinja"


class Encoding(NamedTuple):
    """A text, or a pair of texts, as tokens.

    `token_types`: 1 where the tokenizer counts a token to the second text. `offsets`: the characters [start, end) of
    the text that each token covers; empty (start = end) where it covers none, as the tokens put around a text.
    """

    ids: list[int]
    token_types: list[int]
    offsets: list[tuple[int, int]]


class Tokenizer:
    """A `tokenizer.json`, with the chat template that lies beside it, if any. Thread-safe."""

    def __init__(self, tokenizer: tokenizers.Tokenizer, chat_template: str | None = None) -> None:
        self._tokenizer = tokenizer
        self.chat_template = chat_template

    @classmethod
    def load(cls, path: Path) -> Tokenizer:
        """Reads tokenizer.json at `path`. Raises BadInput when it is missing or not a tokenizer."""
        if not path.is_file():
            raise BadInput(f"no tokenizer at {path}; the engine was built without one")
        try:
            tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises plain Exception
            raise BadInput(f"{path} is not a tokenizer.json that can be read: {error}") from error
        # A file may ask for both: padding would count as text, truncation would hide that a text is too long.
        tokenizer.no_padding()
        tokenizer.no_truncation()
        template = path.with_name(CHAT_TEMPLATE)
        return cls(tokenizer, template.read_text(encoding="utf-8") if template.is_file() else None)

    @property
    def vocab_size(self) -> int:
        """Tokens with their added ones."""
        return int(self._tokenizer.get_vocab_size(with_added_tokens=True))

    @functools.cached_property
    def longest_token_bytes(self) -> int:
        """Bytes of the longest token: text beyond this many times a limit cannot fit it, and is not encoded."""
        return max(len(token.encode()) for token in self._tokenizer.get_vocab(with_added_tokens=True))

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of `text`, with what the tokenizer puts around it unless told not to."""
        return list(self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids)

    def encode_pair(self, text: str, pair: str | None) -> Encoding:
        """`text`, and `pair` behind it unless it is None, with what the tokenizer puts around them."""
        made = self._tokenizer.encode(text, pair)
        special = made.special_tokens_mask
        offsets = [(0, 0) if around else span for span, around in zip(made.offsets, special, strict=True)]
        return Encoding(list(made.ids), list(made.type_ids), offsets)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of token ids; special tokens are left out."""
        return str(self._tokenizer.decode(list(token_ids), skip_special_tokens=True))

    def render(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """A chat as prompt text, ready for the assistant's turn.

        Raises BadInput when the model has no chat template or the template refuses the messages.
        """
        if self.chat_template is None:
            raise BadInput("this model has no chat template; send the prompt as text_input")
        try:
            template = _environment().from_string(self.chat_template)
            return template.render(messages=list(messages), add_generation_prompt=True)
        except Exception as error:  # a template is foreign code: it may raise anything
            raise BadInput(f"the chat template refuses these messages: {error}") from error


@functools.cache
def _environment() -> jinja2.sandbox.ImmutableSandboxedEnvironment:
    """Templates come with checkpoints, so they run in a sandbox; the options are transformers'."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )

    def raise_exception(message: str) -> NoReturn:
        raise jinja2.TemplateError(message)

    def tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)  # jinja2's own escapes HTML

    def strftime_now(form: str) -> str:
        return datetime.datetime.now().strftime(form)

    functions: dict[str, Any] = {"raise_exception": raise_exception, "strftime_now": strftime_now}
    environment.globals.update(functions)
    environment.filters["tojson"] = tojson
    return environment
