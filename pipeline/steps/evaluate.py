"""Stage evaluate: the engine's accuracy on held-out data, judged by the recipe before anything is emitted."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from model_repo.runtime.errors import GateFailed
from pipeline.recipe import AcceptRecipe, Recipe
from pipeline.stages import Product, Stage
from pipeline.workspace import ACCURACY, ACCURACY_PICTURE

from .context import PARITY_CODE, BuildContext, graph_files

CODE = ("calibration", "pipeline/evaluate.py", "pipeline/steps/evaluate.py", *PARITY_CODE)
PACKAGES = ("onnx", "onnx-ir", "onnxruntime", "tokenizers", "ml_dtypes")


def needed(recipe: Recipe) -> bool:
    """Whether the recipe has an acceptance rule."""
    return bool(recipe.accept.limits)


def judge(report: Mapping[str, Any], accept: AcceptRecipe) -> None:
    """Raises GateFailed when the report breaks the rule, and BadInput when the rule is about another kind of model."""
    from calibration.report.acceptance import Limit, broken

    words = broken(report, [Limit(*limit) for limit in accept.limits])
    if words:
        raise GateFailed(f"the engine is not accurate enough: {'; '.join(words)}. Nothing was emitted")


def stage(context: BuildContext) -> Stage:
    """The stage in this build."""
    recipe = context.recipe
    return Stage(
        name="evaluate",
        code=CODE,
        packages=PACKAGES,
        recipe={"accept": recipe.accept.to_dict()},
        inputs=lambda: [
            *context.artifact_files("compile"),
            *graph_files(context, "fuse"),
            *_data_files(recipe),
        ],
        given=lambda: context.facts.to_dict(),
        run=lambda: _run(context),
        command=("slipway", "evaluate", context.shown),
        needed_bytes=context.needed_bytes(0),
    )


def _run(context: BuildContext) -> Product:
    from calibration.report.picture import write_picture
    from pipeline.evaluate import Given, dump, evaluate

    accept, workspace = context.recipe.accept, context.workspace
    report = evaluate(
        workspace.folder,
        given=Given(None if accept.data is None else Path(accept.data), accept.tokens),
        compare_always=True,
        advanced=context.progress.advanced,
    )
    judge(report, accept)
    staged = workspace.staged(ACCURACY)
    staged.write_text(dump(report), encoding="utf-8")
    picture = workspace.staged(ACCURACY_PICTURE)
    write_picture(picture, report, f"Accuracy of {report['candidate']['name']}")
    return Product({ACCURACY: staged, ACCURACY_PICTURE: picture}, parity=_in_words(report))


def _in_words(report: Mapping[str, Any]) -> str:
    """One short line for the table of stages."""
    if "perplexity" in report:
        change = f"{report['perplexity_increase']:+.2%}"
        return f"perplexity {report['perplexity']:.2f} ({change}), top-1 {report['top1']:.1%}"
    if "mean_cosine" in report:
        return f"mean cosine {report['mean_cosine']:.5f}, same nearest sentence {report['retrieval']:.1%}"
    return "inside the acceptance rule"


def _data_files(recipe: Recipe) -> list[Path]:
    from calibration.report.heldout import HELDOUT_FILE

    return [Path(recipe.accept.data) if recipe.accept.data is not None else HELDOUT_FILE]
