"""The Triton model of an engine of named tensors: one model, with dynamic batching where rows stand alone."""

from __future__ import annotations

from pathlib import Path

from ..runtime.contract import EngineSpec, TensorSpec
from ..runtime.errors import BadInput
from ..runtime.manifest import Manifest
from .configs import DataType, DynamicBatching, ModelConfig, Tensor
from .files import ENGINE, ModelFiles
from .requirements import engine_gpus, engine_requirements
from .settings import ServeSettings, capture_parameters

MAX_BATCH = 64
DELAY_MICROSECONDS = 500
"""The first request of a batch waits so long for others."""

TRITON_TYPES: dict[str, DataType] = {
    "bool": "BOOL",
    "float16": "FP16",
    "float32": "FP32",
    "float64": "FP64",
    "int8": "INT8",
    "int16": "INT16",
    "int32": "INT32",
    "int64": "INT64",
    "uint8": "UINT8",
    "uint16": "UINT16",
    "uint32": "UINT32",
    "uint64": "UINT64",
}


def tensors(
    name: str, engine_dir: Path, manifest: Manifest, serve: ServeSettings, served: str | None = None
) -> list[ModelFiles]:
    """The model that serves the engine in `engine_dir` as `name`, a step of `served` where that is another."""
    spec = manifest.engine
    if spec is None or not spec.inputs or not spec.outputs:
        raise BadInput(f"{engine_dir / 'engine.json'} names no inputs and outputs; build it again")
    engine_files = {f"{ENGINE}/{record.path}": engine_dir / record.path for record in manifest.outputs}
    engine_files[f"{ENGINE}/engine.json"] = engine_dir / "engine.json"
    config = ModelConfig(
        name,
        tuple(_tensor(tensor, spec.batched) for tensor in spec.inputs),
        tuple(_tensor(tensor, spec.batched) for tensor in spec.outputs),
        max_batch_size=_max_batch(spec) if spec.batched else 0,
        dynamic_batching=DynamicBatching(DELAY_MICROSECONDS) if spec.batched else None,
        parameters={"served": served or name, **capture_parameters(serve)},
        gpus=engine_gpus(manifest),
    )
    return [
        ModelFiles(config, "named_tensors", engine_files, ("numpy>=1.26", *engine_requirements(manifest)))
    ]


def served_dims(tensor: TensorSpec, batched: bool) -> tuple[int, ...]:
    """Triton's dims: without axis 0 where requests are batched, -1 for sizes that vary.

    Triton has no tensors without dimensions: a row that is one number is served as [1].
    """
    shape = tensor.shape[1:] if batched else tensor.shape
    return tuple(dim if isinstance(dim, int) else -1 for dim in shape) or (1,)


def _tensor(tensor: TensorSpec, batched: bool) -> Tensor:
    return Tensor(tensor.name, TRITON_TYPES[tensor.dtype], served_dims(tensor, batched))


def _max_batch(spec: EngineSpec) -> int:
    """As many rows as the model takes, MAX_BATCH at most."""
    axis = next(axis for axis in spec.axes if axis.name == spec.inputs[0].shape[0])
    return min(MAX_BATCH, axis.most or MAX_BATCH)
