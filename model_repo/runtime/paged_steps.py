"""A step of a paged decoder as a device gets it: arrays packed and padded in staging memory, and its tokens later."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .contract import Int32Array, StepTensors
from .device import Device, Event
from .errors import SlipwayError
from .packed_arrays import PackedArrays, Part
from .sampler import Sampled

SOURCE = "source"
"""Name of `carried` (see `LaunchingExecutor.launch`) among the arrays of a step."""

_PADDING = (
    ("input_ids", 0),
    ("position_ids", 0),
    ("past_lens", 0),
    ("slot_mapping", -1),
    ("logits_indices", 0),
)
"""What fills the arrays of a padded step; the others are filled by rules of their own."""


class Shape(NamedTuple):
    """What the sizes of a step's arrays follow from."""

    tokens: int
    batch: int
    selected: int


def step_layout(shape: Shape, table_width: int, start: int) -> PackedArrays:
    """Where a step's arrays lie, from `start` on: the contract's, with `table_width` blocks a sequence, and SOURCE."""
    tokens, batch, selected = shape
    parts = (
        Part("input_ids", "int32", (tokens,)),
        Part("position_ids", "int32", (tokens,)),
        Part("cu_seqlens", "int32", (batch + 1,)),
        Part("past_lens", "int32", (batch,)),
        Part("block_table", "int32", (batch, table_width)),
        Part("slot_mapping", "int32", (tokens,)),
        Part("logits_indices", "int32", (selected,)),
        Part(SOURCE, "int32", (tokens,)),
    )
    return PackedArrays(parts, start)


def write_step(views: Mapping[str, npt.NDArray[Any]], step: StepTensors, carried: Int32Array | None) -> None:
    """Writes a step to arrays that may be larger. What is added: tokens of slot -1, and sequences without tokens."""
    for name, fill in _PADDING:
        view, values = views[name], getattr(step, name)
        view[: len(values)] = values
        view[len(values) :] = fill
    cu_seqlens, table = views["cu_seqlens"], views["block_table"]
    cu_seqlens[: len(step.cu_seqlens)] = step.cu_seqlens
    cu_seqlens[len(step.cu_seqlens) :] = step.cu_seqlens[-1]
    batch, width = len(step.past_lens), min(table.shape[1], step.block_table.shape[1])
    table[:batch, :width] = step.block_table[:, :width]
    table[:batch, width:] = -1
    table[batch:] = -1
    source = views[SOURCE]
    source[:] = -1
    if carried is not None:
        source[: len(carried)] = carried


def no_step() -> StepTensors:
    """A step without sequences: all of its arrays become padding."""
    nothing = np.zeros(0, np.int32)
    return StepTensors(
        input_ids=nothing,
        position_ids=nothing,
        cu_seqlens=np.zeros(1, np.int32),
        past_lens=nothing,
        block_table=np.zeros((0, 0), np.int32),
        slot_mapping=nothing,
        logits_indices=nothing,
    )


def carried_on_host(step: StepTensors, carried: Int32Array, tokens: Int32Array) -> StepTensors:
    """The step with `tokens`, which the host chose in the step before, in their places."""
    places = np.flatnonzero(carried >= 0)
    input_ids = step.input_ids.copy()
    input_ids[places] = np.maximum(tokens[carried[places]], 0)
    return dataclasses.replace(step, input_ids=input_ids)


class Staging:
    """The host's memory of one step in flight: `inputs` and `results`, and the step whose they are."""

    def __init__(self, device: Device, inputs: int, results: int) -> None:
        self.inputs = device.staging(inputs)
        self.results = device.staging(results)
        self.step: Launched | None = None
        self._views: dict[Shape, Mapping[str, npt.NDArray[Any]]] = {}

    def views(self, shape: Shape, layout: PackedArrays, keep: bool) -> Mapping[str, npt.NDArray[Any]]:
        """The arrays of a step of this shape; kept where `keep` says that the shape comes again."""
        views = self._views.get(shape)
        if views is None:
            views = layout.views(self.inputs)
            if keep:
                self._views[shape] = views
        return views

    def settle(self) -> None:
        """Waits until its step does not need it any more."""
        if self.step is not None:
            self.step.settle()
            self.step = None


class Launched:
    """A `LaunchedStep` whose tokens `take` gives once `event` has passed; None: they are there."""

    def __init__(self, event: Event | None, take: Callable[[], list[Sampled]]) -> None:
        self._event = event
        self._take = take
        self._sampled = take() if event is None else []
        self._error: SlipwayError | None = None

    def sampled(self) -> list[Sampled]:
        """See `LaunchedStep.sampled`."""
        self.settle()
        if self._error is not None:
            raise self._error
        return self._sampled

    def settle(self) -> None:
        """Waits, and takes the tokens out of the staging memory, so that another step may have it."""
        event, self._event = self._event, None
        if event is None:
            return
        try:
            event.wait()
            self._sampled = self._take()
        except SlipwayError as error:  # for whoever asks for the tokens
            self._error = error
