"""What the stages of one build share: recipe, workspace, source, and facts about the model."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from model_repo.runtime.contract import (
    AxisSpec,
    EncoderSpec,
    Head,
    ImageEncoderSpec,
    KVSpec,
    TensorSpec,
    typed,
)
from model_repo.runtime.errors import BadInput
from model_repo.runtime.image_steps import ImageSteps
from model_repo.runtime.manifest import Manifest
from pipeline.disk import FIXED_BYTES, float32_bytes
from pipeline.recipe import FLOATS, Recipe
from pipeline.stages import Progress, Silent
from pipeline.workspace import WEIGHTS, Workspace, checked_name

if TYPE_CHECKING:
    import numpy.typing as npt

    from pipeline.sources import Source

TOKENIZER = "export.tokenizer.json"
CHAT_TEMPLATE = "export.chat_template.jinja"
EXAMPLES = "export.examples.npz"
"""Inputs of the parity runs of named tensors; the first run is the example."""
Outputs: TypeAlias = "Sequence[npt.NDArray[Any]]"
"""What a model gives on the parity inputs, by stage compared."""

PARITY_CODE = (
    "pipeline/parity",
    "pipeline/graph.py",
    "calibration/data.py",
    "calibration/slices.py",
    "plugins/schemas.py",
    "plugins/attention_operators.py",
    "plugins/pools.py",
    "plugins/tensorrt/names.py",
)
"""Code that every stage with a parity check depends on."""


@dataclass(frozen=True)
class ModelFacts:
    """What the export learned about the model, kept in its manifest for the later stages.

    `inputs`, `outputs`, `axes`, `batched` and `images` as in `EngineSpec`; only the kind `tensors` has them.
    """

    name: str
    kind: Literal["decoder", "encoder", "tensors"]
    vocab_size: int
    max_length: int
    end_token_ids: tuple[int, ...]
    features: tuple[str, ...]
    kv: tuple[KVSpec, ...]
    encoder_inputs: tuple[str, ...]
    hidden_size: int | None
    head: Head
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    axes: tuple[AxisSpec, ...] = ()
    batched: bool = False
    encoder: EncoderSpec | None = None
    images: ImageSteps | None = None
    image_encoder: ImageEncoderSpec | None = None

    @property
    def has_two_graphs(self) -> bool:
        """Whether the graph of an encoder lies beside the decoder's."""
        return self.encoder is not None or self.image_encoder is not None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; `from_dict` reads them back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ModelFacts:
        """The inverse of `to_dict`. Raises BadInput when fields are missing or unknown."""
        try:
            return cls(**typed(data))
        except (KeyError, TypeError) as error:
            raise BadInput(
                f"export.json does not fit this version of slipway ({error}); run slipway export again"
            ) from error


class BuildContext:
    """One build of one model. `outputs` keeps what a graph gave on the parity inputs, by stage.

    `exports`: whether the export is among the stages of this build, so that the source is read.
    `shown` is the output folder as the user wrote it, for the commands that repeat a stage. `progress`: where a stage
    says how far it is.
    """

    def __init__(self, recipe: Recipe, workspace: Workspace, exports: bool) -> None:
        self.recipe = recipe
        self.workspace = workspace
        self.exports = exports
        self.shown = str(workspace.folder)
        self.outputs: dict[str, Outputs] = {}
        self.progress: Progress = Silent()

    @functools.cached_property
    def source(self) -> Source:
        """The model's source, checked; nothing is loaded. Raises BadInput."""
        from pipeline.sources import open_source

        source = open_source(self.recipe.source.model, self.recipe.source)
        checked_name(source.name)
        return source

    @property
    def facts(self) -> ModelFacts:
        """What the export learned. Raises BadInput when the export is missing."""
        return ModelFacts.from_dict(self.required("export").details.get("model", {}))

    def facts_after(self, stage: str) -> ModelFacts:
        """The facts of the graph that `stage` made: from `quantize` on, pools have the recipe's type."""
        facts = self.facts
        if stage in ("export", "fuse", "calibrate"):
            return facts
        dtype = self.recipe.quantize.kv_dtype
        if stage == "quantize" and dtype in FLOATS.values():
            return facts  # the lowering makes them narrower
        return replace(facts, kv=tuple(replace(spec, dtype=dtype) for spec in facts.kv))

    @property
    def before_lowering(self) -> str:
        """The stage whose graph is lowered."""
        return "quantize" if self.recipe.quantize.quantizes else "fuse"

    def required(self, stage: str) -> Manifest:
        """Manifest of an earlier stage. Raises BadInput when that stage has no artifact."""
        manifest = self.workspace.manifest(stage)
        if manifest is None:
            raise BadInput(
                f"{self.shown} holds no result of the stage {stage}; run `slipway {stage} {self.shown}`, or "
                "`slipway build` for all stages"
            )
        return manifest

    def artifact_files(self, stage: str) -> list[Path]:
        """Every file of an earlier stage's artifact. Raises BadInput when one is missing."""
        manifest = self.required(stage)
        paths = [self.workspace.path(record.path) for record in manifest.outputs]
        for path in paths:
            if not path.is_file():
                raise BadInput(f"{path} is missing; run `slipway build` or `slipway {stage} {self.shown}`")
        return paths

    def parity_inputs(self) -> list[Any]:
        """What every stage is compared on: token ids of prompts or texts within the model's length, or, for named
        tensors, the inputs of the runs that the export chose."""
        facts = self.facts
        if facts.kind == "tensors":
            from pipeline.parity.tensors import load_runs

            (examples,) = (path for path in self.artifact_files("export") if path.name == EXAMPLES)
            return load_runs(examples, facts.inputs)
        tokenizers = [path for path in self.artifact_files("export") if path.name == TOKENIZER]
        return parity_inputs(
            tokenizers[0] if tokenizers else None, facts.vocab_size, facts.max_length, facts.image_encoder
        )

    @functools.cached_property
    def weight_bytes(self) -> int:
        """Bytes of the model's weights in float32."""
        if self.exports:
            return float32_bytes(self.source.files)
        return sum(record.bytes for record in self.required("export").outputs)

    def needed_bytes(self, share: float) -> int:
        """Room for `share` times the weights and what comes with them."""
        return int(share * self.weight_bytes) + FIXED_BYTES


def parity_inputs(
    tokenizer: Path | None, vocab_size: int, max_length: int, images: ImageEncoderSpec | None = None
) -> list[list[int]]:
    """Token ids for parity checks, no prompt longer than `max_length`; with placeholders of `images` in some."""
    from calibration.data import LENGTHS, parity_prompts

    prompts = parity_prompts(tokenizer, vocab_size, [min(length, max_length) for length in LENGTHS])
    prompts = [prompt[:max_length] for prompt in prompts]
    if images is None:
        return prompts
    from pipeline.parity.embeds import with_images

    return with_images(prompts, images, max_length)


def weights_in(workspace: Workspace, graph: Path) -> list[Path]:
    """The weight files in the workspace that a graph names, sorted."""
    import onnx_ir as ir

    from pipeline.graph import load_graph

    names = {
        Path(value.const_value.location).name
        for inner in load_graph(graph).graphs()
        for value in inner.initializers.values()
        if isinstance(value.const_value, ir.ExternalTensor)
    }
    return [workspace.path(WEIGHTS) / name for name in sorted(names)]


def graph_files(context: BuildContext, stage: str) -> Sequence[Path]:
    """Inputs of a stage that reads the graph of `stage`: the graph and its weights."""
    return [
        path
        for path in context.artifact_files(stage)
        if path.suffix == ".onnx" or path.parent.name == WEIGHTS
    ]
