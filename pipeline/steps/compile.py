"""Stage compile: what the runtime loads, and all that it needs beside it."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from model_repo.runtime.contract import EngineSpec, Limits
from model_repo.runtime.engine_files import EXAMPLE
from pipeline.stages import Product, Stage
from pipeline.workspace import ENGINE, lowered

from .context import (
    CHAT_TEMPLATE,
    EXAMPLES,
    PARITY_CODE,
    TOKENIZER,
    BuildContext,
    ModelFacts,
    graph_files,
    weights_in,
)

CODE = (
    "pipeline/targets",
    "pipeline/steps/compile.py",
    "plugins/cpu",
    "model_repo/runtime/contract.py",
    *PARITY_CODE,
)
PACKAGES = ("onnx", "onnx-ir", "onnxruntime")
_ENGINE_NAMES = {TOKENIZER: "tokenizer.json", CHAT_TEMPLATE: "chat_template.jinja", EXAMPLES: EXAMPLE}
"""Files of the export that an engine takes along, and what the runtime calls them."""


def stage(context: BuildContext) -> Stage:
    """The stage in this build."""
    recipe = context.recipe
    return Stage(
        name="compile",
        code=CODE,
        packages=PACKAGES,
        recipe={"target": recipe.target.to_dict(), "quantize": recipe.quantize.to_dict()},
        inputs=lambda: [*graph_files(context, "lower"), *_text_files(context)],
        given=lambda: context.facts.to_dict(),
        run=lambda: _run(context),
        command=("slipway", "compile", context.shown),
        needed_bytes=context.needed_bytes(0.5),
    )


def _text_files(context: BuildContext) -> list[Path]:
    return [path for path in context.artifact_files("export") if path.name in _ENGINE_NAMES]


def _run(context: BuildContext) -> Product:
    from pipeline.graph import load_graph
    from pipeline.parity.sessions import uses_plugin
    from pipeline.targets import get_target
    from plugins.cpu.build import library_path

    from .comparing import compared

    workspace, recipe, facts = context.workspace, context.recipe, context.facts
    before = workspace.path(lowered(recipe.target.name))
    graph = workspace.staged(ENGINE)
    spec = engine_spec(context, facts)
    get_target(recipe.target.name).compile(before, graph, recipe.target)
    files = {ENGINE: graph}
    for path in _text_files(context):
        final = _ENGINE_NAMES[path.name]
        files[final] = workspace.staged(final)
        shutil.copyfile(path, files[final])
    if uses_plugin(load_graph(graph)):
        library = library_path()
        files[library.name] = workspace.staged(library.name)
        shutil.copyfile(library, files[library.name])
        spec = replace(spec, plugin=library.name)
    parity = compared(context, "compile", graph, "lower", before, engine=True)
    return Product(files, shared=weights_in(workspace, graph), parity=parity, engine=spec)


def engine_spec(context: BuildContext, facts: ModelFacts) -> EngineSpec:
    """What the runtime needs to know, without the plugin. Raises BadInput when the limits do not fit."""
    recipe = context.recipe
    limits = None
    if facts.kind == "decoder":
        per_token = sum(spec.bytes_per_token for spec in facts.kv)
        limits = Limits(
            max_batch=recipe.target.max_batch,
            token_budget=recipe.target.token_budget,
            max_length=facts.max_length,
            block_size=recipe.target.block_size,
            num_blocks=recipe.target.resolved_num_blocks(per_token, facts.max_length),
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
    )
