"""What a decoder's step reads: the targets for GPUs know the plain contract only."""

from __future__ import annotations

import onnx_ir as ir

from model_repo.runtime.contract import STEP_INPUTS
from model_repo.runtime.errors import BadInput


def check_step_inputs(model: ir.Model, title: str) -> None:
    """Raises BadInput for a decoder that an encoder or images feed. `title`: of whose engines that is told."""
    known, caches = {spec.name for spec in STEP_INPUTS}, ("key_cache_", "value_cache_")
    given = [value.name or "" for value in model.graph.inputs]
    more = [name for name in given if name not in known and not name.startswith(caches)]
    if more:
        raise BadInput(
            f"the decoder also reads {', '.join(more)}, of an encoder or of images, which engines of {title} do not "
            "get yet; build for target 'onnxruntime'"
        )
