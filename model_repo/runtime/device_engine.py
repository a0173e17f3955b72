"""What an engine on a device is to an executor: named tensors that get shapes and addresses, and one call.

Adapters (TensorRT, TensorRT-RTX) are thin, so that everything above them is tested with engines that need no GPU.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, Protocol


class DeviceTensor(NamedTuple):
    """An input or output of an engine. `dtype` by its ONNX name (float16, int32, float8e4m3fn, ...); a dimension of
    `shape` is None where it differs from step to step."""

    name: str
    role: Literal["input", "output"]
    dtype: str
    shape: tuple[int | None, ...]


def decode_profile(profiles: Sequence[str], sequences: int) -> str:
    """The narrowest profile that holds decode steps of so many sequences: `decode_8` takes up to 8, `decode` any."""
    narrow = {int(name[7:]): name for name in profiles if name.startswith("decode_") and name[7:].isdecimal()}
    return next((narrow[most] for most in sorted(narrow) if sequences <= most), "decode")


class DeviceEngine(Protocol):
    """One engine with one execution context.

    Shapes and addresses stay as they were set until they are set again. Between two calls of `enqueue` with the same
    profile, shapes and addresses the queued work is the same, so that it can be captured.
    """

    @property
    def tensors(self) -> Mapping[str, DeviceTensor]:
        """Inputs and outputs by name."""

    @property
    def profiles(self) -> tuple[str, ...]:
        """Names of the optimization profiles, in the engine's order."""

    @property
    def workspace_bytes(self) -> int:
        """Device memory that a step needs beside its tensors and the weights."""

    def use_profile(self, name: str, stream: int) -> None:
        """Switches to a profile; all shapes of inputs have to be set afterwards. Queues on `stream` what that takes."""

    def set_shape(self, name: str, shape: tuple[int, ...]) -> None:
        """Shape of an input. Raises BadInput with input, range and value where the profile does not hold it."""

    def set_address(self, name: str, address: int) -> None:
        """Where an input or output lies. A pool's input and output may get the same address."""

    def enqueue(self, stream: int) -> None:
        """Queues one step. Raises SlipwayError in the engine's words when it is refused."""
