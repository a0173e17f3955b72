"""What computes a step: the interface between the engine loop and a target's engine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from .contract import StepTensors


class BucketRule(NamedTuple):
    """How the rows of a step are padded: at least `min_tokens`, then up to a multiple of `token_multiple`."""

    min_tokens: int = 1
    token_multiple: int = 1


class Executor(Protocol):
    """One engine with its pools. Steps are computed one at a time, in order."""

    @property
    def bucket_rule(self) -> BucketRule:
        """What shapes this engine wants."""

    def run(self, step: StepTensors) -> npt.NDArray[np.float32]:
        """Computes one step and writes its keys and values to the pools.

        Gives logits float32 [selected, vocab], valid until the next call. Raises whatever the engine raises; the
        pools then hold rubbish in the step's slots only.
        """

    def encode(self, source: npt.NDArray[Any], block_ids: Sequence[int]) -> None:
        """Runs the encoder on one request's input (see `EncoderSpec`) and writes what cross-attention sees to the
        blocks `block_ids` of the group CROSS.

        Asked for only where the engine has an encoder. Raises whatever the engine raises.
        """
