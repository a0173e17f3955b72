"""Stage quantize: the fused graph with codes for weights, and rounding where the target computes with codes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model_repo.runtime.errors import BadInput
from pipeline.options import changed_options
from pipeline.recipe import FLOATS, QuantizeRecipe, Recipe
from pipeline.stages import Product, Stage
from pipeline.workspace import FUSED, QUANTIZED, SCALES

from . import calibrate
from .context import PARITY_CODE, BuildContext, graph_files

if TYPE_CHECKING:
    import onnx_ir as ir

    from calibration.linear_layers import LinearLayer
    from calibration.schemes import Quantized, Scheme
    from pipeline.quantize.nodes import ActivationScale
    from pipeline.quantize.precisions import LayerSchemes
    from pipeline.quantize.write import Rounder

CODE = ("pipeline/quantize", "pipeline/steps/quantize.py", "calibration", "plugins/cpu", *PARITY_CODE)
PACKAGES = ("onnx", "onnx-ir", "onnxruntime", "ml_dtypes")
CHECKPOINT = "checkpoint"
"""The algorithm that takes codes and scales from the source."""
WALK = "quantize.walk"
"""Folder of the results of an algorithm that goes block by block."""


def needed(recipe: Recipe) -> bool:
    """Whether a build of this recipe quantizes."""
    return recipe.quantize.quantizes


def stage(context: BuildContext) -> Stage:
    """The stage in this build."""
    recipe = context.recipe
    return Stage(
        name="quantize",
        code=CODE,
        packages=PACKAGES,
        recipe={
            "quantize": recipe.quantize.to_dict(),
            "calibrate": recipe.calibrate.to_dict(),
            "target": {"name": recipe.target.name},
        },
        inputs=lambda: _inputs(context),
        given=lambda: context.facts.to_dict(),
        run=lambda: _run(context),
        command=("slipway", "quantize", context.shown, *changed_options("quantize", recipe.quantize)),
        needed_bytes=context.needed_bytes(0.5),
    )


def _inputs(context: BuildContext) -> list[Path]:
    paths = [*graph_files(context, "fuse")]
    if calibrate.needed(context.recipe):
        paths += [path for path in context.artifact_files("calibrate") if path.name == SCALES]
    if context.recipe.quantize.layers is not None:
        paths.append(Path(context.recipe.quantize.layers))
    return paths


def _run(context: BuildContext) -> Product:
    from pipeline.graph import load_graph, save_graph
    from pipeline.quantize.convolutions import convolution_schemes
    from pipeline.quantize.experts import expert_schemes, experts_of
    from pipeline.quantize.kv import quantize_pools
    from pipeline.quantize.policy import policy_of
    from pipeline.quantize.precisions import schemes_of
    from pipeline.quantize.verify import verify
    from pipeline.quantize.write import layers_of, write

    from .comparing import compared
    from .encoder_graph import refuse_quantization

    refuse_quantization(context, context.facts.encoder or context.facts.image_encoder)
    recipe = context.recipe.quantize
    policy = policy_of(context.recipe.target.name, recipe.precision)
    before = context.workspace.path(FUSED)
    model = load_graph(before)
    float_bytes = _bytes(model)
    layers = layers_of(model, policy)
    convolved = _convolved(context, model)
    names = [layer.name for layer in layers]
    experts = [layer.name for layer in experts_of(model, policy)]
    known = {*names, *experts, *convolved}
    chosen = _chosen(Path(recipe.layers), known) if recipe.layers is not None else None
    schemes = {name: policy.adapted(found) for name, found in schemes_of(recipe, names, chosen).items()}
    fixed: Mapping[str, float] = {}
    if recipe.algorithm == CHECKPOINT:
        codes, fixed = _of_checkpoint(context, layers, schemes)
        schemes = {name: schemes[name] for name in codes}
        policy = replace(policy, tables=False)  # what the checkpoint left in floats stays so
        rounder: Rounder = lambda name, weight, scheme: codes[name]  # noqa: E731
    else:
        _refuse_factors(recipe, schemes)
        rounder = _rounder(context, model, schemes)
        schemes |= expert_schemes(schemes_of(recipe, experts, chosen))
    if convolved:
        schemes |= convolution_schemes(model, policy, recipe.precision, chosen)
    if recipe.bias_correction:
        _correct_biases(context, model, schemes)
    written = write(model, policy, schemes, rounder, _scales(context, fixed))
    verify(model, written)
    if recipe.kv_dtype not in FLOATS.values():
        quantize_pools(model, context.facts.kv, recipe.kv_dtype, _ranges(context))
    saved = save_graph(model, context.workspace.staged(QUANTIZED))
    shutil.rmtree(context.workspace.path(WALK), ignore_errors=True)
    parity = compared(context, "quantize", saved.graph, "fuse", before)
    details = {
        "products": len(written.products),
        "tables": len(written.tables),
        "kept": list(written.kept),
        "weight_bytes": _bytes(model),
        "float_weight_bytes": float_bytes,
    }
    return Product({QUANTIZED: saved.graph}, shared=saved.weights, parity=parity, details=details)


def _convolved(context: BuildContext, model: ir.Model) -> list[str]:
    """Weights of convolutions that are quantized. Raises BadInput: their biases are to be corrected, and none is."""
    from pipeline.quantize.convolutions import convolutions

    recipe = context.recipe
    found = [layer.name for layer in convolutions(model)]
    if calibrate.convolves(recipe) and found:
        return found
    if recipe.quantize.bias_correction:
        raise BadInput(
            f"quantize.bias_correction is on, and no convolution is quantized ({len(found)} in the model); precisions "
            "int8 and mixed quantize them on calibration data (--data)"
        )
    if recipe.quantize.precision in calibrate.CONVOLVED_PRECISIONS and found:
        context.progress.say(
            f"{len(found)} convolutions stay in floating point; with calibration data (--data) they are quantized"
        )
    return []


def _correct_biases(context: BuildContext, model: ir.Model, schemes: Mapping[str, LayerSchemes]) -> None:
    """Biases of convolutions take up the mean error of their weights' codes. Raises BadInput as calibration does."""
    from calibration.batches import Batches
    from pipeline.quantize.bias import channel_means, correct_biases
    from pipeline.quantize.convolutions import convolutions

    layers = [layer for layer in convolutions(model) if layer.name in schemes]
    names = list(dict.fromkeys(layer.inputs.name or "" for layer in layers))
    batches = Batches(context.facts, calibrate.samples_of(context).items)
    threads = context.recipe.target.threads
    correct_biases(
        model, schemes, channel_means(context.workspace.path(FUSED), names, batches, threads=threads)
    )


