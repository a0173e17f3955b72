"""The cleaning and splitting rules on small samples, and what is promised of the committed texts."""

from __future__ import annotations

import struct
import zlib

from demo.books import Book, cut
from demo.cleaning import BREAK, chapters, paragraphs, split_run_on
from demo.corpus import (
    CALIBRATION_FILE,
    END_OF_TEXT,
    HELDOUT_FILE,
    choose_calibration,
    read_documents,
    split_book,
    write_documents,
)
from demo.packages import decode_r_lines

SAMPLE = """CHAPTER I. The Beginning

The old man _walked_ along the shore,
and said nothing at  all.[2]

     Full fathom five thy father lies,
     Of his bones are coral made,
     Those are pearls that were his eyes.

Tyger Tyger, burning bright,
In the forests of the night;
What immortal hand or eye,
Could frame thy fearful symmetry?

XIV

[Illustration: a ship]

\u201cI don\u2019t know,\u201d said Mary\u2014and wept.

This Project Gutenberg eBook is for the use of anyone.

A gipsy stood where the road turned.

"NO!"

page 7

THE SECOND PART

Then it was over.
"""


def test_paragraphs_keep_the_prose_and_nothing_else() -> None:
    assert paragraphs(SAMPLE) == [
        "The old man walked along the shore, and said nothing at all.",
        BREAK,
        '"I don\'t know," said Mary--and wept.',
        '"NO!"',
        BREAK,
        "Then it was over.",
    ]


def test_common_words_are_no_slurs() -> None:
    kept = "Where the raccoon lay niggardly in the jewel's darkness, he was fagged; and where was she?"
    assert paragraphs(kept) == [kept]


def test_chapters_are_the_groups_between_breaks() -> None:
    assert chapters([BREAK, "a", "b", BREAK, BREAK, "c"]) == [["a", "b"], ["c"]]


def test_a_run_on_text_gets_paragraphs_between_speakers_and_after_long_stretches() -> None:
    text = 'He came.  "Who?" said she.  "I."  "You!"  Rain fell.  Wind blew.   Letter 1   Dear sister.'
    assert paragraphs(split_run_on(text, at_least=100)) == [
        'He came. "Who?" said she. "I."',
        '"You!" Rain fell. Wind blew.',
        BREAK,
        "Dear sister.",
    ]
    assert paragraphs(split_run_on("One is here now.  Two is there then.  Three.", at_least=20)) == [
        "One is here now. Two is there then.",
        "Three.",
    ]


def test_the_end_of_a_book_is_held_out() -> None:
    book = [["a" * 40, "b" * 40], ["c" * 18, "d" * 2]]
    train, heldout = split_book(book, heldout_fraction=0.02)
    assert train == [["a" * 40, "b" * 40], ["c" * 18]]
    assert heldout == [["d" * 2]]


def test_a_book_is_cut_between_its_words() -> None:
    book = Book("source", "Title", "Author", begin="Once", end="FINIS")
    assert cut("Preface. Once upon a time. FINIS notes", book) == "Once upon a time. "


def test_calibration_paragraphs_are_long_and_not_held_out() -> None:
    train = [[f"{number} " + "x" * 300 for number in range(400)], ["short"]]
    heldout = [train[0][:100]]
    chosen = choose_calibration(train, heldout, seed=3)
    assert len({document[0] for document in chosen}) == 200
    assert not {document[0] for document in chosen} & set(heldout[0])


def test_documents_survive_a_file(tmp_path) -> None:  # type: ignore[no-untyped-def]
    file = tmp_path / "text.txt"
    write_documents(file, [["a", "b"], ["\u00a3 c"]])
    assert read_documents(file) == ["a\n\nb", "\u00a3 c"]


def test_r_character_vectors_are_decoded() -> None:
    def chunk(lines: list[str | None]) -> bytes:
        body = b"X\n" + bytes(12) + struct.pack(">ii", 16, len(lines))
        for line in lines:
            data = b"" if line is None else line.encode()
            body += struct.pack(">ii", 9, -1 if line is None else len(data)) + data
        packed = zlib.compress(body)
        return struct.pack(">i", len(body)) + packed

    data = chunk(["Emma", "", "caf\u00e9"]) + chunk([None, "end"])
    assert decode_r_lines(data) == [["Emma", "", "caf\u00e9"], ["", "end"]]


def test_heldout_text_does_not_occur_in_the_calibration_text() -> None:
    heldout = {line for text in read_documents(HELDOUT_FILE) for line in text.split("\n\n")}
    calibration = [line for text in read_documents(CALIBRATION_FILE) for line in text.split("\n\n")]
    assert len(calibration) == 200
    assert not heldout & set(calibration)


def test_committed_texts_hold_no_boilerplate() -> None:
    for file in (HELDOUT_FILE, CALIBRATION_FILE):
        text = file.read_text(encoding="utf-8")
        assert text.endswith("\n")
        assert "gutenberg" not in text.lower()
        assert END_OF_TEXT in text
