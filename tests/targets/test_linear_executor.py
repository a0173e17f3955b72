"""The engine loop over the linear contract: lowered graphs on the host's memory as a device, run by ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnx_ir as ir
import pytest

from model_repo.runtime.contract import EngineSpec, KVSpec, Limits
from model_repo.runtime.engine import Engine
from model_repo.runtime.errors import BadInput, SlipwayError
from model_repo.runtime.host_device import HostDevice, Order
from model_repo.runtime.linear_cache import LINEAR_CACHE, check_slots
from model_repo.runtime.linear_executor import LinearExecutor
from model_repo.runtime.request import Request, SamplingParams
from pipeline.fuse.matching import dims
from pipeline.graph import load_graph, save_graph
from pipeline.targets.native.precision import narrow
from pipeline.targets.tensorrt.profiles import linear_profiles
from tests.export.families import CARRIED
from tests.export.tiny_models import VOCABULARY, greedy, tiny_llama
from tests.runtime.drive import Client
from tests.runtime.host_engine import HostEngine
from tests.targets.linear_requests import greedy_in_slots
from tests.targets.test_linear import MAX_LENGTH, lowered, on_onnxruntime

SLOTS, BUDGET, NEW_TOKENS = 3, 8, 10
PROMPTS = [
    [int(token) for token in np.random.default_rng(11).integers(4, VOCABULARY, length)]
    for length in (1, 9, 23, 2, 14, 30, 5)
]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny Llama's linear graph."""
    folder = tmp_path_factory.mktemp("llama")
    lowered(tiny_llama(), folder)
    return folder


@pytest.fixture(scope="module")
def expected() -> list[list[int]]:
    return [greedy(tiny_llama(), prompt, NEW_TOKENS)[0] for prompt in PROMPTS]


class Loop:
    """The engine loop on the graph in a folder."""

    def __init__(
        self, folder: Path, order: Order = "at_once", slots: int = SLOTS, limit: int | None = None
    ) -> None:
        graph = load_graph(folder / "linear.onnx").graph
        self.spec = spec_of(graph, slots)
        inputs = {value.name or "": dims(value) or () for value in graph.inputs}
        ranges = {
            profile.name: {name: (shapes.least, shapes.most) for name, shapes in profile.shapes.items()}
            for profile in linear_profiles(inputs, slots, BUDGET)
        }
        self.device = HostDevice(order, limit)
        self.host = HostEngine(self.device, folder / "linear.onnx", ranges)
        self.executor = LinearExecutor(self.device, self.host, self.spec, slots)
        self.client = Client(Engine(self.executor, self.spec))

    def submit(self, place: int, prompt: Sequence[int], **sampling: Any) -> None:
        given = {"max_tokens": NEW_TOKENS, "temperature": 0.0, "ignore_eos": True} | sampling
        self.client.submit(Request(f"r{place}", tuple(prompt), SamplingParams(**given)))

    def tokens(self) -> list[list[int]]:
        return [self.client.tokens(name) for name in self.client.outputs]


def spec_of(graph: ir.Graph, slots: int) -> EngineSpec:
    kv = []
    for value in graph.inputs:
        if (value.name or "").startswith("key_cache_"):
            assert value.dtype is not None
            _, heads, _, dim = dims(value) or ()
            dtype = {ir.DataType.FLOAT: "float32", ir.DataType.FLOAT16: "float16"}[value.dtype]
            kv.append(KVSpec(0, int(heads), int(dim), int(dim), 0, dtype))
    return EngineSpec(
        kind="decoder",
        name="tiny",
        target="tensorrt-rtx",
        precision="fp16",
        graph="linear.onnx",
        plugin=None,
        vocab_size=VOCABULARY,
        max_length=MAX_LENGTH,
        features=(LINEAR_CACHE,),
        kv=tuple(kv),
        limits=Limits(slots, BUDGET, MAX_LENGTH, MAX_LENGTH, slots),
    )


@pytest.mark.parametrize("order", get_args(Order))
def test_ragged_chunked_and_late_prompts_decode_as_transformers(
    llama: Path, expected: list[list[int]], order: Order
) -> None:
    """More requests than slots, prompts longer than a step, and requests that come between steps."""
    loop = Loop(llama, order)
    for place, prompt in enumerate(PROMPTS):
        loop.submit(place, prompt)
        loop.client.engine.step()
        if place % 3 == 1:
            loop.client.engine.step()
    loop.client.run()
    assert loop.tokens() == expected
    profiles = {call.profile for call in loop.host.calls}
    assert profiles == {"decode", "prefill"}
    slots = {call.shapes["input_ids"][0] for call in loop.host.calls if call.profile == "decode"}
    assert slots == {1, 2, 3}


