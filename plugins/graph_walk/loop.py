"""The runtime's whole loop over a walked graph: on a GPU by torch's device, on the CPU over the host's memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from model_repo.runtime.contract import Limits
from model_repo.runtime.device import CapturedWork, Device
from model_repo.runtime.engine import Engine
from model_repo.runtime.errors import SlipwayError
from model_repo.runtime.host_device import HostDevice, HostKernels, Order
from model_repo.runtime.kernel_library import KernelLibrary, Kernels
from model_repo.runtime.output import Output
from model_repo.runtime.paged_executor import PagedExecutor
from model_repo.runtime.request import Request, SamplingParams
from plugins.cuda.library import Library

from .description import Graph
from .engine import WalkingEngine
from .spec import decoder_spec, profiles
from .torch_device import TorchDevice

Prompt = tuple[int, ...]


@dataclass(frozen=True)
class Timed:
    """What some streams took, from the first prompt to the last token.

    step_seconds: of a step after the last prompt, by the clock. host_seconds: of that, what the host did not wait for
    the device; None where the device has no clock of its own.
    """

    streams: int
    tokens: int
    seconds: float
    step_seconds: float
    host_seconds: float | None


class _Uncaptured(TorchDevice):
    """A GPU whose work is queued command by command."""

    def capture(self, work: Callable[[], None]) -> CapturedWork:
        raise SlipwayError("nothing is to be captured")


class Loop:
    """An engine loop over `graph`. library: the kernels for `device`; None: the references, on the CPU.

    captures: whether decode steps become CUDA graphs. order: when the CPU does what is queued. Raises what the parts
    raise.
    """

    def __init__(
        self,
        graph: Graph,
        limits: Limits,
        device: torch.device,
        library: Path | None,
        captures: bool = True,
        order: Order = "at_once",
    ) -> None:
        self.spec = decoder_spec(graph, limits)
        host = HostDevice(order) if device.type == "cpu" else None
        self._gpu = None if host is not None else (TorchDevice if captures else _Uncaptured)(device)
        walking = WalkingEngine(
            graph,
            device,
            kernels=None if library is None else Library(library),
            profiles=profiles(graph, self.spec.decoder_limits),
            queue=None if host is None else host.queue,
        )
        self._device: Device = self._gpu if host is None else host  # type: ignore[assignment]
        self.executor = PagedExecutor(
            self._device,
            walking,
            self.spec,
            kernels=_kernels(library, host),
            weight_bytes=walking.weight_bytes,
        )
        self.engine = Engine(self.executor, self.spec, max_queue=limits.max_batch, share_prefixes=False)

    def warm_up(self) -> None:
        """Computes a prompt, and decode steps of each size, which captures them."""
        self.executor.warm_up()
        self.engine.warm_up()

    def tokens(self, prompts: Sequence[Prompt], new_tokens: int) -> list[Prompt]:
        """Greedy completions. The second half of the prompts comes when the first ones have tokens already.

        Raises SlipwayError when a request ends in an error.
        """
        requests = [_request(number, prompt, new_tokens) for number, prompt in enumerate(prompts)]
        found = _Collected([request.request_id for request in requests])
        half = len(requests) // 2
        for request in requests[:half]:
            self.engine.submit(request, found.take)
        while not found.all_began(half):
            self.engine.step()
        for request in requests[half:]:
            self.engine.submit(request, found.take)
        while self.engine.step():
            pass
        return found.finished()

    def timed(self, prompts: Sequence[Prompt], new_tokens: int) -> Timed:
        """All prompts at once, greedily to `new_tokens` each. Raises as `tokens` does."""
        requests = [_request(number, prompt, new_tokens) for number, prompt in enumerate(prompts)]
        found = _Collected([request.request_id for request in requests])
        begun = time.perf_counter()
        for request in requests:
            self.engine.submit(request, found.take)
        while not found.all_began(len(requests)):
            self.engine.step()
        decoding, waited, steps = time.perf_counter(), self._waited(), 0
        while self.engine.step():
            steps += 1
        ended = time.perf_counter()
        of_host = None if self._gpu is None else ended - decoding - (self._waited() - waited)
        return Timed(
            len(prompts),
            sum(map(len, found.finished())),
            ended - begun,
            (ended - decoding) / max(1, steps),
            None if of_host is None else of_host / max(1, steps),
        )

    def close(self) -> None:
        """Gives all memory back."""
        self.executor.close()
        self._device.close()

    def _waited(self) -> float:
        return 0.0 if self._gpu is None else self._gpu.seconds_waited


def _kernels(library: Path | None, host: HostDevice | None) -> Kernels | None:
    if library is None:
        return None
    return KernelLibrary(library) if host is None else HostKernels(KernelLibrary(library), host)


def _request(number: int, prompt: Prompt, new_tokens: int) -> Request:
    sampling = SamplingParams(max_tokens=new_tokens, temperature=0.0, ignore_eos=True)
    return Request(str(number), prompt, sampling)


class _Collected:
    """What requests got so far. (An error is kept, since what a sink raises is the request's own trouble.)"""

    def __init__(self, request_ids: Sequence[str]) -> None:
        self._tokens: dict[str, list[int]] = {name: [] for name in request_ids}
        self._error: str | None = None

    def take(self, output: Output) -> None:
        """The sink."""
        self._error = self._error or output.error
        self._tokens[output.request_id] += output.token_ids

    def all_began(self, count: int) -> bool:
        """Whether each of the first `count` requests has a token. Raises SlipwayError when one ended in an error."""
        return all(self.finished()[:count])

    def finished(self) -> list[Prompt]:
        """The tokens of each. Raises SlipwayError when one ended in an error."""
        if self._error is not None:
            raise SlipwayError(f"a request of the loop ended in an error: {self._error}")
        return [tuple(tokens) for tokens in self._tokens.values()]


def random_prompts(lengths: Sequence[int], vocab: int, seed: int = 0) -> list[Prompt]:
    """Prompts of these lengths."""
    random = np.random.default_rng(seed)
    return [tuple(random.integers(0, vocab, length).tolist()) for length in lengths]
