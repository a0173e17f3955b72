"""Stage compile: what the runtime loads, and all that it needs beside it."""

from __future__ import annotations

import shutil
from dataclasses import replace

from model_repo.runtime.contract import CONVOLUTIONS, CROSS, PACKED_TEXTS, ROWS_ALONE, EngineSpec, Limits
from model_repo.runtime.engine_files import ENCODER_FILES, ENCODER_ONLY
from pipeline.sources.encoder_decoder import ENCODER_GRAPH
from pipeline.stages import Product, Stage
from pipeline.workspace import ENGINE, WEIGHTS, lowered

from .context import PARITY_CODE, BuildContext, ModelFacts, graph_files, weights_in
from .files_beside import files_beside

CODE = (
    "pipeline/targets",
    "pipeline/steps/compile.py",
    "pipeline/steps/files_beside.py",
    "plugins/cpu",
    "model_repo/runtime/contract.py",
    "model_repo/runtime/cross_attention.py",
    "model_repo/runtime/prompt_embeds.py",
    "model_repo/runtime/resident_weights.py",
    *PARITY_CODE,
)
PACKAGES = ("onnx", "onnx-ir", "onnxruntime")


def stage(context: BuildContext) -> Stage:
    """The stage in this build."""
    recipe = context.recipe
    return Stage(
        name="compile",
        code=CODE,
        packages=PACKAGES,
        recipe={"target": recipe.target.to_dict(), "quantize": recipe.quantize.to_dict()},
        inputs=lambda: [*graph_files(context, "lower"), *files_beside(context).values()],
        given=lambda: context.facts.to_dict(),
        run=lambda: _run(context),
        command=("slipway", "compile", context.shown),
        needed_bytes=context.needed_bytes(0.5),
    )


def _run(context: BuildContext) -> Product:
    from pipeline.graph import load_graph
    from pipeline.parity.cross import encoder_beside
    from pipeline.parity.sessions import has_convolutions, uses_plugin
    from pipeline.targets import get_target
    from pipeline.targets.quantized import rows_alone
    from plugins.cpu.build import library_path
    from plugins.schemas import DOMAIN, PACKED_LAYOUT

    from .comparing import compared

    workspace, recipe, facts = context.workspace, context.recipe, context.facts_after("compile")
    before = workspace.path(lowered(recipe.target.name))
    graph = workspace.staged(ENGINE)
    spec = engine_spec(context, facts)
    get_target(recipe.target.name).compile(before, graph, recipe.target)
    files = {ENGINE: graph}
    for final, path in files_beside(context).items():
        files[final] = workspace.staged(final)
        shutil.copyfile(path, files[final])
    compiled = load_graph(graph)
    if any(node.op_type == PACKED_LAYOUT.name and node.domain == DOMAIN for node in compiled.graph):
        spec = replace(spec, features=(*spec.features, PACKED_TEXTS))
    if facts.kind == "decoder" and not facts.has_two_graphs and rows_alone(compiled):
        spec = replace(spec, features=(*spec.features, ROWS_ALONE))
    if has_convolutions(compiled):
        spec = replace(spec, features=(*spec.features, CONVOLUTIONS))
    if uses_plugin(compiled):
        library = library_path()
        files[library.name] = workspace.staged(library.name)
        shutil.copyfile(library, files[library.name])
        spec = replace(spec, plugin=library.name)
    weights = weights_in(workspace, graph)
    details: dict[str, list[str]] = {}
    if facts.has_two_graphs:
        files[ENCODER_GRAPH] = encoder_beside(graph)
        get_target(recipe.target.name).compile(encoder_beside(before), encoder_beside(graph), recipe.target)
        own = weights_in(workspace, encoder_beside(graph))
        alone = [path for path in own if path not in weights]
        for key, paths in ((ENCODER_FILES, own), (ENCODER_ONLY, alone)):
            details[key] = [ENCODER_GRAPH, *(f"{WEIGHTS}/{path.name}" for path in paths)]
        weights = sorted({*weights, *own})
    parity = compared(context, "compile", graph, "lower", before, engine=True)
    return Product(files, shared=weights, parity=parity, engine=spec, details=details)


def engine_spec(context: BuildContext, facts: ModelFacts) -> EngineSpec:
    """What the runtime needs to know, without the plugin. Raises BadInput when the limits do not fit."""
    recipe = context.recipe
    limits = None
    if facts.kind == "decoder":
        per_token = sum(spec.bytes_per_token for spec in facts.kv if spec.group != CROSS)
        limits = Limits(
            max_batch=recipe.target.max_batch,
            token_budget=recipe.target.token_budget,
            max_length=facts.max_length,
            block_size=recipe.target.block_size,
            num_blocks=recipe.target.resolved_num_blocks(per_token, facts.max_length),
            num_cross_blocks=_cross_blocks(context, facts),
        )
    return EngineSpec(
        kind=facts.kind,
        name=facts.name,
        target=recipe.target.name,
        precision=recipe.quantize.precision,
        graph=ENGINE,
        plugin=None,
        vocab_size=facts.vocab_size,
        max_length=facts.max_length,
        end_token_ids=facts.end_token_ids,
        features=facts.features,
        kv=facts.kv,
        limits=limits,
        hidden_size=facts.hidden_size,
        encoder_inputs=facts.encoder_inputs,
        threads=recipe.target.threads,
        head=facts.head,
        inputs=facts.inputs,
        outputs=facts.outputs,
        axes=facts.axes,
        batched=facts.batched,
        images=facts.images,
        encoder=facts.encoder,
        image_encoder=facts.image_encoder,
    )


def _cross_blocks(context: BuildContext, facts: ModelFacts) -> int:
    """Blocks for the encoder outputs of as many requests as may run, as far as `kv_cache_bytes` go a second time."""
    if facts.encoder is None:
        return 0
    target = context.recipe.target
    per_token = sum(spec.bytes_per_token for spec in facts.kv if spec.group == CROSS)
    useful = target.max_batch * -(-facts.encoder.max_positions // target.block_size)
    return min(useful, target.kv_cache_bytes // (per_token * target.block_size))
