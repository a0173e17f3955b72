"""`slipway serve`: a model behind tritonserver, in the foreground."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .options import default_output, model_recipe, output_option, recipe_options


@click.command("serve")
@click.argument("model", required=False)
@output_option
@recipe_options("source", "export", "fuse", "quantize", "target", "serve")
def command(model: str | None, output: Path | None, recipe_file: Path | None, **given: Any) -> None:
    """Serve MODEL (whatever `slipway build` takes) until Ctrl-C; builds what changed first.

    Prints the URLs, a curl line and a client snippet. Ctrl-C drains: requests that run are finished.
    """
    from model_repo.runtime.executed import check_machine
    from pipeline import build
    from pipeline.foreground import serve_until_interrupted

    from .screen import ScreenProgress

    recipe = model_recipe(model, recipe_file, given)
    check_machine(recipe.target.name, "what is to be served")
    with ScreenProgress() as progress:
        result = build(recipe, default_output(output, recipe), progress=progress)
    serve_until_interrupted(result.repository, click.echo)