def _bytes(model: ir.Model) -> int:
    """Bytes of all constants of a graph."""
    return sum(
        value.const_value.nbytes
        for value in model.graph.initializers.values()
        if value.const_value is not None
    )


def _chosen(path: Path, known: set[str]) -> dict[str, str]:
    """The precision of each weight, as a file says. Raises BadInput: unreadable, unknown weight or precision."""
    from pipeline.quantize.precisions import LAYER_PRECISIONS

    try:
        given = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise BadInput(f"quantize.layers: {path} is not readable JSON ({error})") from error
    if not isinstance(given, dict):
        raise BadInput(f"quantize.layers: {path} must hold an object of weight name to precision")
    for name, precision in given.items():
        if name not in known:
            raise BadInput(
                f"quantize.layers: {path} names {name!r}, which is no weight that is quantized here"
            )
        if precision not in LAYER_PRECISIONS:
            raise BadInput(
                f"quantize.layers: {path} gives {name!r} precision {precision!r}; known: {', '.join(LAYER_PRECISIONS)}"
            )
    return given


def _ranges(context: BuildContext) -> Any:
    """What the stage calibrate found on this graph. Raises BadInput."""
    from calibration.scales import Scales

    (graph,) = (record for record in context.required("fuse").outputs if record.path == FUSED)
    return Scales.read(context.workspace.path(SCALES), graph.sha256)


