"""A checkpoint that takes images: a classifier, a detector, or a tower that embeds them.

The engine is one of named tensors, from pixel_values to the outputs that are served. Where the checkpoint brings its
image processor, what it does before the engine, and what makes answers of the outputs, go along as steps of the server.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model_repo.runtime.errors import BadInput
from model_repo.runtime.image_steps import ImageSteps, Preprocessing, Scoring, Task

from .base import Source
from .checkpoint import PICKLES
from .detectors import detection_steps
from .files import read_json
from .heads import label_names
from .image_processor import ALONE, PREPROCESSOR, has_processor, load_processor, preprocessing
from .loading import load_pretrained

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.export.module import TorchModel
    from pipeline.module_example import ModuleExample

TASK_SUFFIXES: Mapping[str, Task] = {
    "ForImageClassification": "classification",
    "ForObjectDetection": "detection",
    "VisionModelWithProjection": "embedding",
    "VisionModel": "embedding",
}
"""Ends of class names -> what the model is for."""

_EXAMPLE_IMAGES = 2
_LEAST_SIDE = 65
"""Sides that vary have at least so many pixels, more than the coarsest stride of detectors; or more than half of what
the preprocessing aims at, where that is less."""


@dataclass(frozen=True)
class ImageSource(Source):
    """`task`: what the model is for; `channels` and `image_size` (height, width; None where config.json has none) are
    the model's own; `seconds` that a run of the model may take."""

    task: Task = "classification"
    channels: int = 3
    image_size: tuple[int, int] | None = None
    trust_remote_code: bool = False
    seconds: float = 0.0

    def load(self) -> TorchModel:
        """See `Source.load`. The model's `images` are the steps around it, where the checkpoint has an image processor.

        Raises BadInput as `load_pretrained` does, and when the processor or the labels cannot be served.
        """
        from pipeline.export.module import TorchModel

        config = read_json(self.folder / "config.json")
        steps = self._steps(config)
        module = load_pretrained(
            self._loader(config),
            self.folder,
            pickled=any(path.name in PICKLES for path in self.files),
            trust_remote_code=self.trust_remote_code,
            unread=(),
        )
        names, chosen = _OUTPUTS[self.task]
        two_towers = _has_two_towers(config)
        module.register_forward_hook(lambda _module, _arguments, output: chosen(output, two_towers))
        example = self._example(module, steps.preprocessing if steps is not None else None)
        model = TorchModel(replace(example, output_names=names), str(self.folder), self.seconds)
        model.images = steps
        self._check_labels(steps, model)
        return model

    def _example(self, module: Any, pixels: Preprocessing | None) -> ModuleExample:
        """Images to try the model on, and what may change about them."""
        import torch

        from pipeline.module_example import ModuleExample

        size = (pixels.size if pixels is not None else None) or self._example_size(pixels)
        random = torch.Generator().manual_seed(0)
        inputs = {"pixel_values": torch.randn(_EXAMPLE_IMAGES, self.channels, *size, generator=random)}
        dynamic: dict[str, dict[int, str]] = {"pixel_values": {0: "batch"}}
        limits: dict[str, tuple[int, int]] = {}
        if pixels is not None and pixels.pad is not None:
            inputs["pixel_mask"] = torch.ones(_EXAMPLE_IMAGES, *size, dtype=torch.int64)
            dynamic["pixel_mask"] = {0: "batch"}
        if pixels is not None and pixels.size is None and pixels.resize is not None:
            dynamic["pixel_values"] |= {2: "height", 3: "width"}
            least = min(pixels.resize.shortest_edge // 2 + 1, _LEAST_SIDE)
            bounds = (least, pixels.resize.longest_edge)
            limits = {"height": bounds, "width": bounds}
        return ModuleExample(module, inputs, dynamic, limits=limits)

    def _loader(self, config: Mapping[str, Any]) -> Any:
        """transformers' class: of two towers, that of the images."""
        import transformers

        if self.task == "classification":
            return transformers.AutoModelForImageClassification
        if self.task == "detection":
            return transformers.AutoModelForObjectDetection
        architecture = str(config["architectures"][0])
        if not _has_two_towers(config):
            # An auto class would take CLIP's tower for the one without projection: both have one config.
            return getattr(transformers, architecture, transformers.AutoModel)
        family = architecture.removesuffix("Model")
        for suffix in ("VisionModelWithProjection", "VisionModel"):
            if hasattr(transformers, family + suffix):
                return _Tower(getattr(transformers, family + suffix), config)
        raise BadInput(f"{self.folder}: transformers has no tower of images for {architecture}")

    def _steps(self, config: Mapping[str, Any]) -> ImageSteps | None:
        """What is served around the engine; None without an image processor."""
        if not has_processor(self.folder):
            return None
        processor = load_processor(self.folder, self.trust_remote_code)
        pixels = preprocessing(processor, self.channels, self.folder)
        if pixels.size is None and (
            self.task != "detection" or pixels.resize is None or not _bounded(pixels)
        ):
            raise BadInput(
                f"{self.folder}: its image processor gives images of any size; it must resize them to height and "
                f"width, or crop them, or (detectors) bound both sides. {ALONE}"
            )
        if self.task == "embedding":
            return ImageSteps("embedding", pixels)
        labels = label_names(config, self.folder / "config.json")
        if self.task == "detection":
            return detection_steps(processor, pixels, labels, self.folder)
        return ImageSteps("classification", pixels, labels, _scoring(config, len(labels)))

    def _example_size(self, pixels: Preprocessing | None) -> tuple[int, int]:
        """Height and width to try the model on where images have none of their own."""
        if pixels is not None and pixels.resize is not None:
            short, long = pixels.resize.shortest_edge, pixels.resize.longest_edge
            return short, min(short * 5 // 4, long)
        assert self.image_size is not None, "checked when the folder was opened"
        return self.image_size

    def _check_labels(self, steps: ImageSteps | None, model: TorchModel) -> None:
        """Raises BadInput when config.json names more or fewer labels than the logits have."""
        if steps is None or steps.task == "embedding":
            return
        (classes,) = (
            array.shape[-1]
            for name, array in zip(model.output_names, model.run(model.example), strict=True)
            if name == "logits"
        )
        wanted = classes - (1 if steps.task == "detection" and steps.scoring == "softmax" else 0)
        if len(steps.labels) != wanted:
            raise BadInput(
                f"{self.folder / 'config.json'} names {len(steps.labels)} labels (id2label), the model has {wanted}; "
                "give each a name"
            )


class _Tower:
    """The tower of images of a checkpoint with two, as a class of transformers that loads it.

    What both towers are projected to is a setting of the whole, which the tower's own config may lack.
    """

    def __init__(self, tower: Any, config: Mapping[str, Any]) -> None:
        self._tower = tower
        self._shared = {name: config[name] for name in ("projection_dim",) if name in config}

    def from_pretrained(self, folder: Path, **options: Any) -> Any:
        """As transformers' own."""
        config = self._tower.config_class.from_pretrained(folder, local_files_only=True)
        for name, value in self._shared.items():
            setattr(config, name, value)
        return self._tower.from_pretrained(folder, config=config, **options)


def image_task(config: Mapping[str, Any], architecture: str) -> Task | None:
    """What a model of images is for; None when it is none that is carried. Bodies are towers, and so is one of two."""
    for suffix, task in TASK_SUFFIXES.items():
        if architecture.endswith(suffix):
            return task
    is_body = architecture.endswith("Model") and "num_channels" in config and "vocab_size" not in config
    return "embedding" if is_body or (architecture.endswith("Model") and _has_two_towers(config)) else None


def image_input(folder: Path, config: Mapping[str, Any]) -> tuple[int, tuple[int, int] | None]:
    """Channels of an image, and height and width where config.json has them.

    Raises BadInput when channels are no number, or nothing says how large images are.
    """
    vision = config["vision_config"] if _has_two_towers(config) else config
    channels = vision.get("num_channels", 3)
    if not isinstance(channels, int) or channels < 1:
        raise BadInput(
            f"{folder / 'config.json'}: num_channels is {channels!r}; it must be a positive whole number"
        )
    size = _size(vision.get("image_size"))
    if size is None and not has_processor(folder):
        raise BadInput(
            f"neither {folder / PREPROCESSOR} nor config.json (image_size) says how large images are; save the "
            "checkpoint with its image processor"
        )
    return channels, size


def _classified(output: Any, _two_towers: bool) -> dict[str, Tensor]:
    return {"logits": output.logits}


def _detected(output: Any, _two_towers: bool) -> dict[str, Tensor]:
    return {"logits": output.logits, "pred_boxes": output.pred_boxes}


def _embedded(output: Any, two_towers: bool) -> dict[str, Tensor]:
    """The projected embedding, else what the pooler gives; divided by its L2 norm where a model compares two towers."""
    embedding = output.get("image_embeds")
    if embedding is None:
        embedding = output.get("pooler_output")
    if embedding is None:
        raise BadInput("the model gives neither image_embeds nor pooler_output, so it embeds no images")
    embedding = embedding.flatten(1)
    return {"embedding": embedding / embedding.norm(p=2, dim=-1, keepdim=True) if two_towers else embedding}


_OUTPUTS: Mapping[Task, tuple[tuple[str, ...], Callable[[Any, bool], dict[str, Tensor]]]] = {
    "classification": (("logits",), _classified),
    "detection": (("logits", "pred_boxes"), _detected),
    "embedding": (("embedding",), _embedded),
}
"""What is served of a model's outputs, by the engine's names for it."""


def _has_two_towers(config: Mapping[str, Any]) -> bool:
    return isinstance(config.get("vision_config"), dict) and isinstance(config.get("text_config"), dict)


def _bounded(pixels: Preprocessing) -> bool:
    return pixels.resize is not None and pixels.resize.longest_edge > 0


def _scoring(config: Mapping[str, Any], num_labels: int) -> Scoring:
    """As transformers' image-classification pipeline."""
    problem = config.get("problem_type")
    if problem == "regression":
        return "none"
    return "sigmoid" if problem == "multi_label_classification" or num_labels == 1 else "softmax"


def _size(given: Any) -> tuple[int, int] | None:
    """Height and width in the forms that configs have; None when they are not there."""
    sides = [given, given] if isinstance(given, int) else given
    if isinstance(sides, (list, tuple)) and len(sides) == 2:
        height, width = sides
        if isinstance(height, int) and isinstance(width, int) and height > 0 and width > 0:
            return height, width
    return None
