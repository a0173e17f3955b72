"""Stage lower: the graph in the operators that the target knows."""

from __future__ import annotations

from pipeline.stages import Product, Stage
from pipeline.workspace import FUSED, lowered

from .context import PARITY_CODE, BuildContext, graph_files

CODE = ("pipeline/targets", "pipeline/steps/lower.py", *PARITY_CODE)
PACKAGES = ("onnx", "onnx-ir", "onnxruntime")


def stage(context: BuildContext) -> Stage:
    """The stage in this build."""
    recipe = context.recipe
    return Stage(
        name="lower",
        code=CODE,
        packages=PACKAGES,
        recipe={"target": {"name": recipe.target.name}, "quantize": recipe.quantize.to_dict()},
        inputs=lambda: graph_files(context, "fuse"),
        given=lambda: context.facts.to_dict(),
        run=lambda: _run(context),
        command=("slipway", "lower", context.shown),
        needed_bytes=context.needed_bytes(0.5),
    )


def _run(context: BuildContext) -> Product:
    from pipeline.graph import load_graph, save_graph
    from pipeline.targets import get_target

    from .comparing import compared

    before = context.workspace.path(FUSED)
    name = lowered(context.recipe.target.name)
    model = load_graph(before)
    get_target(context.recipe.target.name).lower(model, context.facts.kind)
    saved = save_graph(model, context.workspace.staged(name))
    parity = compared(context, "lower", saved.graph, "fuse", before)
    return Product({name: saved.graph}, shared=saved.weights, parity=parity)
