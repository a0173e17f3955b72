"""What the builders of TensorRT and TensorRT-RTX are asked for, beyond the graph and the limits of the engine."""

from __future__ import annotations

from dataclasses import dataclass

from model_repo.runtime.errors import BadInput

from .section import Section, setting

TACTIC_SOURCES = ("edge-mask-convolutions", "jit-convolutions")


@dataclass(frozen=True)
class BuilderRecipe(Section):
    """Options of the builder, for targets tensorrt and tensorrt-rtx; defaults are the builder's own."""

    optimization_level: int | None = setting(
        None,
        "TensorRT: how long the builder looks for faster kernels; default: its own",
        minimum=0,
        maximum=5,
    )
    decode_batches: tuple[int, ...] = setting(
        (),
        "TensorRT: sequences of decode steps that get a profile of their own beside that of all; default: 1 and 8",
    )
    hardware_compatibility: str = setting(
        "none",
        "tensorrt: other GPUs that the engine shall run on",
        choices=("none", "ampere-plus", "same-compute-capability"),
    )
    version_compatible: bool = setting(False, "tensorrt: the engine runs with later versions too")
    weight_streaming: bool = setting(False, "TensorRT: weights may stay in host memory and be streamed")
    refit: bool = setting(False, "TensorRT: weights can be exchanged; building takes a GPU")
    strip: bool = setting(False, "TensorRT: no weights in the engine, to be refitted; building takes a GPU")
    workspace_bytes: int | None = setting(None, "TensorRT: most memory that a kernel may work in", minimum=1)
    shared_memory_bytes: int | None = setting(
        None, "TensorRT: most shared memory that a kernel may use", minimum=1
    )
    tactic_sources: tuple[str, ...] = setting(
        (), f"tensorrt: where kernels come from, of {', '.join(TACTIC_SOURCES)}; default: all"
    )
    profiling_verbosity: str = setting(
        "detailed",
        "TensorRT: what the engine tells of its layers; without detailed, layers.json lacks them",
        choices=("detailed", "layer-names", "none"),
    )
    timing_cache: str | None = setting(
        None, "tensorrt: folder of kernels' timings, kept between builds; default: the user's cache folder"
    )
    replay: str | None = setting(
        None, "tensorrt: engine.timing of an earlier build, whose kernels are taken again; nothing is timed"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for source in self.tactic_sources:
            if source not in TACTIC_SOURCES:
                raise BadInput(
                    f"target.builder.tactic_sources holds {source!r}; available: {', '.join(TACTIC_SOURCES)}"
                )
        if any(batch < 1 for batch in self.decode_batches):
            raise BadInput(
                f"target.builder.decode_batches is {list(self.decode_batches)}; each must be at least 1"
            )
