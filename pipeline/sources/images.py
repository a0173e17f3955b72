"""A checkpoint that classifies images: named tensors, from pixel_values to logits.

Pictures are decoded, resized and normalized by whoever asks; `preprocessor_config.json` of the checkpoint says how.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model_repo.runtime.errors import BadInput

from .base import Source
from .checkpoint import PICKLES
from .files import read_optional_json
from .loading import load_pretrained

if TYPE_CHECKING:
    from pipeline.export.module import TorchModel

PREPROCESSOR = "preprocessor_config.json"
_EXAMPLE_IMAGES = 2


@dataclass(frozen=True)
class ImageSource(Source):
    """`shape`: channels, height and width of an image; `seconds` that a run of the model may take."""

    shape: tuple[int, int, int] = (3, 0, 0)
    trust_remote_code: bool = False
    seconds: float = 0.0

    def load(self) -> TorchModel:
        """See `Source.load`. Raises BadInput as `load_pretrained` does."""
        import torch
        import transformers

        from pipeline.export.module import TorchModel
        from pipeline.module_example import ModuleExample

        model = load_pretrained(
            transformers.AutoModelForImageClassification,
            self.folder,
            pickled=any(path.name in PICKLES for path in self.files),
            trust_remote_code=self.trust_remote_code,
        )
        images = torch.randn(_EXAMPLE_IMAGES, *self.shape, generator=torch.Generator().manual_seed(0))
        example = ModuleExample(model, {"pixel_values": images}, {"pixel_values": {0: "batch"}}, ("logits",))
        return TorchModel(example, str(self.folder), self.seconds)


def image_shape(folder: Path, config: dict[str, Any]) -> tuple[int, int, int]:
    """Channels, height and width that the model is given: as the preprocessor crops or resizes, else the config's.

    Raises BadInput when neither says so.
    """
    preprocessor = read_optional_json(folder / PREPROCESSOR)
    cropped = preprocessor.get("crop_size") if preprocessor.get("do_center_crop") else None
    for given in (cropped, preprocessor.get("size"), config.get("image_size")):
        size = _size(given)
        if size is not None:
            break
    else:
        raise BadInput(
            f"neither {folder / PREPROCESSOR} nor config.json says how large images are (crop_size, size, image_size)"
        )
    channels = config.get("num_channels", 3)
    if not isinstance(channels, int) or channels < 1:
        raise BadInput(
            f"{folder / 'config.json'}: num_channels is {channels!r}; it must be a positive whole number"
        )
    return channels, *size


def _size(given: Any) -> tuple[int, int] | None:
    """Height and width in any of the forms that files have; None when they are not there."""
    if isinstance(given, dict):
        given = [given.get("height"), given.get("width")] if "height" in given else given.get("shortest_edge")
    if isinstance(given, int):
        given = [given, given]
    if (
        isinstance(given, list)
        and len(given) == 2
        and all(isinstance(side, int) and side > 0 for side in given)
    ):
        return given[0], given[1]
    return None
