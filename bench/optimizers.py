"""The optimizers that fusion is measured against, each from an exported graph to a graph on disk.

Each gets the same file. None of them is told more than its documentation asks for: ONNX Runtime's gets the model
type, heads and hidden size.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import onnxruntime as ort

from bench.fusion_models import Graph, Named
from model_repo.runtime.onnxruntime_executor import SLOWER
from pipeline.fuse import fuse
from pipeline.graph import load_graph, save_graph
from pipeline.recipe import FuseRecipe
from pipeline.targets.onnxruntime import OnnxRuntimeTarget
from plugins.cpu.build import registered
from plugins.pools import drop_pool_outputs

OURS = "slipway"
ONNXSLIM = "onnxslim"


def slipway(graph: Graph, _: Named, folder: Path) -> Path:
    """Our fusion and the lowering for ONNX Runtime."""
    model = load_graph(graph.path)
    fuse(model, FuseRecipe(), max_length=graph.max_length)
    OnnxRuntimeTarget().lower(model, "encoder" if graph.max_length is None else "decoder")
    return save_graph(model, folder / "slipway.onnx").graph


def onnxruntime_only(graph: Graph, _: Named, __: Path) -> Path:
    """Nothing but what every session does."""
    return graph.path


def transformer_optimizer(graph: Graph, named: Named, folder: Path) -> Path:
    """`onnxruntime.transformers.optimizer` of ONNX Runtime."""
    from onnxruntime.transformers import optimizer

    model = optimizer.optimize_model(
        str(graph.path), named.model_type, num_heads=named.heads, hidden_size=named.hidden, opt_level=0
    )
    path = folder / "transformers.onnx"
    model.save_model_to_file(str(path), use_external_data_format=True)
    return path


def onnxslim(graph: Graph, _: Named, folder: Path) -> Path:
    """onnxslim, where it is installed."""
    import onnxslim as slim  # type: ignore[import-not-found]

    path = folder / "onnxslim.onnx"
    onnx.save(slim.slim(str(graph.path)), path, save_as_external_data=True, location="onnxslim.data")
    return path


def onnxscript(graph: Graph, _: Named, folder: Path) -> Path:
    """onnxscript's optimizer, as the exporter of torch runs it."""
    from onnxscript.optimizer import optimize

    model = ir.load(graph.path)
    optimize(model)
    path = folder / "onnxscript.onnx"
    ir.save(model, path, external_data="onnxscript.data")
    return path


OPTIMIZERS: Mapping[str, Callable[[Graph, Named, Path], Path]] = {
    OURS: slipway,
    "ONNX Runtime alone": onnxruntime_only,
    "transformers.optimizer": transformer_optimizer,
    ONNXSLIM: onnxslim,
    "onnxscript": onnxscript,
}


class Prepared:
    """A graph after one optimizer and the session's own optimization, ready to run."""

    def __init__(self, path: Path, optimizer: str, folder: Path, threads: int) -> None:
        saved = folder / f"session.{optimizer.replace(' ', '_')}.onnx"
        if optimizer != OURS:  # as a session takes them: the operator writes its pools in place
            model = load_graph(path)
            drop_pool_outputs(model)
            path = save_graph(model, path.with_name(f"run.{path.name}")).graph
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = threads
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.optimized_model_filepath = str(saved)
        options.add_session_config_entry(
            "session.optimized_model_external_initializers_file_name", f"{saved.name}.data"
        )
        registered(options)
        disabled = {"disabled_optimizers": SLOWER} if optimizer == OURS else {}
        self.session = ort.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"], **disabled
        )
        model = onnx.load(saved, load_external_data=False)
        self.kernels = len(model.graph.node)

    def run(self, feeds: Mapping[str, Any]) -> list[Any]:
        """Outputs. Pools are written in place, so each run gets copies."""
        results: list[Any] = self.session.run(None, dict(feeds))
        return results


def prepare(name: str, graph: Graph, named: Named, folder: Path, threads: int) -> Prepared | str:
    """The graph after optimizer `name`; or why it did not take it, in its own words."""
    target = folder / name.replace(" ", "_")
    target.mkdir(exist_ok=True)
    try:
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            path = OPTIMIZERS[name](graph, named, target if name != OURS else folder)
            return Prepared(path, name, folder, threads)
    except Exception as error:  # whatever another project raises
        first = str(error).strip().partition("\n")[0]
        return f"{type(error).__name__}: {first}"[:120]


def has_onnxslim(folder: Path | None) -> bool:
    """Whether onnxslim can be imported, from `folder` where given."""
    import importlib.util

    if folder is not None:
        sys.path.append(str(folder))
    return importlib.util.find_spec(ONNXSLIM) is not None
