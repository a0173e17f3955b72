"""docs/encoder_decoders.md: `python -m tests.export.cross_table` writes it, a test compares it."""

from __future__ import annotations

from pathlib import Path

from tests.export.cross_families import CARRIED, REFUSED

PAGE = Path(__file__).parents[2] / "docs" / "encoder_decoders.md"


def table() -> str:
    """Family by feature, as Markdown."""
    lines = [
        "| family | encoder's input | what sets it apart | result |",
        "| --- | --- | --- | --- |",
        *(
            f"| {family.name}{' *' if family.wide else ''} | `{family.input.name}` | {', '.join(family.features)} "
            "| equal |"
            for family in CARRIED
        ),
        *(f"| {one.family.name} | `{one.family.input.name}` | | refused: {one.reason} |" for one in REFUSED),
    ]
    return "\n".join(lines) + "\n"


def page_with(text: str) -> str:
    """The page with `text` in the place of its table."""
    page = PAGE.read_text()
    start = page.index("| family |")
    return page[:start] + text + page[page.index("\n\n", start) + 1 :]


if __name__ == "__main__":
    PAGE.write_text(page_with(table()))
