"""Stage fuse: the same numbers from fewer nodes."""

from __future__ import annotations

from pipeline.stages import Product, Stage
from pipeline.workspace import EXPORTED, FUSED

from .context import PARITY_CODE, BuildContext, graph_files

CODE = ("pipeline/fuse", "pipeline/steps/fuse.py", "pipeline/steps/encoder_graph.py", *PARITY_CODE)
PACKAGES = ("onnx", "onnx-ir", "onnxruntime")


def stage(context: BuildContext) -> Stage:
    """The stage in this build."""
    return Stage(
        name="fuse",
        code=CODE,
        packages=PACKAGES,
        recipe={"fuse": context.recipe.fuse.to_dict()},
        inputs=lambda: graph_files(context, "export"),
        given=lambda: context.facts.to_dict(),
        run=lambda: _run(context),
        command=("slipway", "fuse", context.shown),
        needed_bytes=context.needed_bytes(1),
    )


def _run(context: BuildContext) -> Product:
    from pipeline.fuse import fuse
    from pipeline.graph import load_graph, save_graph

    from .comparing import compared
    from .encoder_graph import rewritten

    before = context.workspace.path(EXPORTED)
    model = load_graph(before)
    facts = context.facts
    max_length = facts.max_length if facts.kind == "decoder" else None
    report = fuse(model, context.recipe.fuse, max_length=max_length)
    saved = save_graph(model, context.workspace.staged(FUSED))
    encoder = rewritten(
        context, EXPORTED, FUSED, lambda graph: fuse(graph, context.recipe.fuse, max_length=None)
    )
    parity = compared(context, "fuse", saved.graph, "export", before)
    return Product(
        {FUSED: saved.graph, **encoder.files},
        shared=sorted({*saved.weights, *encoder.weights}),
        parity=parity,
        details={"fusion": report.to_dict()},
    )
