"""What computes a step: the interface between the engine loop and a target's engine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from .contract import Int32Array, StepTensors
from .sampler import Row, Sampled


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


class LaunchedStep(Protocol):
    """A step that a device computes while the host goes on."""

    def sampled(self) -> list[Sampled]:
        """Waits for the step; gives the token of each row of logits that was asked for. Called once.

        Raises what the engine raises; the pools then hold rubbish in the step's slots only.
        """


@runtime_checkable
class LaunchingExecutor(Protocol):
    """An executor that samples where it computes, so that the next step is planned, bound and queued while one runs.

    At most two steps are launched and not yet asked for their tokens.
    """

    @property
    def bucket_rule(self) -> BucketRule:
        """What shapes this engine wants."""

    def launch(self, step: StepTensors, rows: Sequence[Row], carried: Int32Array | None) -> LaunchedStep:
        """Queues one step, whose logits are sampled by `rows` (none in a step of unfinished prompts).

        carried: int32 [tokens], or None for -1 throughout. Where it is not -1, the token is not known yet: it is the
        one that the launch before this one samples from that row of its logits, and `step.input_ids` holds 0. Where
        that row gave NO_TOKEN or an end token, or its step failed, whatever this step gives for the sequence is
        dropped; it must not harm the others.
        """
