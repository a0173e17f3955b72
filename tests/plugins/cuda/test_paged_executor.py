"""`PagedExecutor` with the kernels, emulated, on the host's memory: tokens are sampled and carried where they lie."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model_repo.runtime.engine import Engine
from model_repo.runtime.host_device import HostDevice, HostKernels, Order
from model_repo.runtime.kernel_library import KernelLibrary
from model_repo.runtime.paged_executor import PagedExecutor
from model_repo.runtime.request import Request, SamplingParams
from model_repo.runtime.sampler import NO_TOKEN, Row, sample
from tests.runtime.fake_device_engine import FakeDeviceEngine
from tests.runtime.fake_executor import FakeExecutor, fake_spec, greedy_completion, logits_after
from tests.runtime.test_paged_executor import requests, step_of

SPEC = fake_spec(max_batch=5, token_budget=16, max_length=40, num_blocks=40)
GREEDY = Row(SamplingParams(temperature=0.0), 0, 0, None)


@pytest.fixture(scope="module", name="kernels")
def kernel_library(emulated_library: Path) -> KernelLibrary:
    """The emulated kernels over plain addresses."""
    return KernelLibrary(emulated_library)


def executor_on(device: HostDevice, kernels: KernelLibrary, **options: Any) -> PagedExecutor:
    """The fake model on a device, with kernels that wait in its queue."""
    return PagedExecutor(
        device, FakeDeviceEngine(device, SPEC), SPEC, kernels=HostKernels(kernels, device), **options
    )


def various(penalty: float) -> list[Request]:
    """Greedy, seeded, with log-probabilities, and one with a penalty, whose steps are left to the host."""
    kinds: list[dict[str, Any]] = [
        {},
        {"temperature": 0.8, "seed": 11},
        {"temperature": 1.2, "seed": 12, "top_k": 9},
        {"temperature": 0.7, "seed": 2**64 - 1, "top_p": 0.8, "logprobs": 3},
        {"temperature": 1.0, "seed": 14, "min_p": 0.1, "logprobs": 0},
        {"temperature": 1.0, "seed": 15, "top_k": 1},
        {"temperature": 0.9, "seed": 16, "repetition_penalty": penalty},
    ]
    listed = requests(2 * len(kinds))
    return [
        replace(request, sampling=replace(request.sampling, **kinds[place % len(kinds)]))
        for place, request in enumerate(listed)
    ]


@pytest.mark.parametrize(
    ("order", "penalty"), [("when_awaited", 1.0), ("when_awaited", 1.4), ("in_thread", 1.0)]
)
def test_the_loop_gives_what_it_gives_with_the_hosts_sampler(
    kernels: KernelLibrary, order: Order, penalty: float
) -> None:
    device = HostDevice(order)
    done = Engine(executor_on(device, kernels), SPEC).generate(various(penalty))
    wanted = Engine(FakeExecutor(SPEC), SPEC).generate(various(penalty))
    for got, want in zip(done, wanted, strict=True):
        assert (got.token_ids, got.finish_reason) == (want.token_ids, "length"), got.error
        for mine, its in zip(got.logprobs, want.logprobs, strict=True):
            assert mine.token_id == its.token_id
            assert mine.logprob == pytest.approx(its.logprob, rel=1e-5, abs=1e-6)
            assert [token for token, _ in mine.top] == [token for token, _ in its.top]
            assert [value for _, value in mine.top] == pytest.approx(
                [v for _, v in its.top], rel=1e-5, abs=1e-6
            )
    assert sum(len(want.logprobs) for want in wanted) > 10
    device.close()


def test_two_steps_are_in_flight_and_tokens_never_leave_the_device_between_them(
    kernels: KernelLibrary,
) -> None:
    device = HostDevice("when_awaited")
    executor = executor_on(device, kernels)
    executor.warm_up()
    wanted = greedy_completion([1, 2, 3], 9)
    launched = [executor.launch(step_of([1, 2, 3], 0, [4, 7, 2]), [GREEDY], None)]
    tokens = []
    for past in range(3, 11):  # queued while the one before has not begun
        launched.append(executor.launch(step_of([0], past, [4, 7, 2]), [GREEDY], np.array([0], np.int32)))
        tokens += [result.token_id for result in launched.pop(0).sampled()]
    tokens += [result.token_id for result in launched.pop().sampled()]
    assert tokens == wanted


def test_two_launches_wait_for_nothing(kernels: KernelLibrary) -> None:
    device = HostDevice("when_awaited")
    computed: list[int] = []
    engine = FakeDeviceEngine(device, SPEC, lambda step: computed.append(int(step["input_ids"][0])))
    executor = PagedExecutor(device, engine, SPEC, kernels=HostKernels(kernels, device))
    launched = [executor.launch(step_of([token], 0, [token]), [GREEDY], None) for token in (3, 4)]
    assert computed == []
    launched[0].sampled()
    assert computed == [3, 4]


def test_a_third_step_waits_for_the_memory_of_the_first_whose_tokens_stay(kernels: KernelLibrary) -> None:
    device = HostDevice("when_awaited")
    executor = executor_on(device, kernels)
    launched = [executor.launch(step_of([token], 0, [token]), [GREEDY], None) for token in range(5)]
    for token in (4, 1, 0, 2, 3):
        ((chosen, _),) = launched[token].sampled()
        assert chosen == int(logits_after([token]).argmax())


def test_a_prefill_carries_over_too(kernels: KernelLibrary) -> None:
    """A step of two tokens, the first of which was sampled in the step before."""
    device = HostDevice("when_awaited")
    executor = executor_on(device, kernels)
    first = executor.launch(step_of([5], 0, [1]), [GREEDY], None)
    second = executor.launch(step_of([0, 9], 1, [1]), [GREEDY], np.array([0, -1], np.int32))
    token = first.sampled()[0].token_id
    assert second.sampled()[0].token_id == int(logits_after([5, token, 9]).argmax())


def test_tokens_of_a_step_with_a_penalty_are_carried_into_one_without(kernels: KernelLibrary) -> None:
    device = HostDevice("when_awaited")
    executor = executor_on(device, kernels)
    penalized = Row(SamplingParams(temperature=0.0, repetition_penalty=9.0), 0, 0, np.arange(30))
    first = executor.launch(step_of([1, 2], 0, [3]), [penalized], None)
    second = executor.launch(step_of([0], 2, [3]), [GREEDY], np.array([0], np.int32))
    third = executor.launch(step_of([0], 3, [3]), [GREEDY], np.array([0], np.int32))
    tokens = [launched.sampled()[0].token_id for launched in (first, second, third)]
    assert tokens[0] == sample(logits_after([1, 2])[None], [penalized])[0].token_id
    assert tokens[1:] == greedy_completion([1, 2, tokens[0]], 2)


def test_logits_that_are_no_numbers_give_no_token_and_harm_nobody(kernels: KernelLibrary) -> None:
    class Broken(FakeDeviceEngine):
        def _row(self, step: Any, keys: Any, values: Any, row: int) -> Any:
            found = super()._row(step, keys, values, row)
            return np.full_like(found, np.nan) if step["input_ids"][row] == 13 else found

    device = HostDevice("when_awaited")
    executor = PagedExecutor(device, Broken(device, SPEC), SPEC, kernels=HostKernels(kernels, device))
    logged = Row(SamplingParams(temperature=0.0, logprobs=1), 0, 0, None)
    bad = executor.launch(step_of([13], 0, [1]), [logged], None)
    after = executor.launch(step_of([9], 1, [1]), [GREEDY], np.array([0], np.int32))
    assert bad.sampled() == [(NO_TOKEN, None)]
    assert after.sampled()[0].token_id == int(logits_after([13, 0]).argmax())  # as if it were token 0


def test_a_step_allocates_nothing_and_waits_for_nothing(
    kernels: KernelLibrary, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = HostDevice()
    executor = executor_on(device, kernels)
    executor.warm_up()
    done: list[str] = []
    for name in ("allocate", "staging", "free", "capture", "upload", "download", "record"):
        call = getattr(HostDevice, name)
        monkeypatch.setattr(
            HostDevice, name, lambda *given, name=name, call=call: (done.append(name), call(*given))[1]
        )
    seeded = Row(SamplingParams(temperature=0.7, top_p=0.9), 5, 0, None)
    launched = executor.launch(step_of([1], 0, [0]), [seeded], None)
    assert done == ["upload", "download", "record"]
    assert launched.sampled() == sample(logits_after([1])[None], [seeded])
