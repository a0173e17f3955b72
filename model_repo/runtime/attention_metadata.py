"""What com.microsoft.PagedAttention is told of a step on the host, so that it reads no lengths back from the device."""

from __future__ import annotations

import numpy as np

from .contract import Int32Array, StepTensors
from .tensor_spec import TensorSpec

ATTENTION_METADATA = "attention_metadata"
METADATA_INPUT = TensorSpec(
    ATTENTION_METADATA,
    "int32",
    (3,),
    "in host memory: most new tokens of a sequence, most keys of a sequence, and keys of the longest at least",
)


def attention_metadata(step: StepTensors) -> Int32Array:
    """int32 [3] of one step, as `METADATA_INPUT` says; the lower bound is the upper one, since lengths are known."""
    new = np.diff(step.cu_seqlens)
    longest = int((step.past_lens + new).max())
    return np.array([new.max(), longest, longest], np.int32)
