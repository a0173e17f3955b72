"""Stage lower: the graph in the operators that the target knows."""

from __future__ import annotations

from pipeline.stages import Product, Stage
from pipeline.workspace import FUSED, QUANTIZED, lowered

from .context import PARITY_CODE, BuildContext, graph_files

CODE = (
    "pipeline/targets",
    "pipeline/precision",
    "pipeline/steps/lower.py",
    "pipeline/steps/encoder_graph.py",
    "pipeline/steps/islands.py",
    *PARITY_CODE,
)
PACKAGES = ("onnx", "onnx-ir", "onnxruntime")


def stage(context: BuildContext) -> Stage:
    """The stage in this build."""
    recipe = context.recipe
    return Stage(
        name="lower",
        code=CODE,
        packages=PACKAGES,
        recipe={
            "target": {name: getattr(recipe.target, name) for name in ("name", "attention", "int4_gemm")},
            "quantize": recipe.quantize.to_dict(),
        },
        inputs=lambda: graph_files(context, context.before_lowering),
        given=lambda: context.facts.to_dict(),
        run=lambda: _run(context),
        command=("slipway", "lower", context.shown),
        needed_bytes=context.needed_bytes(0.5),
    )


def _run(context: BuildContext) -> Product:
    from pipeline.graph import load_graph, save_graph
    from pipeline.targets import Lowering, get_target

    from .comparing import compared
    from .comparing_linear import compared_linear
    from .encoder_graph import rewritten
    from .islands import nodes_in_float32

    stage_before = context.before_lowering
    before = context.workspace.path(QUANTIZED if stage_before == "quantize" else FUSED)
    name = lowered(context.recipe.target.name)
    model = load_graph(before)
    target = get_target(context.recipe.target.name)
    chosen = context.recipe.target
    settings = Lowering(
        context.recipe.quantize.precision,
        context.facts.max_length,
        nodes_in_float32(context, before),
        chosen.attention,
        chosen.int4_gemm,
    )
    target.lower(model, context.facts.kind, settings)
    saved = save_graph(model, context.workspace.staged(name))
    encoder = rewritten(context, FUSED, name, lambda graph: target.lower(graph, "tensors"))
    if context.facts.kind == "decoder" and target.descriptor.cache == "linear":
        parity = compared_linear(context, saved.graph, stage_before, before)
    else:
        parity = compared(context, "lower", saved.graph, stage_before, before)
    weights = sorted({*saved.weights, *encoder.weights})
    return Product({name: saved.graph, **encoder.files}, shared=weights, parity=parity)
