"""Sampling where the logits lie: rows of parameters to the arrays of the kernel `sampling`, and its results back.

The kernel chooses as `sampler.sample` does, by the same random numbers. Steps with a repetition penalty are left to the
host: the kernel takes penalties from counts of tokens that are kept on the device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from itertools import repeat
from typing import Any

import numpy as np
import numpy.typing as npt

from .device import Device
from .kernel_library import Enqueued, Kernels, KernelTensor
from .output import TokenLogprob
from .packed_arrays import PackedArrays, Part
from .request import MAX_LOGPROBS, SamplingParams
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
        self._filled: dict[int, tuple[int, list[SamplingParams]]] = {}  # by address: what lies there

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
        views["seed"][:given] = [row.seed for row in rows]
        views["position"][:given] = [row.position for row in rows]
        params = [row.params for row in rows]
        before = self._filled.get(memory.ctypes.data)
        if before == (count, params):  # the same requests as in the last step that this memory held
            return
        for name, values in (
            ("temperature", [each.temperature for each in params]),
            ("top_k", [min(each.top_k, self._vocab) for each in params]),
            ("top_p", [each.top_p for each in params]),
            ("min_p", [each.min_p for each in params]),
        ):
            views[name][:given] = values
        for name, view in views.items():
            view[given:] = name == "top_p"
        self._filled[memory.ctypes.data] = count, params

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

    def results(self, memory: npt.NDArray[np.uint8], rows: Sequence[Row], logprobs: bool) -> list[Sampled]:
        """What was downloaded, for each of `rows`."""
        views = self._results.views(memory)
        tokens = views["token"][: len(rows)].tolist()
        if not logprobs:
            return list(map(Sampled, tokens, repeat(None)))
        return [
            Sampled(token, None)
            if row.params.logprobs is None or token == NO_TOKEN
            else Sampled(token, self._logprob(views, place, token, row.params.logprobs))
            for place, (row, token) in enumerate(zip(rows, tokens, strict=True))
        ]

    def close(self) -> None:
        """Gives its memory back."""
        self._device.free(self._memory)

    def _logprob(
        self, views: Mapping[str, npt.NDArray[Any]], place: int, token: int, wanted: int
    ) -> TokenLogprob:
        ids, values = (views[name][place, :wanted].tolist() for name in ("top_ids", "top_log_probs"))
        return TokenLogprob(
            token, float(views["token_log_prob"][place]), tuple(zip(ids, values, strict=True))
        )

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
