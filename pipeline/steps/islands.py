"""Nodes that stay in float32 where a target computes in 16 bit: those that the recipe names, or a search finds."""

from __future__ import annotations

from pathlib import Path

from plugins.schemas import PAGED_ATTENTION

from .context import BuildContext

AUTO = "auto"


def nodes_in_float32(context: BuildContext, before: Path) -> tuple[str, ...]:
    """Names of nodes of the graph `before`, written out in standard operators.

    `auto` among the recipe's stands for what `precision.search` finds on the parity inputs, with its own tolerance.
    """
    asked = context.recipe.quantize.keep_float32
    if AUTO not in asked:
        return asked
    from pipeline.parity.feeds import Feeds, graph_feeds
    from pipeline.parity.stepwise import comparable_graph
    from pipeline.precision.search import search
    from pipeline.targets.native.standard import write_out

    model = comparable_graph(before)
    write_out(model, keep=frozenset({PAGED_ATTENTION.name}))
    facts = context.facts_after(context.before_lowering)

    def feeds() -> list[Feeds]:
        return graph_feeds(facts.kind, facts.kv, context.parity_inputs())

    found = search(model, "bf16" if context.recipe.quantize.precision == "bf16" else "fp16", feeds)
    overflowing = {constant.name for constant in found.overflows}
    readers = [
        node for node in model.graph if any(v is not None and v.name in overflowing for v in node.inputs)
    ]
    kept = tuple(dict.fromkeys((*found.kept, *(node.name or "" for node in readers))))
    context.progress.say(
        f"{len(kept)} of {found.nodes} nodes stay in float32, found with {found.runs} runs"
        f"{': ' if kept else ''}{', '.join(kept)}"
    )
    return (*(name for name in asked if name != AUTO), *kept)