def test_windows_see_what_they_are_to_see(tmp_path: Path) -> None:
    (family,) = (family for family in CARRIED if family.name == "Mistral")
    lowered(family.model(), tmp_path)
    loop = Loop(tmp_path)
    for place, prompt in enumerate(PROMPTS[:4]):
        loop.submit(place, prompt)
        loop.client.engine.step()
    loop.client.run()
    assert loop.tokens() == [greedy(family.model(), prompt, NEW_TOKENS)[0] for prompt in PROMPTS[:4]]


def test_a_16_bit_graph_gives_its_own_tokens(llama: Path, tmp_path: Path) -> None:
    """Against the same graph fed by hand."""
    model = load_graph(llama / "linear.onnx")
    narrow(model, "fp16")
    save_graph(model, tmp_path / "linear.onnx")
    by_hand = greedy_in_slots(model, on_onnxruntime(tmp_path), PROMPTS[:SLOTS], NEW_TOKENS)
    loop = Loop(tmp_path)
    assert {kv.dtype for kv in loop.spec.kv} == {"float16"}
    for place, prompt in enumerate(PROMPTS[:SLOTS]):
        loop.submit(place, prompt)
    loop.client.run()
    assert loop.tokens() == by_hand


def test_a_slot_in_the_middle_may_be_idle_or_in_its_prompt(llama: Path, expected: list[list[int]]) -> None:
    """The first slot ends while the last goes on; a long prompt takes it in chunks beside the last one's tokens."""
    loop = Loop(llama)
    loop.submit(0, PROMPTS[3], max_tokens=2)
    loop.submit(1, PROMPTS[0], max_tokens=2)
    loop.submit(2, PROMPTS[1])
    for _ in range(5):
        loop.client.engine.step()
    loop.submit(3, PROMPTS[5])
    loop.client.run()
    assert loop.tokens() == [expected[3][:2], expected[0][:2], expected[1], expected[5]]


def test_a_decode_step_is_captured_once_for_each_number_of_slots(llama: Path) -> None:
    loop = Loop(llama)
    loop.submit(0, PROMPTS[1])
    loop.client.run()
    # Two chunks, then nine tokens: the first as it is and captured, which is launched ever after.
    assert loop.host.queued == 2 + 2
    assert len(loop.host.calls) == 2 + NEW_TOKENS - 1


def test_what_cannot_be_captured_runs_as_it_is(
    llama: Path, expected: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(self: HostDevice, work: object) -> None:
        raise SlipwayError("this cannot be captured")

    monkeypatch.setattr(HostDevice, "capture", refused)
    loop = Loop(llama)
    loop.submit(0, PROMPTS[1])
    loop.client.run()
    assert loop.tokens() == [expected[1]]
    assert loop.host.queued == 2 + NEW_TOKENS - 1


def test_numbers_that_are_none_stay_with_their_request(llama: Path, expected: list[list[int]]) -> None:
    """A slot full of NaN, as a request leaves it whose numbers overflowed, gives the next one's tokens all the same."""
    loop = Loop(llama, slots=1)
    for cache in loop.executor._caches:
        loop.device.view(cache.address, cache.slot_shape, np.float32)[...] = np.nan
    loop.submit(0, PROMPTS[1])
    loop.client.run()
    assert loop.tokens() == [expected[1]]


def test_caches_that_do_not_fit_are_answered_with_how_many_slots_do(llama: Path) -> None:
    spec = Loop(llama).spec
    a_slot = MAX_LENGTH * spec.kv_bytes_per_token
    with pytest.raises(
        BadInput, match=f"3 slots of {a_slot} bytes .* 2 slots fit: load it with num_blocks=2"
    ):
        Loop(llama, limit=int(2.5 * a_slot))
    with pytest.raises(BadInput, match="not even one fits"):
        Loop(llama, limit=100)


def test_slots_begin_where_engines_take_tensors(llama: Path) -> None:
    spec = Loop(llama).spec
    odd = replace(spec, kv=(KVSpec(0, 1, 24, 24, 0, "float16"),))
    with pytest.raises(
        BadInput, match=r"slot of 50 positions takes 2400 bytes .* --max-length 48, a multiple of 16"
    ):
        check_slots(replace(odd, limits=Limits(1, BUDGET, 50, 50, 1)))
