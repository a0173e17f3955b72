"""`slipway refit`: weights for an engine that was built without them."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("refit")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    help="engine to write  [default: DIR/refitted and its suffix]",
)
def command(folder: Path, output: Path | None) -> None:
    """Put the weights of DIR's lowered graph into its engine, which --strip left out. Takes a GPU and its driver."""
    from model_repo.runtime.errors import BadInput
    from model_repo.runtime.manifest import Manifest
    from pipeline.disk import in_words
    from pipeline.recipe import Recipe
    from pipeline.targets import get_target
    from pipeline.targets.tensorrt.plugin_loading import kernels_to_run
    from pipeline.targets.tensorrt.refitting import refit_engine
    from pipeline.workspace import RECIPE, lowered

    from .screen import working

    if not (folder / RECIPE).is_file():
        raise BadInput(f"{folder} holds no {RECIPE}; give the folder of a build")
    target = Recipe.load(folder / RECIPE).target
    if not target.name.startswith("tensorrt"):
        raise BadInput(f"{folder} is a build for target {target.name}, whose engines are not refitted")
    engine, graph = folder / get_target(target.name).descriptor.engine, folder / lowered(target.name)
    for file in (engine, graph):
        if not file.is_file():
            raise BadInput(f"{file} is not there; build {folder} first, with --strip")
    library = target.plugin_library
    spec = Manifest.read(folder / "engine.json").engine
    plugins = target.name == "tensorrt" and spec is not None and spec.kind == "decoder"
    kernels = str(kernels_to_run()) if plugins and library is None else None
    written = output or engine.with_stem("refitted")
    with working(f"refitting {engine}"):
        size = refit_engine(target.name, engine, graph, written, (library, kernels))
    print(f"{written}: {in_words(size)}")
