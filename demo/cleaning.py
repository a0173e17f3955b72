"""From the text of a scanned book to prose: one string a paragraph, headings and verse gone."""

from __future__ import annotations

import re
from collections.abc import Iterable

BREAK = ""
"""Stands in a list of paragraphs where a chapter ends."""

_PUNCTUATION = str.maketrans(
    {"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u2014": "--", "\t": " "}
)
_ILLUSTRATION = re.compile(r"\[Illustration[^\]]*\]|\[\d+\]")
_NAMED_HEADING = re.compile(
    r"(?i)(chapter|volume|book|part|stave|letter|adventure|epilogue|contents|act|scene|the end|finis)\b"
)
_NUMERAL = re.compile(r"[IVXLC]+\.?(\s|$)|\d+\.?$")
_BOILERPLATE = re.compile(r"(?i)project gutenberg|\be-?text|\bebook|end volume")
_ENDS_SENTENCE = re.compile(r"""[.!?:;,\-]["')\]]*$""")

# Words of contempt for a people, and names of peoples that these books seldom use otherwise.
_SLURS = re.compile(
    r"(?i)\b(n[ie]gg?(er|ro|ress)(e?s)?|jew(s|ess|ish)?|g[iy]ps(y|ies)|squaws?|red.?skins?|half.(breed|caste)s?"
    r"|chinam[ae]n|dark(y|ey|ies|eys)|mulatto(es|s)?|hottentots?|blackamoors?|cannibals?|kaff[ie]rs?"
    r"|fagg?ots?|whores?|coons?)\b"
)


def paragraphs(text: str) -> list[str]:
    """The prose of a book in order: clean one-line paragraphs, and BREAK between chapters."""
    text = text.replace("\r\n", "\n").replace("\ufeff", "").translate(_PUNCTUATION)
    text = _ILLUSTRATION.sub("", text.replace("``", '"').replace("''", '"'))
    text = re.sub(r"[_*=|~]", "", text)
    found: list[str] = []
    for block in re.split(r"\n\s*\n", text):
        lines = [line for line in block.split("\n") if line.strip()]
        if not lines:
            continue
        line = re.sub(r"\s+", " ", " ".join(lines)).strip()
        if is_heading(line):
            if found and found[-1] != BREAK:
                found.append(BREAK)
        elif not (is_verse(lines) or is_fragment(line) or _BOILERPLATE.search(line) or _SLURS.search(line)):
            found.append(line)
    return found


def is_heading(line: str) -> bool:
    """True for the name or number of a chapter; a paragraph of dialogue in capitals is none."""
    if len(line) >= 120 or line[0] in "\"'":
        return False
    if _NAMED_HEADING.match(line):
        return len(line) < 40 or not line.endswith((".", "!", "?", '"'))
    if _NUMERAL.match(line) and not line.startswith("I "):
        return len(line) < 80 and not line.endswith((",", ";", "!", "?", '"'))
    return line.upper() == line and any(letter.isalpha() for letter in line)


def is_verse(lines: list[str]) -> bool:
    """True for a block of indented lines, and for one of short lines that each open with a capital."""
    rest = lines[1:]
    if rest and sum(line.startswith("     ") for line in rest) >= len(rest):
        return True
    stripped = [line.strip().lstrip("\"'(") for line in lines]
    short = sum(len(line) for line in stripped) / len(stripped) < 56
    return len(stripped) >= 4 and short and all(line[:1].isupper() for line in stripped)


def is_fragment(line: str) -> bool:
    """True for what is no sentence: page numbers, signatures, entries of a table of contents."""
    return len(line) < 80 and not _ENDS_SENTENCE.search(line)


def split_run_on(text: str, at_least: int) -> str:
    """Put paragraph breaks into a text whose line ends were lost.

    Its sentences end in two spaces, as do its paragraphs. A new paragraph begins where one speaker
    answers another, and else at the first sentence end after `at_least` characters.
    """
    text = re.sub(r" {3,}", "\n\n", text)
    text = re.sub(r'(?<=[.!?]")  (?=")', "\n\n", text)
    pieces: list[str] = []
    for block in text.split("\n\n"):
        length = 0
        for sentence in block.split("  "):
            pieces.append(sentence)
            length += len(sentence)
            ends = length >= at_least and sentence.endswith((".", "!", "?", '"'))
            pieces.append("\n\n" if ends else " ")
            length = 0 if ends else length
        pieces.append("\n\n")
    return "".join(pieces)


def chapters(parts: Iterable[str]) -> list[list[str]]:
    """Group paragraphs by the BREAKs between them; chapters without a paragraph vanish."""
    groups: list[list[str]] = [[]]
    for part in parts:
        if part == BREAK:
            groups.append([])
        else:
            groups[-1].append(part)
    return [group for group in groups if group]
