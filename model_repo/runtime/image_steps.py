"""The steps around an engine of images, as an engine's manifest holds them: from a picture to pixels, and from the
engine's outputs to what apps read. Standard library only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Filter = Literal["nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"]
Task = Literal["classification", "detection", "embedding"]
Scoring = Literal["none", "softmax", "sigmoid"]


@dataclass(frozen=True)
class Resize:
    """To `height` x `width` pixels; or, where those are 0, the aspect ratio is kept: the shorter side gets
    `shortest_edge` pixels, and the longer at most `longest_edge` (0: no bound)."""

    resample: Filter
    height: int = 0
    width: int = 0
    shortest_edge: int = 0
    longest_edge: int = 0


@dataclass(frozen=True)
class Normalization:
    """(value - mean) / std, one number a channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class Preprocessing:
    """From a decoded picture to pixel_values float32 [channels, height, width], in this order.

    `channels` 3 (RGB) or 1 (grey). `over_white`: what is transparent shows white, else its hidden colour. `crops`:
    heights and widths of crops around the centre; a picture that is smaller gets zeros around it. `scale` multiplies
    the values 0 to 255. `pad`: height and width that zeros at the bottom and on the right fill up.
    """

    channels: int = 3
    over_white: bool = False
    resize: Resize | None = None
    crops: tuple[tuple[int, int], ...] = ()
    scale: float | None = None
    normalizations: tuple[Normalization, ...] = ()
    pad: tuple[int, int] | None = None

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width of all results; None where they follow the picture's."""
        if self.pad is not None:
            return self.pad
        if self.crops:
            return self.crops[-1]
        if self.resize is not None and self.resize.height:
            return self.resize.height, self.resize.width
        return None

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Preprocessing:
        """The inverse of `dataclasses.asdict`. Raises TypeError or KeyError when it does not fit."""
        values = dict(data)
        values["resize"] = Resize(**data["resize"]) if data["resize"] else None
        values["crops"] = tuple((height, width) for height, width in data["crops"])
        values["normalizations"] = tuple(
            Normalization(tuple(each["mean"]), tuple(each["std"])) for each in data["normalizations"]
        )
        values["pad"] = tuple(data["pad"]) if data["pad"] else None
        return cls(**values)


@dataclass(frozen=True)
class ImageSteps:
    """What is served around the engine.

    Classification: `scoring` makes scores of logits [labels]. Detection, of logits [queries, classes]: softmax takes
    the best class of each query, the last one being 'no object'; sigmoid takes the `candidates` best pairs of query
    and class (0: as many as there are queries). Embeddings are served as the engine gives them.
    """

    task: Task
    preprocessing: Preprocessing
    labels: tuple[str, ...] = ()
    scoring: Scoring = "none"
    candidates: int = 0

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ImageSteps:
        """The inverse of `dataclasses.asdict`. Raises TypeError or KeyError when it does not fit."""
        preprocessing = Preprocessing.from_dict(data["preprocessing"])
        return cls(**{**data, "preprocessing": preprocessing, "labels": tuple(data["labels"])})
