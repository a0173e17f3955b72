"""Commands that run one stage in a folder that holds the stage before."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from pipeline.recipe import Recipe

from .options import folder_recipe, recipe_options


def stage_command(stage: str, help_text: str, *sections: str) -> click.Command:
    """`slipway <stage> DIR` with the options of the recipe sections that belong to it."""

    @click.command(stage, help=help_text)
    @click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
    @click.option("--force", is_flag=True, help="run the stage, unchanged or not")
    @recipe_options(*sections)
    def command(folder: Path, force: bool, recipe_file: Path | None, **given: Any) -> None:
        run_stages(folder_recipe(folder, recipe_file, given), folder, (stage,), force)

    return command


def run_stages(recipe: Recipe, folder: Path, stages: Sequence[str], force: bool) -> None:
    """Runs stages and shows their table."""
    from pipeline import build

    from .screen import ScreenProgress, show_result

    with ScreenProgress() as progress:
        result = build(recipe, folder, progress=progress, stages=stages, force=force)
    show_result(result)
