"""Is a text's result its own? Found by experiment, before any time is spent on export.

Served texts of different lengths share a padded batch. A model whose result for a text depends on the padding behind
it, or on the other texts of its batch, would answer differently from call to call; and attention that is put in must
give what the model's own gives. So some texts are run alone by the model as it was loaded, and then, as it will be
exported, alone, padded and in company. What departs is named by the first module whose output does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .attention import UnsupportedModel

RELATIVE_TOLERANCE = 1e-4
"""Of the largest value: float32 noise of another order of summation is far below it, in deep models too."""

LENGTHS = (1024, 1, 7, 160, 12)
"""Tokens. The first is so long that attention which is sparse for long texts only (BigBird's) shows it; it is run
without padding or company. The others are shorter and longer than the windows and the distances told apart that
encoders have (128)."""

_PADDING = 9
"""Tokens behind a text that is alone. In company the longest has one."""

Run = Callable[[Tensor, Tensor], Tensor]
"""(input_ids, attention_mask), int64 [batch, length] -> the encoder's output: [batch, width], or a row a token."""


def texts_for(vocab_size: int, special: Sequence[int], max_length: int) -> list[Tensor]:
    """int64 [length] each: ids drawn from a fixed seed among those that are no special tokens."""
    generator = torch.Generator().manual_seed(1)
    usable = torch.tensor(sorted(set(range(vocab_size)) - set(special)) or [0])
    lengths = [min(length, max_length) for length in LENGTHS]
    return [usable[torch.randint(len(usable), (length,), generator=generator)] for length in lengths]


def alone(run: Run, texts: Sequence[Tensor]) -> list[Tensor]:
    """The output for each text without padding or company."""
    return [_padded(run, [text], len(text))[0] for text in texts]


def check_independence(
    module: nn.Module, run: Run, texts: Sequence[Tensor], expected: Sequence[Tensor], max_length: int
) -> None:
    """Raises UnsupportedModel when what `run` gives for a text departs from `expected`: `alone`, of the model as it
    was loaded.

    `module` is the model that `run` calls; the part of it that departs is named.
    """
    name = type(module).__name__
    for before, after in zip(expected, alone(run, texts), strict=True):
        if not _same(before, after):
            raise UnsupportedModel(
                f"{name} gives other numbers with its attention in standard operators than with its own; "
                "encoders whose attention is a softmax over scores and a mask are supported"
            )
    shared = list(zip(texts, expected, strict=True))[1:]
    for text, row in shared:
        length = min(len(text) + _PADDING, max_length)
        if not _same(row, _of(row, _padded(run, [text], length)[0])):
            raise UnsupportedModel(_departure(module, run, [text], length, "the padding behind it"))
    for pair in (shared[:2], shared[2:]):  # all in one batch would be mostly padding
        company = [text for text, _ in pair]
        length = min(max(map(len, company)) + 1, max_length)
        for (text, row), found in zip(pair, _padded(run, company, length), strict=True):
            if _same(row, _of(row, found)):
                continue
            if not _same(row, _of(row, _padded(run, [text], length)[0])):
                raise UnsupportedModel(_departure(module, run, [text], length, "the padding behind it"))
            company.sort(key=lambda other: other is not text)
            raise UnsupportedModel(_departure(module, run, company, length, "the other texts of its batch"))


def position_limit(module: nn.Module, run: Run, texts: Sequence[Tensor]) -> int | None:
    """Tokens of the longest text that the model's position tables hold; None where it has none.

    A position table is an embedding whose largest index keeps step with the length of the text, whatever its tokens.
    RoBERTa and MPNet count positions from their padding token's id on, so their tables hold fewer tokens than rows.
    """
    largest: dict[str, list[int]] = {}

    def keep(name: str) -> Callable[[nn.Module, Any], None]:
        def hook(_: nn.Module, inputs: Any) -> None:
            if inputs and isinstance(inputs[0], Tensor):  # some tables are asked for a shape
                largest.setdefault(name, []).append(int(inputs[0].max()))

        return hook

    tables = {name: part for name, part in module.named_modules() if isinstance(part, nn.Embedding)}
    handles = [table.register_forward_pre_hook(keep(name)) for name, table in tables.items()]
    try:
        alone(run, texts)
    finally:
        for handle in handles:
            handle.remove()
    limits = []
    for name, indices in largest.items():
        ahead = {index - len(text) for index, text in zip(indices, texts, strict=False)}
        if len(indices) == len(texts) and len(ahead) == 1:
            limits.append(tables[name].num_embeddings - 1 - ahead.pop())
    return min(limits, default=None)


def _padded(run: Run, texts: Sequence[Tensor], length: int) -> Tensor:
    """The outputs of one batch, each text padded to `length` with token 0."""
    input_ids = torch.zeros(len(texts), length, dtype=torch.int64)
    mask = torch.zeros_like(input_ids)
    for row, text in enumerate(texts):
        input_ids[row, : len(text)] = text
        mask[row, : len(text)] = 1
    try:
        with torch.no_grad():
            return run(input_ids, mask)
    except UnsupportedModel:
        raise
    except Exception as error:  # models fail in their own ways
        raise UnsupportedModel(
            f"the model cannot compute a batch of {len(texts)} texts of up to {length} tokens: {error}; encoders are "
            "supported that take texts of any length from one token on"
        ) from error


def _of(row: Tensor, found: Tensor) -> Tensor:
    """Of what was found for a padded text, the rows of its own tokens, where there is a row a token."""
    return found[: len(row)] if row.dim() == 2 else found


def _same(expected: Tensor, found: Tensor) -> bool:
    if expected.shape != found.shape:
        return False
    largest = expected.abs().max().clamp_min(1e-6)
    return bool((expected - found).abs().max() <= RELATIVE_TOLERANCE * largest)  # False for NaN


def _departure(module: nn.Module, run: Run, texts: Sequence[Tensor], length: int, on: str) -> str:
    """The message, with the first module whose output for the first text is another one than alone."""
    tokens = len(texts[0])
    plain, padded = _calls(module, run, texts[:1], tokens), _calls(module, run, texts, length)
    where = ""
    for before, after in zip(plain, padded, strict=False):
        rows = before.output.dim() == 3 and before.output.shape[1] == tokens
        if rows and after.name and not _same(before.output[0], after.output[0, :tokens]):
            where = f", first in {after.kind} ({after.name})"
            break
    return (
        f"{type(module).__name__}: a text's result depends on {on}{where}; served texts of different lengths are "
        "padded into one batch, so only encoders that keep them apart are supported"
    )


class _Call(NamedTuple):
    """The call of a module: its name in the model, its class, and what it gave."""

    name: str
    kind: str
    output: Tensor


def _calls(module: nn.Module, run: Run, texts: Sequence[Tensor], length: int) -> list[_Call]:
    """Calls of all parts of `module`, in the order in which they end."""
    with _recorded(module) as calls:
        _padded(run, texts, length)
    return calls


@contextmanager
def _recorded(module: nn.Module) -> Iterator[list[_Call]]:
    calls: list[_Call] = []

    def keep(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(called: nn.Module, _: Any, output: Any) -> None:
            first = output[0] if isinstance(output, tuple) else output
            if isinstance(first, Tensor):
                calls.append(_Call(name, type(called).__name__, first))

        return hook

    handles = [part.register_forward_hook(keep(name)) for name, part in module.named_modules()]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()
