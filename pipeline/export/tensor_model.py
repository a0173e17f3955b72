"""A model that is neither decoder nor encoder: named tensors in, named tensors out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from model_repo.runtime.contract import AxisSpec, TensorSpec
from model_repo.runtime.errors import BadInput
from model_repo.runtime.image_steps import ImageSteps

Array = npt.NDArray[Any]
Feeds = Mapping[str, Array]
"""Input name -> array."""

DTYPES = frozenset(
    {"bool", "float16", "float32", "float64"}
    | {f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}
)
"""Element types of inputs and outputs, by their numpy names: those that numpy, ONNX and Triton share."""


class TensorModel(ABC):
    """A loaded model, ready to run and to be exported.

    `inputs` have sizes, or names of `axes`, as dimensions; `example` holds an array for each of them.
    """

    inputs: tuple[TensorSpec, ...]
    axes: tuple[AxisSpec, ...]
    example: Feeds
    origin: str
    """What the exported graph is compared with: 'the torch module'."""
    images: ImageSteps | None = None
    """What is served around a model of images."""

    @property
    @abstractmethod
    def output_names(self) -> Sequence[str]:
        """Names of the outputs, in order."""

    @abstractmethod
    def run(self, feeds: Feeds) -> list[Array]:
        """The outputs, in order. Raises BadInput when the model does not take these inputs."""

    @abstractmethod
    def graph(self, opset: int) -> ir.Model:
        """The model as an ONNX graph, with inputs and outputs of these names. Raises BadInput."""

    def sizes(self) -> dict[str, int]:
        """Size of each axis in the example."""
        return {
            dim: size
            for spec in self.inputs
            for dim, size in zip(spec.shape, self.example[spec.name].shape, strict=True)
            if isinstance(dim, str)
        }

    def resized(self, sizes: Mapping[str, int]) -> Feeds:
        """The example with some axes of another size: values are repeated from the start, or cut off."""
        feeds = {}
        for spec in self.inputs:
            array = self.example[spec.name]
            for axis, dim in enumerate(spec.shape):
                if isinstance(dim, str) and dim in sizes:
                    array = np.take(array, np.arange(sizes[dim]) % array.shape[axis], axis=axis)
            feeds[spec.name] = np.ascontiguousarray(array)
        return feeds


def checked_dtype(dtype: str, what: str) -> str:
    """`dtype` itself. Raises BadInput when inputs and outputs cannot have it."""
    if dtype not in DTYPES:
        raise BadInput(
            f"{what} has the type {dtype}; inputs and outputs may be {', '.join(sorted(DTYPES))}: cast it in the model"
        )
    return dtype
