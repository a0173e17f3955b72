"""Activations of a fused graph over a data set, batch by batch, as ONNX Runtime and `plugins/cpu` compute them.

For an algorithm that wants statistics of what a weight is multiplied by:

    batches = Batches(facts, samples)
    for chunk in collect(folder / "fuse.onnx", ["val_12"], batches):
        rows = chunk["val_12"].reshape(-1, width)
        hessian += rows.T @ rows

Memory is that of one batch, however many there are.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy.typing as npt
import onnx_ir as ir
import onnxruntime as ort
from onnx_ir.passes import common as passes

from model_repo.runtime.errors import BadInput
from plugins.cpu.build import registered
from plugins.pools import drop_pool_outputs

from .batches import Batch

Array = npt.NDArray[Any]

PRODUCTS = frozenset(("MatMul", "Gemm", "FusedMatMul", "Conv", "ConvTranspose", "ExpertLinear"))
"""Operators whose operands are what integer and fp8 arithmetic is about."""

POOL = re.compile(r"(key|value)_cache_\d+")
"""Inputs of a decoder that hold what its layers keep; under these names stand the rows that a step wrote."""

_EXTERNAL_FOLDER = "session.model_external_initializers_file_folder_path"


def collect(
    graph: Path, names: Sequence[str], batches: Iterable[Batch], *, threads: int = 0
) -> Iterator[dict[str, Array]]:
    """The tensors `names` of the graph file for each of `batches`, in order.

    Arrays have the shapes that they have in the graph (a decoder's: [tokens, width]); a pool, `key_cache_0`, gives
    the keys or values that the step wrote, after rotary embedding, [tokens, kv_heads, dim]. They are the caller's
    until the next batch. `threads` 0: all cores. Raises BadInput as `GraphRun` does.
    """
    run = GraphRun(graph, names, threads=threads)
    for batch in batches:
        yield run(batch.feeds)


class GraphRun:
    """A graph, loaded once, whose inner tensors can be looked at. Nothing is written to its folder."""

    def __init__(self, graph: Path, names: Sequence[str], *, threads: int = 0) -> None:
        """Raises BadInput when the graph is missing, lacks a tensor that is named, or does not run."""
        self._names = list(dict.fromkeys(names))
        self._inner = [name for name in self._names if not POOL.fullmatch(name)]
        model = observable(graph)
        known = {value.name: value for node in model.graph for value in node.outputs}
        inputs = {value.name for value in model.graph.inputs}
        outputs = {value.name for value in model.graph.outputs}
        for name in self._names:
            if name not in known and name not in inputs:
                raise BadInput(f"{graph} holds no tensor {name!r}; it is another graph than the names are of")
            if name in known and name not in outputs:
                model.graph.outputs.append(known[name])
        self._given = inputs
        self._session = graph_session(model, graph.parent, threads)

    def __call__(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """The named tensors on these inputs; inputs that the graph does not take are left out."""
        given = {name: array for name, array in feeds.items() if name in self._given}
        asked = [name for name in self._inner if name not in self._given]
        found: dict[str, Array] = dict(zip(asked, self._session.run(asked or None, given), strict=False))
        for name in self._names:
            if POOL.fullmatch(name):
                pool = feeds[name]
                found[name] = pool.reshape(-1, *pool.shape[2:])[feeds["slot_mapping"]]
            elif name not in found:
                found[name] = feeds[name]
        return {name: found[name] for name in self._names}


def observable(graph: Path) -> ir.Model:
    """The graph at `graph` with the type of every tensor that can be inferred, its pools written in place.

    Raises BadInput when there is none that can be read.
    """
    if not graph.is_file():
        raise BadInput(f"no ONNX graph at {graph}; run `slipway fuse` first")
    try:
        model = ir.load(graph)
    except Exception as error:  # protobuf's own errors share no base with the rest
        raise BadInput(f"{graph} is not a readable ONNX graph ({error}); build it again") from error
    if any(value.dtype is None for node in model.graph for value in node.outputs):
        passes.ShapeInferencePass()(model)
    drop_pool_outputs(model)
    return model


def product_inputs(model: ir.Model) -> list[str]:
    """Names of the tensors that products multiply by a weight or by each other, in the order of computation.

    Weights, and what is computed from weights alone, are left out.
    """
    constant = set(model.graph.initializers.values())
    found: dict[str, None] = {}
    for node in model.graph:
        given = [value for value in node.inputs if value is not None]
        if not given or all(value in constant for value in given):
            constant.update(node.outputs)
            continue
        if node.op_type not in PRODUCTS:
            continue
        for value in given[:2]:
            if value not in constant and value.dtype in (None, ir.DataType.FLOAT) and value.name:
                found[value.name] = None
    return list(found)


def graph_session(model: ir.Model, folder: Path, threads: int) -> ort.InferenceSession:
    """A session for a graph in memory, whose weights stay in `folder`. Raises BadInput when it does not load."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.add_session_config_entry(_EXTERNAL_FOLDER, str(folder.absolute()))
    registered(options)
    try:
        proto = ir.serde.serialize_model(model).SerializeToString()
        return ort.InferenceSession(proto, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's errors share no base
        raise BadInput(f"ONNX Runtime does not load the graph to be observed: {error}") from error
