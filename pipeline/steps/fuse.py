"""Stage fuse: the same numbers from fewer nodes."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from model_repo.runtime.errors import BadInput
from pipeline.recipe import FuseRecipe
from pipeline.stages import Product, Stage
from pipeline.workspace import EXPORTED, FUSED

from .context import PARITY_CODE, BuildContext, graph_files

if TYPE_CHECKING:
    import onnx_ir as ir

CODE = (
    "pipeline/fuse",
    "pipeline/steps/fuse.py",
    "pipeline/steps/encoder_graph.py",
    "calibration/equalizing.py",
    "calibration/rotating.py",
    "calibration/linear_layers.py",
    "calibration/algorithms/equalization.py",
    "calibration/algorithms/hadamard.py",
    *PARITY_CODE,
)
PACKAGES = ("onnx", "onnx-ir", "onnxruntime")
ROTATION = "rotation"
"""What the origins of turned weights have in `folded`."""
EQUALIZATION = "equalization"
"""The same of equalized convolutions."""


def stage(context: BuildContext) -> Stage:
    """The stage in this build."""
    return Stage(
        name="fuse",
        code=CODE,
        packages=PACKAGES,
        recipe={"fuse": _rules(context).to_dict()},
        inputs=lambda: graph_files(context, "export"),
        given=lambda: context.facts.to_dict(),
        run=lambda: _run(context),
        command=("slipway", "fuse", context.shown),
        needed_bytes=context.needed_bytes(1),
    )


def _rules(context: BuildContext) -> FuseRecipe:
    """The recipe's rules, without those whose operators the target has no counterpart of."""
    from pipeline.targets import get_target

    fuse = context.recipe.fuse
    left_out = get_target(context.recipe.target.name).descriptor.left_out
    if context.recipe.target.attention == "plugin":
        left_out = tuple(rule for rule in left_out if rule != "packed_texts")
    return replace(fuse, disable=tuple(dict.fromkeys((*fuse.disable, *left_out))))


def _run(context: BuildContext) -> Product:
    from pipeline.fuse import fuse
    from pipeline.graph import load_graph, save_graph

    from .comparing import compared
    from .encoder_graph import rewritten

    before = context.workspace.path(EXPORTED)
    model = load_graph(before)
    facts = context.facts
    max_length = facts.max_length if facts.kind == "decoder" else None
    report = fuse(model, _rules(context), max_length=max_length)
    equalized = _equalized(model) if context.recipe.fuse.equalize else ()
    rotated = _rotated(model) if context.recipe.fuse.rotate else ()
    saved = save_graph(model, context.workspace.staged(FUSED))
    encoder = rewritten(context, EXPORTED, FUSED, lambda graph: fuse(graph, _rules(context), max_length=None))
    parity = compared(context, "fuse", saved.graph, "export", before)
    return Product(
        {FUSED: saved.graph, **encoder.files},
        shared=sorted({*saved.weights, *encoder.weights}),
        parity=parity,
        details={"fusion": report.to_dict(), "equalized": len(equalized), "rotated": len(rotated)},
    )


def _equalized(model: ir.Model) -> list[str]:
    """Equalizes neighbouring convolutions, with a note in the origin of each weight that changed.

    Raises BadInput where no two of them are neighbours.
    """
    from calibration.equalizing import ACTIVATIONS, equalize_convolutions, pairs
    from pipeline.fuse.weights import note_folded

    if not pairs(model):
        raise BadInput(
            "fuse.equalize is on, and the model has no two convolutions one after the other with at most "
            f"{', '.join(ACTIVATIONS[:-1])} between them; build it without --equalize"
        )
    names = equalize_convolutions(model)
    for name in names:
        note_folded(model.graph.initializers[name], EQUALIZATION)
    return names


def _rotated(model: ir.Model) -> list[str]:
    """Turns the residual stream, with a note in the origin of each weight that changed. Raises BadInput as `rotate`."""
    from calibration.rotating import rotate
    from pipeline.fuse.weights import note_folded

    names = rotate(model)
    for name in names:
        note_folded(model.graph.initializers[name], ROTATION)
    return names
