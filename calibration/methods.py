"""How weights are quantized: a way to move factors between channels first, and a way to round."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from model_repo.runtime.errors import BadInput

from .algorithms.adaround import adaround
from .algorithms.awq import awq, search_clip
from .algorithms.gptq import gptq
from .algorithms.hqq import hqq
from .algorithms.rtn import round_to_nearest
from .algorithms.statistics import Statistics
from .schemes import Quantized, Scheme

Array = npt.NDArray[np.floating[Any]]


class Method(NamedTuple):
    """One name of `quantize.algorithm`."""

    smoothing: Literal["none", "awq", "smoothquant"]
    rounding: Literal["rtn", "hqq", "clip", "gptq", "clip-gptq", "adaround"]

    @property
    def needs_data(self) -> bool:
        """Whether it looks at what the layers multiply."""
        return self.smoothing != "none" or self.rounding not in ("rtn", "hqq")


METHODS: Mapping[str, Method] = {
    "rtn": Method("none", "rtn"),
    "hqq": Method("none", "hqq"),
    "gptq": Method("none", "gptq"),
    "awq": Method("awq", "clip"),
    "awq-gptq": Method("awq", "clip-gptq"),
    "smoothquant": Method("smoothquant", "rtn"),
    "adaround": Method("none", "adaround"),
}


def method(name: str) -> Method:
    """The method of this name. Raises BadInput when there is none."""
    if name not in METHODS:
        raise BadInput(f"algorithm {name!r} is unknown; known: {', '.join(METHODS)}")
    return METHODS[name]


def rounded(weight: Array, scheme: Scheme, way: Method, statistics: Statistics | None) -> Quantized:
    """`weight` [out, in] quantized; `statistics` of its inputs, for methods that need data.

    What learns single roundings (AdaRound) takes formats of whole numbers; e4m3 and the like are rounded to
    nearest by it. Raises BadInput as the algorithms do.
    """
    if way.rounding == "hqq":
        return hqq(weight, scheme)
    if way.rounding == "rtn" or statistics is None:
        return round_to_nearest(weight, scheme)
    hessian = statistics.hessian
    if way.rounding == "clip":
        return awq(weight, hessian, scheme)
    if way.rounding == "gptq":
        return gptq(weight, hessian, scheme)
    if way.rounding == "clip-gptq":
        return gptq(weight, hessian, scheme, grid=search_clip(weight, hessian, scheme))
    if scheme.format in ("int8", "uint8", "int4"):
        return adaround(weight, hessian, scheme)
    return round_to_nearest(weight, scheme)
