"""Sampling where the logits lie: rows of parameters to the arrays of the kernel `sampling`, and its results back.

The kernel chooses as `sampler.sample` does, by the same random numbers. Steps with a repetition penalty are left to the
host: the kernel takes penalties from counts of tokens that are kept on the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import numpy.typing as npt

from .device import Device
from .kernel_library import Enqueued, Kernels, KernelTensor
from .output import TokenLogprob
from .packed_arrays import PackedArrays, Part
from .request import MAX_LOGPROBS
from .sampler import NO_TOKEN, Row, Sampled

_PARAMETERS = (
    ("seed", "uint64"),
    ("position", "int32"),
    ("temperature", "float32"),
    ("top_k", "int32"),
    ("top_p", "float32"),
    ("min_p", "float32"),
)


def on_device(rows: Sequence[Row]) -> bool:
    """Whether the kernel can sample all of these."""
    return all(row.seen is None for row in rows)


class DeviceSampler:
    """Samples from logits float32 [max_rows, vocab] at the address `logits`.

    Parameters lie packed at the address `parameters`; what `results_bytes` holds lies at `results`.
    """

    def __init__(
        self, device: Device, kernels: Kernels, *, logits: int, parameters: int, max_rows: int, vocab: int
    ) -> None:
        self._device = device
        self._kernels = kernels
        self._logits = logits
        self._parameters = parameters
        self._vocab = vocab
        self._top = min(MAX_LOGPROBS, vocab)
        self._results = PackedArrays(
            (
                Part("token", "int32", (max_rows,)),
                Part("token_log_prob", "float32", (max_rows,)),
                Part("top_ids", "int32", (max_rows, self._top)),
                Part("top_log_probs", "float32", (max_rows, self._top)),
            )
        )
        self._workspace_bytes = max(
            kernels.workspace_bytes("sampling", self._tensors(rows, logprobs=True), {})
            for rows in range(1, max_rows + 1)
        )
        self._memory = device.allocate(self._results.end + self._workspace_bytes)
        self._calls: dict[tuple[int, bool], Enqueued] = {}

    @property
    def tokens(self) -> int:
        """Address of the tokens that were chosen last, int32 [max_rows]; -1 where none could be."""
        return self._memory

    @property
    def results_bytes(self) -> int:
        """Bytes of staging memory that `download` wants."""
        return self._results.end

    def fill(self, memory: npt.NDArray[np.uint8], rows: Sequence[Row], count: int) -> None:
        """Writes parameters of `count` rows to the beginning of `memory`: `rows`, and then ones that nobody reads."""
        views = parameters(count).views(memory)
        given = len(rows)
        for name, values in (
            ("seed", [row.seed for row in rows]),
            ("position", [row.position for row in rows]),
            ("temperature", [0.0 if row.params.greedy else row.params.temperature for row in rows]),
            ("top_k", [min(row.params.top_k, self._vocab) for row in rows]),
            ("top_p", [row.params.top_p for row in rows]),
            ("min_p", [row.params.min_p for row in rows]),
        ):
            views[name][:given] = values
            views[name][given:] = name == "top_p"

    def enqueue(self, count: int, logprobs: bool) -> None:
        """Queues the choice of tokens for the first `count` rows of the logits."""
        call = self._calls.get((count, logprobs))
        if call is None:
            call = self._calls[count, logprobs] = self._kernels.call(
                "sampling",
                self._tensors(count, logprobs, self._memory),
                workspace=self._memory + self._results.end,
                workspace_bytes=self._workspace_bytes,
            )
        call.enqueue(self._device.stream)

    def download(self, memory: npt.NDArray[np.uint8], count: int, logprobs: bool) -> None:
        """Queues the copy of the results of `count` rows into staging memory."""
        size = self._results.end if logprobs else 4 * count
        self._device.download(memory[:size], self._memory)

    def results(self, memory: npt.NDArray[np.uint8], rows: Sequence[Row]) -> list[Sampled]:
        """What was downloaded, for each of `rows`."""
        views = self._results.views(memory)
        tokens = views["token"][: len(rows)].tolist()
        sampled = []
        for place, (row, token) in enumerate(zip(rows, tokens, strict=True)):
            wanted, logprob = row.params.logprobs, None
            if token != NO_TOKEN and wanted is not None:
                top = zip(
                    views["top_ids"][place].tolist(), views["top_log_probs"][place].tolist(), strict=True
                )
                chosen = float(views["token_log_prob"][place])
                logprob = TokenLogprob(token, chosen, tuple(top)[:wanted])
            sampled.append(Sampled(token, logprob))
        return sampled

    def close(self) -> None:
        """Gives its memory back."""
        self._device.free(self._memory)

    def _tensors(self, count: int, logprobs: bool, results: int = 0) -> dict[str, KernelTensor]:
        packed = parameters(count)
        tensors = {
            name: KernelTensor(dtype, shape, self._parameters + packed.offsets[name])
            for name, dtype, shape in packed.parts
        }
        tensors["logits"] = KernelTensor("float32", (count, self._vocab), self._logits)
        for name, dtype, shape in self._results.parts if logprobs else self._results.parts[:1]:
            tensors[name] = KernelTensor(dtype, (count, *shape[1:]), results + self._results.offsets[name])
        return tensors


@cache
def parameters(count: int) -> PackedArrays:
    """Where the kernel's parameters of `count` rows lie in a step's upload: at its beginning."""
    return PackedArrays([Part(name, dtype, (count,)) for name, dtype in _PARAMETERS])