def _scales(context: BuildContext, fixed: Mapping[str, float]) -> ActivationScale | None:
    """Scales of activations that are fixed beforehand, those of `fixed` as they are; None where there are none."""
    if not calibrate.needed(context.recipe):
        return None
    from pipeline.quantize.nodes import Step

    ranges = _ranges(context)

    def step_of(name: str, scheme: Scheme) -> Step:
        if name in fixed and scheme.format == "e4m3":
            return Step(fixed[name])
        scale, zero = ranges.scales_of(name, scheme)
        return Step(float(scale), 0 if zero is None else int(zero))

    return step_of


def _of_checkpoint(
    context: BuildContext, layers: list[LinearLayer], schemes: Mapping[str, LayerSchemes]
) -> tuple[dict[str, Quantized], dict[str, float]]:
    """The codes of the source's own checkpoint, by weight, and its scales of activations, by tensor.

    Raises BadInput: it is not quantized, or otherwise.
    """
    from pipeline.quantize.imported import imported, input_scales
    from pipeline.sources.dequantized import quantized_checkpoint

    source = context.source
    found = quantized_checkpoint(source.folder, source.files)
    if found is None:
        raise BadInput(
            f"quantize.algorithm is {CHECKPOINT!r}, and {source.folder} is not quantized; choose another algorithm"
        )
    formats = frozenset(layer.weight.format for layer in schemes.values() if layer.weight is not None)
    codes = imported(layers, found, formats)
    return codes, input_scales([layer for layer in layers if layer.name in codes], found)


def _refuse_factors(recipe: QuantizeRecipe, schemes: Mapping[str, LayerSchemes]) -> None:
    """Raises BadInput: factors would move into activations after their ranges were fixed."""
    from calibration.methods import method

    activations = [layer.activation for layer in schemes.values()]
    static = any(scheme is not None and scheme.granularity != "token" for scheme in activations)
    if static and method(recipe.algorithm).smoothing != "none":
        raise BadInput(
            f"quantize.algorithm is {recipe.algorithm!r}, which moves factors into activations, and those of "
            f"{recipe.precision!r} have ranges fixed beforehand; choose rtn, hqq, gptq or adaround"
        )


def _rounder(context: BuildContext, model: ir.Model, schemes: Mapping[str, LayerSchemes]) -> Rounder:
    """How weights are rounded: to nearest, or as the recipe's algorithm decided block by block."""
    from calibration.activations import observable
    from calibration.batches import Batches
    from calibration.blocks import walk
    from calibration.linear_layers import replace_weight
    from model_repo.runtime.manifest import sha256_of_json
    from pipeline.fuse.weights import note_folded
    from pipeline.quantize.precisions import DYNAMIC_INT8
    from pipeline.quantize.write import nearest

    recipe = context.recipe
    wanted = {name: layer.weight for name, layer in schemes.items() if layer.weight is not None}
    if recipe.quantize.algorithm == "rtn" or not wanted:
        return nearest
    graph = context.workspace.path(FUSED)
    samples = calibrate.samples_of(context)
    activations = {layer.activation for layer in schemes.values() if layer.activation is not None}
    (record,) = (item for item in context.required("fuse").outputs if item.path == FUSED)
    key = sha256_of_json(
        {
            "graph": record.sha256,
            "data": samples.to_dict(),
            "schemes": {name: str(scheme) for name, scheme in wanted.items()},
            "algorithm": recipe.quantize.algorithm,
        }
    )
    walked = walk(
        observable(graph),
        Batches(context.facts, samples.items),
        wanted,
        recipe.quantize.algorithm,
        context.workspace.path(WALK),
        key,
        input_scheme=next(iter(activations), DYNAMIC_INT8),
        progress=context.progress.advanced,
    )
    for name, array in walked.folded.items():
        replace_weight(model.graph.initializers[name], array)
    for name in walked.factored:
        note_folded(model.graph.initializers[name], f"{recipe.quantize.algorithm} factors")
    return lambda name, weight, scheme: (
        walked.quantized[name] if name in walked.quantized else nearest(name, weight, scheme)
    )
