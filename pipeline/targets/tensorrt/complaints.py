"""What parsers and builders say when they refuse a graph, with what to do about it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from plugins.tensorrt import names

_SHOWN = 3
_PLUGIN = "Plugin not found"
_WEIGHTS = re.compile(r"Failed to open file|offset/length out of range|Failed to import initializer")
_MEMORY = re.compile(
    r"within workspace limit|insufficient workspace|insufficient memory|out ?of ?memory|memory is insufficient",
    re.IGNORECASE,
)
_ASKED: Sequence[tuple[re.Pattern[str], int]] = (
    (re.compile(r"requested size was (\d+) bytes", re.IGNORECASE), 1),
    (re.compile(r"request(?:ed)?:? (\d+) ?MB", re.IGNORECASE), 2**20),
)
"""How the bytes of a request are told, and what they are counted in."""


class Refused(NamedTuple):
    """A node that the parser does not take, in its words."""

    operator: str
    node: str
    words: str

    def __str__(self) -> str:
        what = f"{self.operator} {self.node!r}: " if self.operator else ""
        return f"{what}{self.words}"


def refused(parser: Any) -> list[Refused]:
    """The parser's errors. One that says no more than `false` means that it does not have the operator."""
    errors = [parser.get_error(place) for place in range(parser.num_errors)]
    return [
        Refused(
            error.node_operator(),
            error.node_name(),
            "it has no such operator" if error.desc() == "false" else error.desc(),
        )
        for error in errors
    ]


def parser_advice(found: Sequence[Refused], said: str, domain_of: Callable[[str], str | None]) -> str:
    """What to do about nodes that are refused. said: the parser's log. domain_of: the domain of a node, by name."""
    if _WEIGHTS.search(said):
        return (
            "The file of the weights, which lies beside the graph, is gone or shorter than the graph says: build again "
            "with --force, or move graph and weights together"
        )
    plugins = [one for one in found if _PLUGIN in one.words]
    ours = [one for one in plugins if domain_of(one.node) == names.DOMAIN]
    if ours:
        return "Slipway's plugins are not loaded: run `make plugins`, or name the library in C++ with --plugin-library"
    if plugins:
        operators = ", ".join(sorted({one.operator for one in plugins}))
        return f"There is no operator or plugin {operators}; write it in other operators, or build for onnxruntime"
    return "Write these nodes in other operators, or build for target 'onnxruntime'"


def builder_advice(said: Sequence[str]) -> str:
    """What to do about a build that failed, as a further sentence; empty where that is not known. said: the builder's
    errors and warnings."""
    words = "; ".join(said)
    if not _MEMORY.search(words):
        return ""
    asked = [int(count) * unit for pattern, unit in _ASKED for count in pattern.findall(words)]
    wanted = f"It asked for {max(asked)} bytes: that" if asked else "That"
    return (
        f". {wanted} is memory. Raise --workspace-bytes where it is set, or lower --max-batch, --token-budget, "
        "--max-length or --kv-cache-bytes; fewer --decode-batch and a lower --optimization-level take less too"
    )


def shortened(said: Sequence[str]) -> str:
    """The last of what was said."""
    return "; ".join(said[-_SHOWN:]) or "it gives no reason"
