"""`slipway demo`: what `make demo` runs once the environments are there."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("demo")
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    default=Path("build"),
    show_default=True,
    help="folder for the builds of both models and their repository",
)
@click.option("--svg", type=click.Path(path_type=Path), help="write a picture of what is shown to this file")
def command(output: Path, svg: Path | None) -> None:
    """Build the demo models, serve them with one tritonserver, and talk to them."""
    from pipeline.demo import run_demo

    from .screen import ScreenProgress

    with ScreenProgress() as progress:
        run_demo(output, progress, svg)
