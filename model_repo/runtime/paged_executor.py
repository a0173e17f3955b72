"""Steps of a paged decoder on a device: everything is allocated once, and a step is a few commands in one stream.

A step: one upload of all that the host decides, the tokens that are carried over from the step before it, the engine,
the choice of tokens, the download of those. The host waits for nothing but the tokens of a step that was launched
before. Steps of one token a sequence (decode) are padded to a few sizes, each of which is captured once and launched as
one.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from .contract import LOGITS, EngineSpec, Int32Array, StepTensors
from .device import CapturedWork, Device, OutOfMemory
from .device_engine import DeviceEngine, decode_profile
from .device_sampling import DeviceSampler, on_device, parameters
from .errors import SlipwayError
from .executor import BucketRule, LaunchedStep
from .kernel_library import Kernels, KernelTensor
from .logs import log_event
from .packed_arrays import PackedArrays
from .paged_pools import MemoryNeeds, PagedPools, check_engine, does_not_fit
from .paged_steps import SOURCE, Launched, Shape, Staging, carried_on_host, no_step, step_layout, write_step
from .sampler import Row, sample

IN_FLIGHT = 2
"""Steps that may be launched and not asked for their tokens: so many sets of staging memory there are."""


def decode_buckets(max_batch: int) -> tuple[int, ...]:
    """Sizes that decode steps are padded to: powers of two below `max_batch`, and `max_batch`."""
    return (*(1 << power for power in range((max_batch - 1).bit_length())), max_batch)


class PagedExecutor:
    """An engine of the paged contract on a device: a `LaunchingExecutor`, and an `Executor` without encoders.

    kernels: None where the library is not to be had; then logits are downloaded, and tokens chosen on the host, before
    `launch` returns. num_blocks: of the pools, instead of the engine's. buckets: sizes of decode steps, ascending, the
    last one the engine's max_batch. weight_bytes: of the engine, for the words when memory does not suffice.

    Raises BadInput for an engine of another contract, and with a plan where the device's memory does not suffice.
    """

    def __init__(
        self,
        device: Device,
        engine: DeviceEngine,
        spec: EngineSpec,
        *,
        kernels: Kernels | None,
        num_blocks: int | None = None,
        buckets: Sequence[int] | None = None,
        weight_bytes: int = 0,
    ) -> None:
        check_engine(engine, spec)
        limits = spec.decoder_limits
        most = limits.max_batch
        self._device = device
        self._engine = engine
        self._kernels = kernels
        self._vocab = spec.vocab_size
        self._table_width = limits.max_blocks
        self._buckets = tuple(buckets or decode_buckets(most))
        self._layouts = {shape: self._layout(shape) for shape in (Shape(b, b, b) for b in self._buckets)}
        input_bytes = self._layout(Shape(max(limits.token_budget, most), most, most)).end
        self._sampler: DeviceSampler | None = None
        self._pools: PagedPools | None = None
        self._held: list[int] = []
        blocks = num_blocks or limits.num_blocks
        free, begun_pools = device.memory.free, False
        try:
            self._inputs = self._allocate(input_bytes)
            self._logits = self._allocate(most * self._vocab * 4)
            if kernels is not None:
                places = {"logits": self._logits, "parameters": self._inputs}
                self._sampler = DeviceSampler(device, kernels, **places, max_rows=most, vocab=self._vocab)
            begun_pools = True
            self._pools = PagedPools(device, engine, spec, blocks)
        except OutOfMemory as error:
            missing = 0 if begun_pools else error.needed
            fixed = free - device.memory.free + missing
            needs = MemoryNeeds(
                free, device.memory.total, fixed, weights=weight_bytes, workspace=engine.workspace_bytes
            )
            self.close()
            raise does_not_fit(spec, blocks, needs) from error
        engine.set_address(LOGITS.name, self._logits)
        results = self._sampler.results_bytes if self._sampler is not None else 0
        self._sets = [Staging(device, input_bytes, results) for _ in range(IN_FLIGHT)]
        self._num_launched = 0
        self._host_logits: npt.NDArray[np.float32] | None = None
        self._host_tokens: Int32Array | None = None  # of the last step, where the host chose them
        self._captured: dict[int, CapturedWork] = {}
        self._captures = True
        self._profile: str | None = None
        self._bound: Shape | None = None

    @property
    def bucket_rule(self) -> BucketRule:
        """No padding: decode steps are padded here."""
        return BucketRule()

    def launch(self, step: StepTensors, rows: Sequence[Row], carried: Int32Array | None) -> LaunchedStep:
        """See `LaunchingExecutor.launch`. Rows with a repetition penalty are sampled on the host, before it returns."""
        sampler = self._sampler
        if rows and (sampler is None or not on_device(rows)):
            sampled = sample(self._computed(step, carried, len(rows)), list(rows))
            self._host_tokens = np.array([result.token_id for result in sampled], np.int32)
            return Launched(None, lambda: sampled)
        staging, count = self._queue(step, rows, carried)
        self._host_tokens = None
        logprobs = any(row.params.logprobs is not None for row in rows)
        if sampler is not None and rows:
            sampler.enqueue(count, logprobs)
            sampler.download(staging.results, len(rows), logprobs)
        staging.step = Launched(
            self._device.record(), lambda: sampler.results(staging.results, rows, logprobs) if sampler else []
        )
        return staging.step

    def run(self, step: StepTensors) -> npt.NDArray[np.float32]:
        """See `Executor.run`."""
        return self._computed(step, None, len(step.logits_indices))

    def warm_up(self) -> None:
        """Computes and captures a decode step of each size, without any sequence in it."""
        for bucket in self._buckets:
            staging, shape = self._next_set(), Shape(bucket, bucket, bucket)
            self._upload(staging, shape, no_step(), (), None)
            self._decode(shape)
            if self._sampler is not None:
                self._sampler.enqueue(bucket, logprobs=False)
            self._device.record().wait()

    def close(self) -> None:
        """Gives the device's memory back, when nothing is in flight; the device and the engine stay."""
        for part in (self._pools, self._sampler):
            if part is not None:
                part.close()
        while self._held:
            self._device.free(self._held.pop())

    # ------------------------------------------------------------------ inside

    def _allocate(self, count: int) -> int:
        self._held.append(self._device.allocate(count))
        return self._held[-1]

    def _computed(self, step: StepTensors, carried: Int32Array | None, count: int) -> npt.NDArray[np.float32]:
        """Computes a step and waits for the first `count` rows of its logits, valid until the next call."""
        if self._host_logits is None:
            memory = self._device.staging(self._buckets[-1] * self._vocab * 4)
            self._host_logits = memory.view(np.float32).reshape(-1, self._vocab)
        self._queue(step, (), carried)
        logits = self._host_logits[:count]
        self._device.download(logits, self._logits)
        self._device.record().wait()
        return logits

    def _queue(
        self, step: StepTensors, rows: Sequence[Row], carried: Int32Array | None
    ) -> tuple[Staging, int]:
        """Queues a step up to its logits; gives its staging memory, and how many rows of logits there are."""
        if self._host_tokens is not None and carried is not None:
            step, carried = carried_on_host(step, carried, self._host_tokens), None
        tokens, batch = len(step.input_ids), len(step.past_lens)
        staging = self._next_set()
        if tokens == batch:
            bucket = next(size for size in self._buckets if size >= batch)
            shape = Shape(bucket, bucket, bucket)
            self._upload(staging, shape, step, rows, carried)
            self._decode(shape)
        else:
            shape = Shape(tokens, batch, len(step.logits_indices))
            layout = self._upload(staging, shape, step, rows, carried)
            self._bind("prefill" if batch == 1 else "mixed", shape, layout)
            if carried is not None:
                self._carry(shape, layout)
            self._engine.enqueue(self._device.stream)
        return staging, shape.selected

    def _decode(self, shape: Shape) -> None:
        """Queues a decode step: as captured work where there is some, and else command by command, to capture it then.

        (An engine may do work once, where it meets a shape for the first time, that is not to be captured.)
        """
        captured = self._captured.get(shape.batch)
        if captured is not None:
            captured.launch()
            return
        layout = self._layouts[shape]
        self._bind(decode_profile(self._engine.profiles, shape.batch), shape, layout)

        def work() -> None:
            if self._sampler is not None:
                self._carry(shape, layout)
            self._engine.enqueue(self._device.stream)

        work()
        if self._captures:
            try:
                self._captured[shape.batch] = self._device.capture(work)
            except SlipwayError as error:
                self._captures = False
                log_event(logging.WARNING, "decode steps are not captured", error=str(error))

    def _carry(self, shape: Shape, layout: PackedArrays) -> None:
        """Queues the kernel that puts the last step's tokens in their places."""
        assert self._kernels is not None
        assert self._sampler is not None
        tensors = {
            name: KernelTensor("int32", (shape.tokens,), self._inputs + layout.offsets[name])
            for name in ("input_ids", SOURCE)
        }
        tensors["sampled"] = KernelTensor("int32", (self._buckets[-1],), self._sampler.tokens)
        self._kernels.call("carry_tokens", tensors).enqueue(self._device.stream)

    def _bind(self, profile: str, shape: Shape, layout: PackedArrays) -> None:
        """Tells the engine shapes and places, unless they are those of the step that it was told of last."""
        engine, profiles = self._engine, self._engine.profiles
        profile = next((name for name in (profile, "mixed") if name in profiles), profiles[0])
        if shape == self._bound:
            return
        self._bound = None
        if profile != self._profile:
            self._profile = None
            engine.use_profile(profile, self._device.stream)
            assert self._pools is not None
            self._pools.set_shapes(engine)
            self._profile = profile
        for name, _, size in layout.parts:
            if name in engine.tensors:
                engine.set_shape(name, size)
                engine.set_address(name, self._inputs + layout.offsets[name])
        self._bound = shape

    def _upload(
        self,
        staging: Staging,
        shape: Shape,
        step: StepTensors,
        rows: Sequence[Row],
        carried: Int32Array | None,
    ) -> PackedArrays:
        """Writes a step to staging memory, padded to `shape`, and queues its copy."""
        layout = self._layouts.get(shape) or self._layout(shape)
        views = staging.views(shape, layout, keep=shape in self._layouts)
        if self._sampler is not None:
            self._sampler.fill(staging.inputs, rows, shape.selected)
        write_step(views, step, carried)
        self._device.upload(self._inputs, staging.inputs[: layout.end])
        return layout

    def _next_set(self) -> Staging:
        """Staging memory that no step uses any more."""
        staging = self._sets[self._num_launched % IN_FLIGHT]
        self._num_launched += 1
        staging.settle()
        return staging

    def _layout(self, shape: Shape) -> PackedArrays:
        return step_layout(shape, self._table_width, parameters(shape.selected).end)
