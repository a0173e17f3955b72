"""Stage compile for targets whose engine is the lowered graph, which is optimized where it is loaded."""

from __future__ import annotations

import shutil
from pathlib import Path

from pipeline.stages import Product, Stage
from pipeline.workspace import ENGINE, lowered

from .compile import CODE, PACKAGES, engine_spec
from .context import BuildContext, graph_files, weights_in
from .files_beside import files_beside

NOT_COMPARED = "not run: executing it takes a GPU; it is the lowered graph"


def stage(context: BuildContext) -> Stage:
    """The stage in this build."""
    recipe = context.recipe
    return Stage(
        name="compile",
        code=(*CODE, "pipeline/steps/compile_graph.py"),
        packages=PACKAGES,
        recipe={"target": recipe.target.to_dict(), "quantize": recipe.quantize.to_dict()},
        inputs=lambda: [*graph_files(context, "lower"), *files_beside(context).values()],
        given=lambda: context.facts.to_dict(),
        run=lambda: _run(context),
        command=("slipway", "compile", context.shown),
        needed_bytes=context.needed_bytes(0.1),
    )


def _run(context: BuildContext) -> Product:
    from pipeline.targets import get_target

    workspace, recipe = context.workspace, context.recipe
    spec = engine_spec(context, context.facts_after("compile"))
    engine = workspace.staged(ENGINE)
    record = get_target(recipe.target.name).compile(
        workspace.path(lowered(recipe.target.name)), engine, recipe.target, spec
    )
    files: dict[str, Path] = {ENGINE: engine}
    for name, path in files_beside(context).items():
        files[name] = workspace.staged(name)
        shutil.copyfile(path, files[name])
    return Product(
        files,
        shared=weights_in(workspace, engine),
        parity=NOT_COMPARED,
        engine=spec,
        details={"builder": record},
    )
