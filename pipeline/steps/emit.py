"""Stage emit: the Triton model repository."""

from __future__ import annotations

from pathlib import Path

from pipeline.stages import Product, Stage
from pipeline.workspace import MANIFESTS, REPOSITORY

from .context import BuildContext

CODE = ("model_repo", "pipeline/steps/emit.py")


def stage(context: BuildContext) -> Stage:
    """The stage in this build."""
    return Stage(
        name="emit",
        code=CODE,
        packages=(),
        recipe={"serve": context.recipe.serve.to_dict()},
        inputs=lambda: _engine_files(context),
        given=lambda: context.facts.to_dict(),
        run=lambda: _run(context),
        command=("slipway", "emit", context.shown),
        needed_bytes=context.needed_bytes(1),
    )


def _engine_files(context: BuildContext) -> list[Path]:
    return [*context.artifact_files("compile"), context.workspace.path(MANIFESTS["compile"])]


def _run(context: BuildContext) -> Product:
    from model_repo.emit import emit

    workspace = context.workspace
    repository = workspace.staged(REPOSITORY)
    emit([(context.facts.name, workspace.folder)], repository, context.recipe.serve)
    return Product({REPOSITORY: repository}, parity="not run: the engine's files are copied as they are")
