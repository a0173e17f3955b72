"""What is kept of a build beside its engine: profiles, layers, inputs and outputs, and what became of the graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import onnx_ir as ir

from model_repo.runtime.errors import SlipwayError
from pipeline.fuse.matching import dims

from .builder import BuildOptions, Built
from .layers import EngineLayers, LayerTensor, UnknownReport, parse_layers, report
from .profiles import Profile
from .settings import changed

WATCHED = (
    *("Attention", "TensorScatter", "RotaryEmbedding", "RMSNormalization", "LayerNormalization"),
    *("PagedAttention", "FlashAttention", "Int4Gemm", "MatMul", "Gemm", "Conv", "Gelu", "Softmax"),
)
"""Operators that the table follows into the engine."""

_DTYPES = {
    ir.DataType.FLOAT: "Float",
    ir.DataType.FLOAT16: "Half",
    ir.DataType.BFLOAT16: "BFloat16",
    ir.DataType.INT8: "Int8",
    ir.DataType.FLOAT8E4M3FN: "FP8",
    ir.DataType.UINT8: "UInt8",
    ir.DataType.INT32: "Int32",
    ir.DataType.INT64: "Int64",
    ir.DataType.BOOL: "Bool",
}
"""What the builders call element types."""


def build_record(
    target: str, model: ir.Model, profiles: Sequence[Profile], options: BuildOptions, built: Built
) -> dict[str, Any]:
    """Plain JSON values about the engine that was built of the lowered graph `model`.

    Raises SlipwayError when its inputs and outputs are not the graph's. They and the layers are unknown after less than
    detailed verbosity, and after a report of TensorRT in another form than TensorRT-RTX's, the one that was seen.
    """
    detailed = options.builder.profiling_verbosity == "detailed"
    try:
        layers = parse_layers(built.layers) if detailed else EngineLayers((), {}, {})
        if detailed:
            check_ends(model, layers)
    except UnknownReport:
        if target == "tensorrt-rtx":
            raise
        layers = EngineLayers((), {}, {})
    operators = {node.name or "": node.op_type for node in model.graph}
    made = report(layers, operators, WATCHED, [profile.name for profile in profiles])
    return {
        "target": target,
        "version": built.version,
        "compute_capabilities": list(options.compute_capabilities),
        "builder": changed(options.builder),
        "gpu": None if built.gpu is None else dict(zip(("name", "capability"), built.gpu, strict=True)),
        "tactics": built.tactics,
        "bytes": built.bytes,
        "build_seconds": built.seconds,
        "warnings": list(built.warnings),
        "profiles": {
            profile.name: {name: list(three) for name, three in profile.shapes.items()}
            for profile in profiles
        },
        "inputs": [asdict(end) for end in layers.inputs.values()],
        "outputs": [asdict(end) for end in layers.outputs.values()],
        "made": made.to_dict(),
        "layers": [asdict(layer) for layer in layers.layers],
    }


def check_ends(model: ir.Model, engine: EngineLayers) -> None:
    """Raises SlipwayError unless the engine has the graph's inputs and outputs: names, types and shapes.

    Where the graph names a size of an output, the engine may know it.
    """
    problems = []
    for kind, wanted, found in (
        ("input", model.graph.inputs, engine.inputs),
        ("output", model.graph.outputs, engine.outputs),
    ):
        names = {value.name or "": value for value in wanted}
        problems += [f"{kind} {name!r} is gone" for name in names if name not in found]
        problems += [f"{kind} {name!r} is there too" for name in found if name not in names]
        for name, value in names.items():
            if name in found and not _same(value, found[name], exact=kind == "input"):
                end, asked = found[name], [str(size) for size in dims(value) or ()]
                problems.append(
                    f"{kind} {name!r} is {end.dtype} {list(end.shape)} and should be "
                    f"{_DTYPES.get(value.dtype or ir.DataType.UNDEFINED, str(value.dtype))} [{', '.join(asked)}]"
                )
    if problems:
        raise SlipwayError("the engine is not as the graph says: " + "; ".join(problems))


def _same(value: ir.Value, end: LayerTensor, exact: bool) -> bool:
    shape = dims(value)
    if value.dtype is not None and _DTYPES.get(value.dtype) != end.dtype:
        return False
    if shape is None:
        return True
    return len(shape) == len(end.shape) and all(
        size == found if isinstance(size, int) else found == -1 or not exact
        for size, found in zip(shape, end.shape, strict=True)
    )
