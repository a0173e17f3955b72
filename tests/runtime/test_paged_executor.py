"""`PagedExecutor` on the host's memory, without kernels: what the engine is told, and what comes of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest

from model_repo.runtime.contract import KVSpec, StepTensors
from model_repo.runtime.device_engine import DeviceTensor
from model_repo.runtime.engine import Engine
from model_repo.runtime.errors import BadInput, SlipwayError
from model_repo.runtime.executor import LaunchingExecutor
from model_repo.runtime.host_device import HostDevice, Order
from model_repo.runtime.paged_executor import PagedExecutor, decode_buckets
from model_repo.runtime.request import Request, SamplingParams
from model_repo.runtime.sampler import NO_TOKEN, Row, sample
from tests.runtime.fake_device_engine import FakeDeviceEngine
from tests.runtime.fake_executor import FakeExecutor, fake_spec, greedy_completion, logits_after

SPEC = fake_spec(max_batch=5, token_budget=16, max_length=40, num_blocks=40)


def requests(count: int, **sampling: Any) -> list[Request]:
    """Prompts of 1 to 30 tokens, which end after different numbers of tokens."""
    params = {"temperature": 0.0, **sampling}
    return [
        Request(
            f"r{place}",
            tuple((7 * place + 3 * token) % 64 for token in range(1 + place * 11 % 30)),
            SamplingParams(max_tokens=3 + place % 7, **params),
        )
        for place in range(count)
    ]


def step_of(tokens: list[int], past: int, blocks: list[int]) -> StepTensors:
    """A step of one sequence, whose last row's logits are wanted."""
    positions = np.arange(past, past + len(tokens), dtype=np.int32)
    table = np.array([blocks], np.int32)
    size = SPEC.decoder_limits.block_size
    return StepTensors(
        input_ids=np.array(tokens, np.int32),
        position_ids=positions,
        cu_seqlens=np.array([0, len(tokens)], np.int32),
        past_lens=np.array([past], np.int32),
        block_table=table,
        slot_mapping=(table[0, positions // size] * size + positions % size).astype(np.int32),
        logits_indices=np.array([len(tokens) - 1], np.int32),
    )


@pytest.mark.parametrize("order", get_args(Order))
def test_requests_in_company_get_the_models_own_tokens(order: Order) -> None:
    device = HostDevice(order)
    executor: LaunchingExecutor = PagedExecutor(device, FakeDeviceEngine(device, SPEC), SPEC, kernels=None)
    assert isinstance(executor, LaunchingExecutor)
    asked = requests(12)
    done = Engine(executor, SPEC).generate(asked)
    for request, completion in zip(asked, done, strict=True):
        assert completion.finish_reason == "length", completion.error
        wanted = greedy_completion(request.prompt_ids, request.sampling.max_tokens)
        assert list(completion.token_ids) == wanted
    device.close()


def test_sampling_and_penalties_are_the_hosts() -> None:
    device = HostDevice("when_awaited")
    executor = PagedExecutor(device, FakeDeviceEngine(device, SPEC), SPEC, kernels=None)
    asked = requests(9, temperature=0.9, seed=3, top_k=20, repetition_penalty=1.3, logprobs=2)
    assert Engine(executor, SPEC).generate(asked) == [
        replace(wanted, seconds=pytest.approx(0, abs=60), seconds_to_first_token=pytest.approx(0, abs=60))
        for wanted in Engine(FakeExecutor(SPEC), SPEC).generate(asked)
    ]


def test_decode_steps_are_captured_once_for_each_size() -> None:
    assert decode_buckets(1) == (1,)
    assert decode_buckets(5) == (1, 2, 4, 5)
    assert decode_buckets(8) == (1, 2, 4, 8)
    device = HostDevice()
    engine = FakeDeviceEngine(device, SPEC)
    executor = PagedExecutor(device, engine, SPEC, kernels=None)
    executor.warm_up()
    assert dict(engine.enqueued) == {("decode", size): 2 for size in (1, 2, 4, 5)}  # done once, captured once
    Engine(executor, SPEC).generate(requests(12))
    assert {key: count for key, count in engine.enqueued.items() if key[0] == "decode"} == {
        ("decode", size): 2 for size in (1, 2, 4, 5)
    }


def test_a_device_that_cannot_capture_runs_step_by_step(caplog: pytest.LogCaptureFixture) -> None:
    class Unable(HostDevice):
        def capture(self, work: Any) -> Any:
            raise SlipwayError("this driver captures nothing")

    device = Unable()
    executor = PagedExecutor(device, FakeDeviceEngine(device, SPEC), SPEC, kernels=None)
    asked = requests(3)
    done = Engine(executor, SPEC).generate(asked)
    assert [list(c.token_ids) for c in done] == [
        greedy_completion(r.prompt_ids, r.sampling.max_tokens) for r in asked
    ]
    assert sum("this driver captures nothing" in record.getMessage() for record in caplog.records) == 1


def test_a_padded_step_holds_nothing_that_could_be_read() -> None:
    seen: list[Mapping[str, np.ndarray]] = []
    device = HostDevice()
    engine = FakeDeviceEngine(
        device, SPEC, before=lambda step: seen.append({k: v.copy() for k, v in step.items()})
    )
    executor = PagedExecutor(device, engine, SPEC, kernels=None, buckets=(4, 5))
    executor.run(step_of([9, 8, 7], 0, [3]))
    logits = executor.run(step_of([5], 3, [3]))
    assert logits.tolist() == [logits_after([9, 8, 7, 5]).tolist()]
    prefill, decode = seen
    width = SPEC.decoder_limits.max_blocks
    assert prefill["block_table"].tolist() == [[3] + [-1] * (width - 1)]
    assert {name: array.tolist() for name, array in decode.items()} == {
        "input_ids": [5, 0, 0, 0],
        "position_ids": [3, 0, 0, 0],
        "cu_seqlens": [0, 1, 1, 1, 1],
        "past_lens": [3, 0, 0, 0],
        "block_table": [[3] + [-1] * (width - 1)] + [[-1] * width] * 3,
        "slot_mapping": [15, -1, -1, -1],
        "logits_indices": [0, 0, 0, 0],
    }


def test_tokens_that_the_host_chose_are_carried_over() -> None:
    device = HostDevice("when_awaited")
    executor = PagedExecutor(device, FakeDeviceEngine(device, SPEC), SPEC, kernels=None)
    row = Row(SamplingParams(temperature=0.0), 0, 0, None)
    first = executor.launch(step_of([1, 2], 0, [0]), [row], None)
    second = executor.launch(step_of([0], 2, [0]), [row], np.array([0], np.int32))
    tokens = [launched.sampled()[0].token_id for launched in (first, second)]
    assert tokens == greedy_completion([1, 2], 2)


def test_no_token_of_the_host_is_carried_over_as_token_0() -> None:
    def before(step: Mapping[str, np.ndarray]) -> None:
        assert step["input_ids"][0] != -1

    device = HostDevice()
    engine = FakeDeviceEngine(device, SPEC, before)
    executor = PagedExecutor(device, engine, SPEC, kernels=None)
    penalized = Row(SamplingParams(temperature=0.0, repetition_penalty=2.0), 0, 0, np.arange(4))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "_row", lambda *_: np.full(SPEC.vocab_size, np.nan, np.float32))
        first = executor.launch(step_of([1, 2], 0, [0]), [penalized], None)
    second = executor.launch(step_of([0], 2, [0]), [penalized], np.array([0], np.int32))
    assert first.sampled() == [(NO_TOKEN, None)]
    assert second.sampled() == sample(logits_after([1, 2, 0])[None], [penalized])


def test_pools_begin_as_zeros() -> None:
    class Dirty(HostDevice):
        def allocate(self, count: int) -> int:
            address = super().allocate(count)
            self.view(address, (count,), np.uint8)[:] = 0xFF
            return address

    seen: list[np.ndarray] = []
    device = Dirty()
    engine = FakeDeviceEngine(device, SPEC)
    PagedExecutor(device, engine, SPEC, kernels=None)
    for name in ("key_cache_0", "value_cache_0"):
        shape = (SPEC.decoder_limits.num_blocks, SPEC.decoder_limits.block_size, 1, 1)
        seen.append(device.view(engine._addresses[name], shape, np.float32))
    assert not np.any(seen)


def test_a_step_that_fails_is_told_to_who_asks_and_the_next_goes_on() -> None:
    def before(step: Mapping[str, np.ndarray]) -> None:
        if step["input_ids"][0] == 13:
            raise RuntimeError("an illegal address")

    device = HostDevice("in_thread")
    executor = PagedExecutor(device, FakeDeviceEngine(device, SPEC, before), SPEC, kernels=None)
    bad = executor.launch(step_of([13, 2], 0, [0]), [], None)
    good = executor.launch(step_of([1, 2], 0, [1]), [], None)
    with pytest.raises(SlipwayError, match="an illegal address"):
        bad.sampled()
    assert good.sampled() == []
    assert executor.run(step_of([3], 2, [1])).tolist() == [logits_after([1, 2, 3]).tolist()]
    device.close()


def test_memory_that_does_not_suffice_is_answered_with_a_plan() -> None:
    spec = fake_spec(max_batch=2, token_budget=8, max_length=64, block_size=4, num_blocks=1000)
    block_bytes = 2 * 4 * 4
    device = HostDevice(limit=20_000)
    engine = FakeDeviceEngine(device, spec)
    with pytest.raises(BadInput) as raised:
        PagedExecutor(device, engine, spec, kernels=None, weight_bytes=5 << 20)
    assert device.memory.free == 20_000
    words = str(raised.value)
    assert "1000 cache blocks of 4 tokens take 0.0 MiB (8 bytes a token)" in words
    assert "5.0 MiB) and its workspace (3.0 MiB)" in words
    fits = int(words.rpartition("num_blocks ")[2].split()[0])
    executor = PagedExecutor(device, engine, spec, kernels=None, num_blocks=fits)
    assert device.memory.free < block_bytes
    executor.close()
    assert device.memory.free == 20_000
    for limit, blocks in ((2_000, 0), (20_000 - fits * block_bytes + 5 * block_bytes, 5)):
        small = HostDevice(limit=limit)
        words = f"{blocks} blocks would fit, and one sequence of 64 tokens takes 16: build it with a smaller --max-len"
        with pytest.raises(BadInput, match=words):
            PagedExecutor(small, FakeDeviceEngine(small, spec), spec, kernels=None)


def test_an_engine_of_another_contract_is_refused_by_name() -> None:
    device = HostDevice()
    for change, words in (
        ({"prompt_embeds": DeviceTensor("prompt_embeds", "input", "float32", (None,))}, "none of that name"),
        (
            {"input_ids": DeviceTensor("input_ids", "input", "int64", (None,))},
            "int64, where the contract has int32",
        ),
        (
            {"logits": DeviceTensor("logits", "output", "float16", (None,))},
            "float16, where the contract has float32",
        ),
        ({"key_cache_0": None}, "no tensor 'key_cache_0'; it has input_ids"),
    ):
        engine = FakeDeviceEngine(device, SPEC)
        for name, tensor in change.items():
            if tensor is None:
                del engine.tensors[name]
            else:
                engine.tensors[name] = tensor
        with pytest.raises(BadInput, match=words):
            PagedExecutor(device, engine, SPEC, kernels=None)
    eight = replace(SPEC, kv=(KVSpec(0, 1, 1, 1, 0, "int8"),))
    with pytest.raises(BadInput, match="'key_cache_0' of float32, where the contract has int8"):
        PagedExecutor(device, FakeDeviceEngine(device, SPEC), eight, kernels=None)
