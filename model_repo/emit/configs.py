"""Triton's model configuration as typed objects, printed through Triton's own protobuf.

Only what emitted repositories use is here. What a config must hold for tritonserver to start (field meanings:
`model_config.proto` of Triton's common repository) is checked at construction.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ..runtime.errors import BadInput

DataType = Literal[
    "STRING", "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "FP32", "FP64"
]  # fmt: skip

MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
"""What a model may be called: its name becomes folder names and parts of URLs."""


def checked_model_name(name: str) -> str:
    """`name` itself. Raises BadInput when it cannot be a folder and a part of a URL."""
    if not MODEL_NAME.fullmatch(name):
        raise BadInput(
            f"model name {name!r} cannot be served: 1 to 100 letters, digits, '_', '-' or '.', the first "
            "one a letter or a digit; rename the model"
        )
    return name


@dataclass(frozen=True)
class Tensor:
    """One input or output. `dims` leave the batch dimension out; -1 is any size.

    `optional` and `ragged` (requests of different sizes may share a batch) are meant for inputs. An output's
    `label_file` in the model's folder names its elements, a line each: clients that ask for the k largest get names.
    """

    name: str
    data_type: DataType
    dims: tuple[int, ...] = (1,)
    optional: bool = False
    ragged: bool = False
    label_file: str = ""

    def __post_init__(self) -> None:
        if not self.dims or any(dim == 0 or dim < -1 for dim in self.dims):
            raise BadInput(f"tensor {self.name!r} has dims {self.dims}; each is positive, or -1 for any size")


@dataclass(frozen=True)
class DynamicBatching:
    """Requests that wait together run together; the first waits at most `max_queue_delay_microseconds`."""

    max_queue_delay_microseconds: int = 0


@dataclass(frozen=True)
class EnsembleStep:
    """One model of an ensemble. The maps go from the model's tensor names to the ensemble's."""

    model_name: str
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]


@dataclass(frozen=True)
class ModelConfig:
    """A config.pbtxt. Either a Python-backend model or, with `steps`, an ensemble.

    `gpus`: numbers of the GPUs that the model computes on, with `instances` of it on each; none for the CPU.
    `max_batch_size` 0 means that the model sees requests as they were sent, one at a time.
    """

    name: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    max_batch_size: int = 0
    instances: int = 1
    gpus: tuple[int, ...] = ()
    decoupled: bool = False
    dynamic_batching: DynamicBatching | None = None
    steps: tuple[EnsembleStep, ...] = ()
    parameters: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        checked_model_name(self.name)
        for tensors in (self.inputs, self.outputs):
            names = [tensor.name for tensor in tensors]
            if not names or len(set(names)) != len(names):
                raise BadInput(f"model {self.name!r} needs tensors with names of their own; it has {names}")
        if self.dynamic_batching and (not self.max_batch_size or self.steps):
            raise BadInput(f"model {self.name!r} batches requests, so max_batch_size must be positive")
        if any(tensor.ragged for tensor in self.inputs) and not self.max_batch_size:
            raise BadInput(f"model {self.name!r} has ragged inputs, so max_batch_size must be positive")
        if self.steps:
            self._check_steps()

    def _check_steps(self) -> None:
        known = {tensor.name for tensor in self.inputs}
        for step in self.steps:
            missing = sorted(set(step.inputs.values()) - known)
            if missing:
                raise BadInput(
                    f"ensemble {self.name!r}: {step.model_name} reads {missing}, which nothing writes"
                )
            taken = sorted(known & set(step.outputs.values()))
            if taken:  # inputs and outputs of an ensemble share one space of names
                raise BadInput(f"ensemble {self.name!r}: {taken} written by {step.model_name} exists already")
            known.update(step.outputs.values())
        missing = sorted({tensor.name for tensor in self.outputs} - known)
        if missing:
            raise BadInput(f"ensemble {self.name!r} promises {missing}, which no step writes")

    def to_message(self) -> Any:
        """The config as Triton's own protobuf message, `inference.ModelConfig`."""
        from tritonclient.grpc import model_config_pb2 as pb

        message = pb.ModelConfig(name=self.name, max_batch_size=self.max_batch_size)
        for tensor in self.inputs:
            message.input.add(
                name=tensor.name,
                data_type=pb.DataType.Value(f"TYPE_{tensor.data_type}"),
                dims=tensor.dims,
                optional=tensor.optional,
                allow_ragged_batch=tensor.ragged,
            )
        for tensor in self.outputs:
            message.output.add(
                name=tensor.name,
                data_type=pb.DataType.Value(f"TYPE_{tensor.data_type}"),
                dims=tensor.dims,
                label_filename=tensor.label_file,
            )
        for key, value in sorted(self.parameters.items()):
            message.parameters[key].string_value = value
        if self.decoupled and not self.steps:
            message.model_transaction_policy.decoupled = True
        if self.dynamic_batching:
            message.dynamic_batching.max_queue_delay_microseconds = (
                self.dynamic_batching.max_queue_delay_microseconds
            )
        if self.steps:
            message.platform = "ensemble"
            for step in self.steps:
                entry = message.ensemble_scheduling.step.add(model_name=step.model_name, model_version=-1)
                entry.input_map.update(step.inputs)
                entry.output_map.update(step.outputs)
        else:
            message.backend = "python"
            group = pb.ModelInstanceGroup
            kind = group.KIND_GPU if self.gpus else group.KIND_CPU
            message.instance_group.add(count=self.instances, kind=kind, gpus=self.gpus)
        return message

    def to_pbtxt(self) -> str:
        """The text of config.pbtxt."""
        return str(self.to_message())
