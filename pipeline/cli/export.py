"""`slipway export`: stage 1."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .options import default_output, model_recipe, output_option, recipe_options


@click.command("export")
@click.argument("model", required=False)
@output_option
@click.option("--force", is_flag=True, help="run the stage, unchanged or not")
@recipe_options("source", "export")
def command(
    model: str | None, output: Path | None, force: bool, recipe_file: Path | None, **given: Any
) -> None:
    """MODEL (demo, minilm, a folder, hub id, package.module:function, .pt2 or .onnx file) becomes export.onnx.

    It is compared with what it was made from.
    """
    from .stage import run_stages

    recipe = model_recipe(model, recipe_file, given)
    run_stages(recipe, default_output(output, recipe), ("export",), force)
