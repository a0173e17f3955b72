"""Stage export: from the torch module to export.onnx, compared with the module itself."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.child import in_child
from pipeline.options import changed_options
from pipeline.recipe import Recipe
from pipeline.stages import Product, Stage
from pipeline.workspace import EXPORTED

from .context import CHAT_TEMPLATE, EXAMPLES, PARITY_CODE, TOKENIZER, BuildContext, ModelFacts, parity_inputs

CODE = (
    "pipeline/export",
    "pipeline/sources",
    "pipeline/steps/export.py",
    "pipeline/steps/export_module.py",
    "pipeline/steps/export_tensors.py",
    "pipeline/module_example.py",
    "plugins/ops.py",
    "plugins/reference",
    "model_repo/runtime/contract.py",
    "model_repo/runtime/cross_attention.py",
    "model_repo/runtime/detection.py",
    "model_repo/runtime/image_steps.py",
    "model_repo/runtime/images.py",
    "model_repo/runtime/prompt_embeds.py",
    *PARITY_CODE,
)
EXPECTED = "export.expected.npz"
"""What the torch module gives, on its way from the child process."""

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


def _as_opened(context: BuildContext) -> dict[str, Any]:
    """The recipe for the child process, which opens the very source that this process opened and checked."""
    recipe = context.recipe.to_dict()
    recipe["source"]["model"] = context.source.reference or context.recipe.source.model
    return recipe


def _deciding(recipe: Recipe) -> dict[str, object]:
    """The source section without the model's path: its files are inputs, wherever they lie."""
    values = recipe.source.to_dict()
    del values["model"]
    return values


def _run(context: BuildContext) -> Product:
    from pipeline.parity.cross import encoder_beside
    from pipeline.parity.tensors import load_runs

    from .comparing import figures, run_graph
    from .encoder_graph import refuse_quantization

    source, workspace = context.source, context.workspace
    refuse_quantization(context, source.encoder or source.placeholder)
    graph, rows = workspace.staged(EXPORTED), workspace.staged(EXPECTED)
    tensors = source.kind == "tensors"
    child: dict[str, Any] = {"recipe": _as_opened(context), "graph": str(graph), "expected": str(rows)}
    if tensors:
        child["examples"] = str(workspace.staged(EXAMPLES))
    try:
        made = in_child(
            "pipeline.steps.export_tensors" if tensors else "pipeline.steps.export_module",
            "export_tensor_model" if tensors else "export_module",
            child,
        )
        with np.load(rows) as arrays:
            expected = [arrays[name] for name in arrays.files]
    finally:
        rows.unlink(missing_ok=True)
    facts = ModelFacts.from_dict({**made["facts"], "name": source.name})
    files = {EXPORTED: graph, **_text_files(context)}
    if facts.has_two_graphs:
        files[encoder_beside(Path(EXPORTED)).name] = encoder_beside(graph)
    if tensors:
        files[EXAMPLES] = workspace.staged(EXAMPLES)
        inputs: list[Any] = list(load_runs(files[EXAMPLES], facts.inputs))
    else:
        inputs = list(
            parity_inputs(source.tokenizer_file, source.vocab_size, facts.max_length, facts.image_encoder)
        )
    found = run_graph(context, graph, facts, inputs)
    context.outputs["export"] = found
    parity = figures(facts, expected, found, made.get("against", "the torch module"))
    weights = tuple(Path(path) for path in made["weights"])
    return Product(files, shared=weights, parity=parity, details={"model": facts.to_dict()})


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
