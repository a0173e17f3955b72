"""`slipway calibrate`: ranges of activations, from calibration data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .options import default_output, folder_recipe, model_recipe, output_option, recipe_options
from .stage import run_stages


@click.command("calibrate")
@click.argument("model")
@output_option
@click.option("--force", is_flag=True, help="calibrate, unchanged or not")
@recipe_options("calibrate")
def command(model: str, output: Path | None, force: bool, recipe_file: Path | None, **given: Any) -> None:
    """What the activations of MODEL range over, observed on its fused graph: scales.json.

    MODEL is a folder that slipway built, or any model that `slipway build` takes, which is then exported and fused
    first. Builds whose precision or cache needs ranges run this stage by themselves.
    """
    from pipeline.workspace import RECIPE

    if (Path(model) / RECIPE).is_file():
        run_stages(folder_recipe(Path(model), recipe_file, given), Path(model), ("calibrate",), force)
        return
    recipe = model_recipe(model, recipe_file, given)
    run_stages(recipe, default_output(output, recipe), ("export", "fuse", "calibrate"), force)
