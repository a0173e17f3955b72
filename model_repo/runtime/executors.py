"""The executor of a decoder's engine, by its target."""

from __future__ import annotations

from pathlib import Path

from .contract import EngineSpec
from .executed import check_machine
from .executor import Executor, LaunchingExecutor


def decoder_executor(
    folder: Path, spec: EngineSpec, num_blocks: int, threads: int
) -> Executor | LaunchingExecutor:
    """What computes the steps of the engine in `folder`. threads: on a CPU; 0: all cores.

    Raises BadInput where the machine or a package does not suffice, when the engine is refused, and where its memory
    does not.
    """
    check_machine(spec.target, f"the engine {folder / spec.graph}")
    if spec.target == "onnxruntime-cuda":
        from .onnxruntime_cuda_executor import OnnxRuntimeCudaExecutor, cuda_session

        return OnnxRuntimeCudaExecutor(cuda_session(folder / spec.graph), spec, num_blocks)
    if spec.target.startswith("tensorrt"):
        from .tensorrt_loading import tensorrt_executor

        return tensorrt_executor(folder, spec, num_blocks)
    from .onnxruntime_executor import OnnxRuntimeExecutor

    return OnnxRuntimeExecutor(folder, spec, num_blocks, threads)
