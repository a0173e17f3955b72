"""The versions of ONNX's operators that the parsers know."""

from __future__ import annotations

import onnx_ir as ir

from model_repo.runtime.errors import BadInput

KNOWN = (9, 24)
"""Of TensorRT 11 and TensorRT-RTX 1.7. Later ones they read as if they knew them, without a word (1.7 takes 99)."""


def check_opset(model: ir.Model) -> None:
    """Raises BadInput for a graph of operators older or newer than the parsers know."""
    opset = model.opset_imports.get("", KNOWN[1])
    if not KNOWN[0] <= opset <= KNOWN[1]:
        raise BadInput(
            f"the graph is of opset {opset}; the parsers of TensorRT know {KNOWN[0]} to {KNOWN[1]} and may compute "
            f"others otherwise; export it with opset {KNOWN[1]}, or convert it (onnx.version_converter)"
        )
