"""ONNX graphs on disk: one small file for the graph, and its weights beside it, named by their content.

Every weight above `EXTERNAL_BYTES` lies in `weights/<sha256>` next to the graph: all graphs of a folder share
what they have in common, and a stage that changes no weight writes none. ONNX Runtime accepts no external
data outside the graph's folder, and onnx refuses weight files with several links, so a graph saved to another
folder takes a copy of its weights along.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnx_ir as ir

from model_repo.runtime.errors import BadInput

from .contents import RowTensor, raw_bytes, store, store_pieces

EXTERNAL_BYTES = 1024
WEIGHTS = "weights"
_CONTENT_NAME = re.compile(rf"{WEIGHTS}/([0-9a-f]{{64}})")


class GraphFiles(NamedTuple):
    """What `save_graph` left on disk."""

    graph: Path
    weights: tuple[Path, ...]  # every weight file the graph names, once each, sorted
    bytes_written: int  # graph and new weights; weights that were there already cost nothing


def load_graph(path: Path) -> ir.Model:
    """The graph at `path`; its external weights stay mapped on disk until someone reads them.

    Raises BadInput when the file is missing, is not ONNX, or a weight file that it names is missing.
    """
    if not path.is_file():
        raise BadInput(f"no ONNX graph at {path}; give a .onnx file that exists")
    try:
        model = ir.load(path)
    except Exception as error:  # protobuf's own errors share no base with the rest
        raise BadInput(f"{path} is not a readable ONNX graph ({error}); export it again") from error
    for _, tensor in _weights(model):
        if isinstance(tensor, ir.ExternalTensor) and not Path(tensor.path).is_file():
            raise BadInput(f"{path} names the weight file {tensor.path}, which is missing; build it again")
    return model


def save_graph(model: ir.Model, path: Path) -> GraphFiles:
    """Writes `model` to `path` and its weights to `path.parent/weights/<sha256>`.

    Files appear whole or not at all. The model's own weights become references to those files, which frees
    their memory. Raises OSError when the disk refuses.
    """
    folder = path.parent / WEIGHTS
    folder.mkdir(parents=True, exist_ok=True)
    stored: set[Path] = set()
    written = 0
    for value, tensor in _weights(model):
        if tensor.nbytes <= EXTERNAL_BYTES:
            if isinstance(tensor, ir.ExternalTensor):  # of a foreign graph: that file may be elsewhere
                value.const_value = _held(tensor)
            continue
        digest, new_bytes = _store(tensor, folder)
        written += new_bytes
        stored.add(folder / digest)
        value.const_value = ir.ExternalTensor(
            f"{WEIGHTS}/{digest}",
            0,
            tensor.nbytes,
            tensor.dtype,
            shape=ir.Shape(tensor.shape),
            name=value.name or "",
            doc_string=tensor.doc_string,
            metadata_props=dict(tensor.metadata_props),
            base_dir=path.parent,
        )
    proto = ir.serde.serialize_model(model)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        onnx.save(proto, temporary, format="protobuf")
        written += temporary.stat().st_size
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return GraphFiles(path, tuple(sorted(stored)), written)


def _weights(model: ir.Model) -> Iterator[tuple[ir.Value, Any]]:
    """Every initializer of every graph that has data, with its tensor."""
    for graph in model.graphs():
        for value in graph.initializers.values():
            if value.const_value is not None:
                yield value, value.const_value


def _held(tensor: ir.ExternalTensor) -> ir.Tensor[Any]:
    """A copy in memory, which goes into the graph's own file."""
    return ir.Tensor(
        np.array(tensor.numpy()),
        dtype=tensor.dtype,
        name=tensor.name,
        doc_string=tensor.doc_string,
        metadata_props=dict(tensor.metadata_props),
    )


def _store(tensor: Any, folder: Path) -> tuple[str, int]:
    """Makes sure that `folder` holds the tensor's bytes; gives their sha256 and the bytes newly written."""
    known = content_digest(tensor)
    if known is not None:
        target = folder / known
        if target.exists():
            return known, 0
        return known, _copy(Path(tensor.path), target)
    if isinstance(tensor, RowTensor):
        return store_pieces(tensor.pieces(), folder)
    if tensor.dtype.bitwidth < 8:
        return store(memoryview(tensor.tobytes()), folder)
    return store(raw_bytes(tensor.numpy()), folder)


def content_digest(tensor: Any) -> str | None:
    """The sha256 of a tensor that is one whole weight file already; None for any other tensor."""
    if not isinstance(tensor, ir.ExternalTensor) or tensor.offset:
        return None
    match = _CONTENT_NAME.fullmatch(Path(tensor.location).as_posix())
    if match is None or Path(tensor.path).stat().st_size != tensor.nbytes:
        return None
    return match.group(1)


def _copy(source: Path, target: Path) -> int:
    """Copies a weight file, whole or not at all; gives its bytes."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        shutil.copyfile(source, temporary)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    return target.stat().st_size
