"""`slipway build`: all stages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .options import default_output, model_recipe, output_option, recipe_options


@click.command("build")
@click.argument("model", required=False)
@output_option
@click.option("--force", is_flag=True, help="run every stage, unchanged or not")
@recipe_options("source", "export", "fuse", "calibrate", "quantize", "target", "serve")
def command(
    model: str | None, output: Path | None, force: bool, recipe_file: Path | None, **given: Any
) -> None:
    """All stages of MODEL: demo, minilm, a folder in Hugging Face format, a hub id (org/name[@revision]),
    package.module:function, or a .pt2 or .onnx file.

    Stages whose inputs and recipe section are unchanged are not run again. Prints the stage table and the
    path of the Triton model repository.
    """
    from pipeline import build

    from .screen import ScreenProgress, show_result

    recipe = model_recipe(model, recipe_file, given)
    with ScreenProgress() as progress:
        result = build(recipe, default_output(output, recipe), progress=progress, force=force)
    show_result(result)
