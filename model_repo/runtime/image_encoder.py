"""The image encoder of a vision-language model: from images to rows that take the place of tokens' embeddings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .onnxruntime_executor import session
from .prompt_embeds import EMBED_OUTPUT, PIXELS, ImageEncoderSpec


class ImageEncoder:
    """One loaded encoder on the CPU. Thread-safe: calls are independent."""

    def __init__(self, folder: Path, spec: ImageEncoderSpec, threads: int, plugin: str | None = None) -> None:
        """`folder` holds the spec's graph, its weights and the operator library `plugin`, if it needs one.

        Raises BadInput when ONNX Runtime refuses them.
        """
        library = folder / plugin if plugin else None
        self.spec = spec
        self._session = session(folder / spec.graph, library, threads, convolutions=True)

    def encode(self, pixel_values: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Rows float32 [images * rows, hidden] of pixel_values float32 [images, channels, height, width].

        Each image is computed alone, so that its bits, which cached blocks are known by, do not depend on its company.
        """
        empty = np.zeros((0, self.spec.hidden_size), np.float32)
        parts = [self._session.run([EMBED_OUTPUT], {PIXELS: image[None]})[0] for image in pixel_values]
        return np.concatenate([empty, *parts])

    def warm_up(self) -> None:
        """Computes one black image."""
        self.encode(np.zeros((1, *self.spec.pixel_shape), np.float32))
