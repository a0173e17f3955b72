"""`slipway clean`: removes a build."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("clean")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
def command(folder: Path) -> None:
    """Remove what slipway built in DIR; other files there stay."""
    from pipeline.clean import clean
    from pipeline.disk import in_words

    freed = clean(folder, lambda text: click.echo(text, err=True))
    click.echo(f"{in_words(freed)} freed")
