"""Int4Gemm: y = x W + bias with a weight of four bits, for the few rows of a decode step.

`weight` and the rest are packed by plugins/weight_layout.py. Graphs hold the weight's bytes as int8: the parser of
TensorRT-RTX 1.7.1 makes int32 of constants of uint8.
Attribute `columns`: of y, since packed weights are padded.
"""

from __future__ import annotations

import torch

from . import names
from .form import Extent, PluginForm


class Int4GemmForm(PluginForm):
    """See the module."""

    name = names.INT4_GEMM
    operator = "weight_only_gemm"
    own_attributes = ("columns",)

    def output_extents(self, name: str) -> list[Extent]:
        """[rows, columns]."""
        return [Extent("x", 0), Extent(None, factor=int(self.attributes["columns"]))]

    def element_type(self, name: str, given: torch.dtype) -> torch.dtype:
        """Bytes of packed codes are uint8 to the kernel."""
        return torch.uint8 if name in ("weight", "zero_point") and given == torch.int8 else given
