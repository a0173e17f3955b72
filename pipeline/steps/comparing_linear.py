"""Runs a lowered decoder of the linear contract, and compares it with what the stage before gave."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.parity.linear import run_linear
from pipeline.parity.sessions import graph_session

from .comparing import SCRATCH, figures, outputs_of
from .context import BuildContext


def compared_linear(context: BuildContext, graph: Path, before: str, before_graph: Path) -> dict[str, Any]:
    """Figures of `graph`, which the stage lower made, against `before_graph`, a packed one of the stage `before`."""
    if before not in context.outputs:
        context.outputs[before] = outputs_of(context, before, before_graph)
    with graph_session(graph, context.workspace.staged(SCRATCH)) as session:
        found = run_linear(session, context.parity_inputs())
    return figures(context.facts_after("lower"), context.outputs[before], found, before)
