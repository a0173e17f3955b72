"""The recipe's builder options: judged before anything is built, then set on the builder's configuration."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from model_repo.runtime.errors import BadInput
from pipeline.builder_recipe import TACTIC_SOURCES, BuilderRecipe

from .gpu_here import gpu_here

_NOT_OF_RTX: Mapping[str, str] = {
    "hardware_compatibility": "name the GPUs with --compute-capability, or none for an engine that runs on any",
    "version_compatible": "its package lacks the lean runtime that such an engine holds",
    "timing_cache": "its builder times no kernels; they are compiled where the engine runs",
    "replay": "its builder times no kernels, so that none are chosen by chance",
}
"""What TensorRT-RTX 1.7 ignores or refuses, and what to know instead."""
_GPU_FIRST = ("refit", "strip")
"""What TensorRT-RTX's builder fails at without a GPU ("CHECK(status == CUDA_SUCCESS) failed")."""


def changed(settings: BuilderRecipe) -> dict[str, Any]:
    """The options that are not the defaults."""
    defaults = BuilderRecipe().to_dict()
    return {name: value for name, value in settings.to_dict().items() if value != defaults[name]}


def check_builder(target: str, settings: BuilderRecipe) -> None:
    """Raises BadInput for options that the target's builder does not have, or not on this machine."""
    asked = changed(settings)
    if target == "tensorrt-rtx":
        for name, words in _NOT_OF_RTX.items():
            if name in asked:
                raise BadInput(f"target.builder.{name} is {asked[name]!r}; TensorRT-RTX has none: {words}")
        for name in _GPU_FIRST:
            if name in asked and gpu_here() is None:
                raise BadInput(
                    f"target.builder.{name} is on, and TensorRT-RTX builds such an engine only beside a GPU, which is "
                    "not here; build without it, or on a machine with a GPU and its driver"
                )
    if settings.replay is not None and not Path(settings.replay).is_file():
        raise BadInput(
            f"target.builder.replay is {settings.replay!r}, which is no file; give engine.timing of an earlier build"
        )


def configure(trt: Any, config: Any, settings: BuilderRecipe) -> None:
    """Sets everything but the timing cache. Raises BadInput for what the builder does not take."""
    config.profiling_verbosity = {
        "detailed": trt.ProfilingVerbosity.DETAILED,
        "layer-names": trt.ProfilingVerbosity.LAYER_NAMES_ONLY,
        "none": trt.ProfilingVerbosity.NONE,
    }[settings.profiling_verbosity]
    if settings.optimization_level is not None:
        config.builder_optimization_level = settings.optimization_level
    if settings.hardware_compatibility != "none":
        config.hardware_compatibility_level = {
            "ampere-plus": trt.HardwareCompatibilityLevel.AMPERE_PLUS,
            "same-compute-capability": trt.HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY,
        }[settings.hardware_compatibility]
    flags = {
        "version_compatible": trt.BuilderFlag.VERSION_COMPATIBLE,
        "weight_streaming": trt.BuilderFlag.WEIGHT_STREAMING,
        "strip": trt.BuilderFlag.STRIP_PLAN,
    }
    for name, flag in flags.items():
        if getattr(settings, name):
            config.set_flag(flag)
    if settings.refit:
        config.set_flag(trt.BuilderFlag.REFIT)
    elif settings.strip:
        # The same weights come back, so that kernels may be chosen by them.
        config.set_flag(trt.BuilderFlag.REFIT_IDENTICAL)
    pools = {
        "workspace_bytes": trt.MemoryPoolType.WORKSPACE,
        "shared_memory_bytes": trt.MemoryPoolType.TACTIC_SHARED_MEMORY,
    }
    for name, pool in pools.items():
        limit = getattr(settings, name)
        if limit is not None:
            config.set_memory_pool_limit(pool, limit)
            if config.get_memory_pool_limit(pool) != limit:
                raise BadInput(f"target.builder.{name} is {limit}, which the builder does not take here")
    if settings.tactic_sources:
        sources = (trt.TacticSource.EDGE_MASK_CONVOLUTIONS, trt.TacticSource.JIT_CONVOLUTIONS)
        chosen = dict(zip(TACTIC_SOURCES, sources, strict=True))
        if not config.set_tactic_sources(sum(1 << int(chosen[name]) for name in settings.tactic_sources)):
            raise BadInput(
                f"the builder does not take target.builder.tactic_sources {list(settings.tactic_sources)}"
            )
