"""Stage export: from the torch module to export.onnx, compared with the module itself."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from pipeline.options import changed_options
from pipeline.recipe import Recipe
from pipeline.stages import Product, Stage
from pipeline.workspace import EXPORTED

from .context import CHAT_TEMPLATE, PARITY_CODE, TOKENIZER, BuildContext, ModelFacts, parity_inputs

CODE = (
    "pipeline/export",
    "pipeline/sources",
    "pipeline/steps/export.py",
    "plugins/ops.py",
    "plugins/reference",
    "model_repo/runtime/contract.py",
    *PARITY_CODE,
)
PACKAGES = ("torch", "transformers", "safetensors", "onnx", "onnx-ir", "onnxscript", "onnxruntime")


def stage(context: BuildContext) -> Stage:
    """The stage in this build."""
    recipe = context.recipe
    return Stage(
        name="export",
        code=CODE,
        packages=PACKAGES,
        recipe={"source": _deciding(recipe), "export": recipe.export.to_dict()},
        inputs=lambda: context.source.files,
        run=lambda: _run(context),
        command=command(context),
        needed_bytes=context.needed_bytes(1),
    )


def command(context: BuildContext) -> Sequence[str]:
    """The command that repeats the export; it needs no file of an earlier one."""
    recipe = context.recipe
    options = [*changed_options("source", recipe.source), *changed_options("export", recipe.export)]
    return ("slipway", "export", recipe.source.model, *options, "--output", context.shown)


def _deciding(recipe: Recipe) -> dict[str, object]:
    """The source section without the model's path: its files are inputs, wherever they lie."""
    values = recipe.source.to_dict()
    del values["model"]
    return values


def _run(context: BuildContext) -> Product:
    from pipeline.export import export
    from pipeline.graph import save_graph
    from pipeline.parity.compare import compare
    from pipeline.parity.reference import run_module

    from .comparing import run_graph

    source, workspace, recipe = context.source, context.workspace, context.recipe
    max_length = recipe.export.resolved_max_length(source.max_length)
    inputs = parity_inputs(source.tokenizer_file, source.vocab_size, max_length)
    expected = run_module(source, inputs)
    exported = export(source, recipe.export)
    last = exported.model.graph.outputs[0].shape
    hidden = last[-1] if last is not None and source.kind == "encoder" else None
    facts = ModelFacts(
        name=source.name,
        kind=source.kind,
        vocab_size=source.vocab_size,
        max_length=exported.max_length,
        end_token_ids=source.end_token_ids,
        features=exported.features,
        kv=exported.kv,
        encoder_inputs=exported.encoder_inputs,
        hidden_size=hidden if isinstance(hidden, int) else None,
    )
    saved = save_graph(exported.model, workspace.staged(EXPORTED))
    del exported
    found = run_graph(context, saved.graph, facts, inputs)
    context.outputs["export"] = found
    files = {EXPORTED: saved.graph, **_text_files(context)}
    parity = compare(expected, found, "the torch module", top1=source.kind == "decoder")
    return Product(files, shared=saved.weights, parity=parity, details={"model": facts.to_dict()})


def _text_files(context: BuildContext) -> dict[str, Path]:
    """The tokenizer and the chat template, staged: later stages need nothing of the source."""
    source, workspace = context.source, context.workspace
    files = {}
    if source.tokenizer_file is not None:
        files[TOKENIZER] = workspace.staged(TOKENIZER)
        shutil.copyfile(source.tokenizer_file, files[TOKENIZER])
    if source.chat_template is not None:
        files[CHAT_TEMPLATE] = workspace.staged(CHAT_TEMPLATE)
        files[CHAT_TEMPLATE].write_text(source.chat_template, encoding="utf-8")
    return files
