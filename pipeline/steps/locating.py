"""Where the difference comes from when a stage's parity is outside its tolerance: the node, or a few of them."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.child import in_child
from pipeline.parity.feeds import Feeds, graph_feeds
from pipeline.parity.pairs import borrow_notes
from pipeline.parity.report import explain
from pipeline.parity.stepwise import comparable_graph
from pipeline.parity.walk import GraphReference, Walk, walk
from pipeline.recipe import Recipe
from pipeline.stages import Product
from pipeline.workspace import ENGINE, EXPORTED, FUSED, QUANTIZED, STAGING, WEIGHTS, lowered

from .context import EXAMPLES, BuildContext, ModelFacts, parity_inputs

KEEPING = "--keep-float32 NODE leaves a node in float32, --keep-float32 auto searches for those that need it"


def graphs(recipe: Recipe) -> Mapping[str, str]:
    """File name of each stage's graph, in the order of the stages."""
    quantized = {"quantize": QUANTIZED} if recipe.quantize.quantizes else {}
    last = {"lower": lowered(recipe.target.name), "compile": ENGINE}
    return {"export": EXPORTED, "fuse": FUSED, **quantized, **last}


def diagnosis(context: BuildContext, stage: str, product: Product) -> list[str]:
    """Lines that name the first node whose result departs from the stage before, what it reads, its place in the
    torch model, and values that are not finite.

    The stage has run and is not published. Never raises for what it cannot find out: it is asked when a build
    has failed already, and that failure is what must be told.
    """
    try:
        if stage == "export":
            return _in_export(context, product)
        return _between_graphs(context, stage, product)
    except Exception as error:
        return [f"where the difference comes from was not found: {type(error).__name__}: {error}"]


def _between_graphs(context: BuildContext, stage: str, product: Product) -> list[str]:
    names = graphs(context.recipe)
    before = list(names)[list(names).index(stage) - 1]
    if stage == "lower" and context.recipe.target.name.startswith("tensorrt"):
        return _in_lowering(context, before, product)
    facts, inputs = context.facts_after(stage), context.parity_inputs()

    def feeds() -> list[Feeds]:
        return graph_feeds(facts.kind, facts.kv, inputs)

    wanted = comparable_graph(context.workspace.path(names[before]))
    candidate = comparable_graph(product.files[names[stage]])
    if stage == "compile":
        borrow_notes(candidate, wanted)
    found = walk(GraphReference(wanted, feeds()), candidate, feeds)
    return explain(found, stage, before)


def _in_lowering(context: BuildContext, before: str, product: Product) -> list[str]:
    """For graphs in 16 bit, with codes or plugins in them, and decoders whose caches may be linear."""
    from pipeline.parity.sessions import computable_graph
    from pipeline.parity.whole_prompts import whole_prompts
    from pipeline.targets import get_target

    names, recipe = graphs(context.recipe), context.recipe
    facts, inputs = context.facts_after("lower"), context.parity_inputs()
    wanted = comparable_graph(context.workspace.path(names[before]))
    candidate = computable_graph(product.files[names["lower"]])
    linear = get_target(recipe.target.name).descriptor.cache == "linear"

    def feeds() -> list[Feeds]:
        if facts.kind != "decoder":
            return graph_feeds(facts.kind, facts.kv, inputs)
        return whole_prompts(candidate, facts.kv, inputs, linear)

    reference = feeds()
    if facts.kind == "decoder":
        reference = whole_prompts(wanted, context.facts_after(before).kv, inputs, linear=False)
    lines = explain(walk(GraphReference(wanted, reference), candidate, feeds), "lower", before)
    more = "" if recipe.quantize.precision == "bf16" else "; --precision bf16 has float32's range"
    return [*lines, f"{KEEPING}{more}"]


def _in_export(context: BuildContext, product: Product) -> list[str]:
    facts = ModelFacts.from_dict(product.details["model"])
    recipe = context.recipe.to_dict()
    recipe["source"]["model"] = context.source.reference or recipe["source"]["model"]
    with tempfile.TemporaryDirectory(dir=context.workspace.folder, prefix=STAGING) as folder:
        lines: list[str] = in_child(
            "pipeline.steps.locating",
            "beside_module",
            {
                "recipe": recipe,
                "facts": facts.to_dict(),
                "graph": str(product.files[EXPORTED]),
                "examples": str(product.files.get(EXAMPLES, "")),
                "folder": folder,
            },
        )
    return lines


def beside_module(
    recipe: dict[str, Any], facts: dict[str, Any], graph: str, examples: str, folder: str
) -> list[str]:
    """`diagnosis` of an export, in a process of its own, since it holds the torch module."""
    found = walk_beside_module(recipe, facts, graph, examples, folder)
    if found is None:
        return ["the source is no torch module; `slipway parity` compares its graph with the exported one"]
    return explain(found, "export", "the torch module")


def walk_beside_module(
    recipe: dict[str, Any], facts: dict[str, Any], graph: str, examples: str, folder: str
) -> Walk | None:
    """An exported graph walked through beside the torch module; None when the source is none.

    Outputs of the module's submodules are written to `folder` and compared with what leaves each of them in
    `graph`. Raises what loading the source raises, and BadInput.
    """
    from pipeline.parity.modules import ModuleReference

    known = ModelFacts.from_dict(facts)
    candidate = comparable_graph(Path(graph))
    inputs = _record(recipe, known, candidate, Path(examples), Path(folder), Path(graph).parent / WEIGHTS)
    if inputs is None:
        return None
    runs = inputs if known.kind == "tensors" else [list(ids) for ids in inputs]

    def feeds() -> list[Feeds]:
        return graph_feeds(known.kind, known.kv, runs)

    return walk(ModuleReference(Path(folder), known.kind, runs), candidate, feeds)


def _record(
    recipe: dict[str, Any], facts: ModelFacts, candidate: Any, examples: Path, folder: Path, weights: Path
) -> Sequence[Any] | None:
    """Runs the torch module on the parity inputs and records what its submodules give; gives the inputs.

    The module's weights are mapped from `weights`, where those of the graph lie already.
    """
    import torch

    from pipeline.parity.modules import leaving_values, record
    from pipeline.parity.reference import run_loaded
    from pipeline.parity.tensors import load_runs
    from pipeline.sources import open_source

    settings = Recipe.from_dict(recipe)
    source = open_source(settings.source.model, settings.source).with_weights_in(weights)
    model = source.load()
    names = list(leaving_values(candidate))
    if facts.kind != "tensors":
        inputs = parity_inputs(source.tokenizer_file, source.vocab_size, facts.max_length)
        with record(model, names, folder):
            run_loaded(model, source, inputs)
        return inputs
    module = getattr(model, "module", None)
    if not isinstance(module, torch.nn.Module):
        return None
    runs = load_runs(examples, facts.inputs)
    with record(module, names, folder):
        for feeds in runs:
            model.run(feeds)
    return runs
