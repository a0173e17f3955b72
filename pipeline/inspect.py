"""`inspect`: what a graph or a build holds, as plain rows for tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from model_repo.runtime.errors import BadInput

from .plan_report import PlanReport, inspect_plan
from .stages import StageRow
from .workspace import ALL_MANIFESTS, Workspace

if TYPE_CHECKING:
    import onnx_ir as ir

GRAPH_STAGES = ("export", "fuse", "lower", "compile")


class TensorRow(NamedTuple):
    """An input or output of a graph; sizes known only at run time are names."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class GraphReport:
    """One ONNX file. `operators`: nodes by operator, the commonest first; bytes of the file and its weights."""

    path: str
    operators: Mapping[str, int]
    inputs: Sequence[TensorRow]
    outputs: Sequence[TensorRow]
    weights: int
    weight_bytes: int
    graph_bytes: int

    @property
    def nodes(self) -> int:
        """Nodes of the graph and of graphs within it."""
        return sum(self.operators.values())

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class FolderReport:
    """A build's folder: its stages, the graph that each stage left, and the engine where that is no graph."""

    stages: Sequence[StageRow]
    graphs: Mapping[str, GraphReport]
    plan: PlanReport | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "stages": [asdict(row) for row in self.stages],
            "graphs": {stage: report.to_dict() for stage, report in self.graphs.items()},
            "plan": None if self.plan is None else self.plan.to_dict(),
        }


def inspect_graph(path: Path) -> GraphReport:
    """What one .onnx file holds. Raises BadInput when it cannot be read."""
    from .graph import load_graph

    model = load_graph(path)
    operators: Counter[str] = Counter()
    weights: dict[str, int] = {}
    for graph in model.graphs():
        operators.update(f"{node.domain}::{node.op_type}" if node.domain else node.op_type for node in graph)
        for name, value in graph.initializers.items():
            if value.const_value is not None:
                weights[name] = value.const_value.nbytes
    return GraphReport(
        path=str(path),
        operators=dict(sorted(operators.items(), key=lambda item: (-item[1], item[0]))),
        inputs=[_tensor(value) for value in model.graph.inputs],
        outputs=[_tensor(value) for value in model.graph.outputs],
        weights=len(weights),
        weight_bytes=sum(weights.values()),
        graph_bytes=path.stat().st_size,
    )


def inspect_folder(folder: Path) -> FolderReport:
    """What a build left in `folder`. Raises BadInput when that is nothing."""
    workspace = Workspace(folder)
    rows: list[StageRow] = []
    graphs: dict[str, GraphReport] = {}
    plan: PlanReport | None = None
    for stage in ALL_MANIFESTS:
        manifest = workspace.manifest(stage)
        if manifest is None:
            continue
        size = sum(record.bytes for record in manifest.outputs)
        rows.append(StageRow(stage, True, manifest.seconds, size, manifest.parity))
        if stage == "compile" and manifest.engine is not None and not manifest.engine.graph.endswith(".onnx"):
            plan = inspect_plan(workspace.path(manifest.engine.graph))
        elif stage in GRAPH_STAGES:
            (graph,) = (record.path for record in manifest.outputs if record.path.endswith(".onnx"))
            graphs[stage] = inspect_graph(workspace.path(graph))
    if not rows:
        raise BadInput(f"{folder} holds no build; give a folder that `slipway build` wrote, or a .onnx file")
    return FolderReport(rows, graphs, plan)


def _tensor(value: ir.Value) -> TensorRow:
    shape = tuple(dim if isinstance(dim, int) else str(dim) for dim in value.shape or ())
    dtype = value.dtype.numpy().name if value.dtype is not None else "unknown"
    return TensorRow(value.name or "", dtype, shape)
