"""The walking engine as executors see it: profiles, shapes, addresses; and what it would do on a GPU, without one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from model_repo.runtime.device_engine import DeviceTensor
from model_repo.runtime.errors import BadInput, SlipwayError
from plugins.graph_walk import engine as engine_module
from plugins.graph_walk.description import DTYPES, End, Graph, Node
from plugins.graph_walk.engine import WalkingEngine
from plugins.graph_walk.invented import TINY, invented
from plugins.graph_walk.spec import FEW, profiles
from plugins.graph_walk.standard import STANDARD
from tests.plugins.graph_walk.walking import CPU, walk

TOKENS, BATCH, BLOCKS = 6, 2, 3


@pytest.fixture(name="graph")
def tiny_graph() -> Graph:
    return invented(TINY, workers=4)


@pytest.fixture(name="walking")
def tiny_engine(graph: Graph) -> WalkingEngine:
    return WalkingEngine(graph, CPU, profiles=profiles(graph, FEW))


def step(graph: Graph) -> dict[str, Tensor]:
    """Two sequences of three new tokens each, and pools."""
    given = {
        "input_ids": torch.arange(5, 5 + TOKENS, dtype=torch.int32),
        "position_ids": torch.tensor([0, 1, 2] * 2, dtype=torch.int32),
        "cu_seqlens": torch.tensor([0, 3, 6], dtype=torch.int32),
        "past_lens": torch.zeros(BATCH, dtype=torch.int32),
        "block_table": torch.tensor([[1], [0]], dtype=torch.int32),
        "slot_mapping": torch.tensor([16, 17, 18, 0, 1, 2], dtype=torch.int32),
        "logits_indices": torch.tensor([2, 5], dtype=torch.int32),
    }
    pools = (end for end in graph.inputs if end.name not in given)
    return given | {end.name: torch.zeros(BLOCKS, 16, 2, 64, dtype=DTYPES[end.dtype]) for end in pools}


def bound(walking: WalkingEngine, given: dict[str, Tensor], outputs: dict[str, Tensor]) -> None:
    for name, tensor in given.items():
        walking.set_shape(name, tuple(tensor.shape))
    for name, tensor in (given | outputs).items():
        walking.set_address(name, tensor.data_ptr())


def test_it_says_what_it_has(walking: WalkingEngine) -> None:
    assert walking.profiles == ("decode", "prefill", "mixed")
    assert walking.tensors["block_table"] == DeviceTensor("block_table", "input", "int32", (None, None))
    assert walking.tensors["logits"] == DeviceTensor("logits", "output", "float32", (None, 199))
    pool = DeviceTensor("key_cache_out_1", "output", "float16", (None, None, 2, 64))
    assert walking.tensors["key_cache_out_1"] == pool
    layer = 64 * 512 + 256 * 64 + 64 * 192 + 96 * 64
    elements = 199 * 64 + 2 * layer + 5 * 64  # embedding, layers, norms; and two rotary tables
    assert (walking.workspace_bytes, walking.weight_bytes) == (0, 2 * elements + 4 * 2 * 64 * 32)


def test_shapes_outside_a_profile_are_refused_with_input_range_and_value(walking: WalkingEngine) -> None:
    walking.use_profile("decode", 0)
    walking.set_shape("input_ids", (8,))
    with pytest.raises(
        BadInput, match=r"'input_ids' is given the shape \[9\]; profile 'decode' takes \[1\] to \[8\]"
    ):
        walking.set_shape("input_ids", (9,))
    with pytest.raises(
        BadInput, match=r"'key_cache_0' is given the shape \[4, 16, 3, 64\]; .* takes \['num_blocks'"
    ):
        walking.set_shape("key_cache_0", (4, 16, 3, 64))
    with pytest.raises(BadInput, match=r"no input 'logits'; it has input_ids, "):
        walking.set_shape("logits", (1, 199))
    with pytest.raises(BadInput, match="no input or output 'x'"):
        walking.set_address("x", 1)
    with pytest.raises(BadInput, match="no profile 'any'; it has decode, prefill, mixed"):
        walking.use_profile("any", 0)
    with pytest.raises(
        BadInput, match=r"without a shape or an address: position_ids, .* logits, key_cache_out_0"
    ):
        walking.enqueue(0)


def test_a_profile_forgets_shapes(graph: Graph, walking: WalkingEngine) -> None:
    given, logits = step(graph), torch.zeros(2, 199)
    outputs = {"logits": logits} | {
        name.replace("_cache_", "_cache_out_"): tensor for name, tensor in given.items() if "cache" in name
    }
    walking.use_profile("mixed", 0)
    bound(walking, given, outputs)
    walking.enqueue(0)
    assert bool(logits.abs().sum() > 0)
    walking.use_profile("prefill", 0)
    with pytest.raises(BadInput, match="without a shape or an address: input_ids, "):
        walking.enqueue(0)


def test_pools_are_written_where_their_outputs_lie(graph: Graph, walking: WalkingEngine) -> None:
    """In place where both have one address; else the input stays as it was, and the output is its copy, written to."""
    walking.use_profile("mixed", 0)
    together, apart = torch.zeros(2, 199), torch.zeros(2, 199)
    given = step(graph)
    given["key_cache_0"][2] = 7.0
    before = {name: tensor.clone() for name, tensor in given.items()}
    outputs = {
        name.replace("_cache_", "_cache_out_"): torch.full_like(tensor, 9.0)
        for name, tensor in given.items()
        if "cache" in name
    }
    bound(walking, given, outputs | {"logits": apart})
    walking.enqueue(0)
    assert all(torch.equal(given[name], tensor) for name, tensor in before.items())
    in_place = {name: given[name.replace("_out_", "_")] for name in outputs}
    bound(walking, given, in_place | {"logits": together})
    walking.enqueue(0)
    assert torch.equal(together, apart)
    for name, pool in outputs.items():
        assert torch.equal(pool, in_place[name])
        assert bool(pool[0, :3].any())
    assert bool((outputs["key_cache_out_0"][2] == 7.0).all())


def test_work_is_queued_with_its_shapes_and_addresses(graph: Graph) -> None:
    """What a device does later does not see what was set since."""
    queued: list[Any] = []
    walking = WalkingEngine(graph, CPU, profiles=profiles(graph, FEW), queue=queued.append)
    walking.use_profile("mixed", 0)
    given, first, second = step(graph), torch.zeros(2, 199), torch.zeros(2, 199)
    pools = {name.replace("_cache_", "_cache_out_"): given[name] for name in given if "cache" in name}
    bound(walking, given, pools | {"logits": first})
    walking.enqueue(0)
    walking.set_address("logits", second.data_ptr())
    walking.set_shape("input_ids", (1,))
    queued.pop()()
    assert bool(first.any())
    assert not bool(second.any())


def test_what_fails_names_its_node() -> None:
    ends = (End("x", "float32", ("n",)), End("y", "float32", ("m",)))
    graph = Graph((Node("Add", ("x", "y"), ("z",), {}, "sum"),), ends, (End("z", "float32", ("n",)),), {})
    with pytest.raises(
        SlipwayError, match=r"Add \(node 'sum'\) failed: The size of tensor a \(2\) must match"
    ):
        walk(graph, {"x": np.zeros(2), "y": np.zeros(3)}, {"z": (2,)})


def test_plugins_need_kernels_on_a_gpu_and_int4gemm_everywhere(graph: Graph) -> None:
    with pytest.raises(
        BadInput, match=r"PagedAttention .* needs the library of kernels on a GPU: run `make plugins`"
    ):
        WalkingEngine(graph, torch.device("cuda"))
    packed = Node("Int4Gemm", ("x",), ("y",), {"input_names": "x"}, "", "slipway.tensorrt")
    end = End("x", "float16", (1, 8))
    with pytest.raises(
        BadInput, match=r"Int4Gemm .* is walked by its kernel only; give a library of kernels"
    ):
        WalkingEngine(Graph((packed,), (end,), (), {}), CPU)


# ------------------------------------------------------------------ a device that only knows shapes and types

META = torch.device("meta")


@pytest.fixture(autouse=True)
def addresses_without_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """On torch's device 'meta', where what waits for a number, or mixes devices, raises as it would on a GPU."""
    honest = engine_module.tensor_at

    def tensor_at(address: int, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        if device == META:
            return torch.empty(tuple(shape), dtype=dtype, device=META)
        return honest(address, shape, dtype, device)

    monkeypatch.setattr(engine_module, "tensor_at", tensor_at)


def pretended_step(graph: Graph, sizes: dict[str, int]) -> None:
    walking = WalkingEngine(graph, META, kernels=cast(Any, object()))
    for end in graph.inputs:
        walking.set_shape(
            end.name, tuple(size if isinstance(size, int) else sizes[size] for size in end.shape)
        )
    for address, name in enumerate(walking.tensors):
        walking.set_address(name, address // 2)
    walking.enqueue(0)


def test_a_decoders_step_does_not_wait_for_the_device(graph: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    def plugin(node: Node, *_: object) -> Any:
        def run(inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
            query, *others = inputs
            assert {tensor.device.type for tensor in inputs} == {"meta"}
            return query.new_empty(len(query), 4 * 64), others[0], others[1]

        return run

    monkeypatch.setattr(engine_module, "by_kernel", plugin)
    sizes = {
        "tokens": 4,
        "batch": 4,
        "batch + 1": 5,
        "selected": 4,
        "max_blocks": 4,
        "num_blocks": 8,
        "block_size": 16,
    }
    pretended_step(graph, sizes)


def test_what_shapes_are_made_of_stays_on_the_host() -> None:
    """As encoders have it: positions cut to the length, a mask widened by sizes, a range, a clip."""
    nodes = (
        Node("Shape", ("x",), ("n",), {"start": 1, "end": 2}),
        Node("Slice", ("places", "zero", "n", "one"), ("taken",)),
        Node("Gather", ("table", "taken"), ("rows",), {"axis": 0}),
        Node("Concat", ("one", "n"), ("sizes",), {"axis": 0}),
        Node("Expand", ("mask", "sizes"), ("wide",)),
        Node("Squeeze", ("n",), ("count",)),
        Node("Range", ("first", "count", "stride"), ("range",)),
        Node("Cast", ("range",), ("numbers",), {"to": 1}),
        Node("Add", ("rows", "wide"), ("sum",)),
        Node("Mul", ("sum", "numbers"), ("product",)),
        Node("Clip", ("product", "least"), ("y",)),
    )
    whole = {"zero": [0], "one": [1], "first": 0, "stride": 1, "places": [[0, 1, 2, 3]]}
    weights = {name: torch.tensor(value) for name, value in whole.items()}
    weights |= {"table": torch.zeros(9, 3), "mask": torch.zeros(1, 3), "least": torch.tensor(0.5)}
    graph = Graph(nodes, (End("x", "float32", ("b", "n")),), (End("y", "float32", ("b", "n", "c")),), weights)
    pretended_step(graph, {"b": 2, "n": 3})


def test_a_wait_for_the_device_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test before this one would see it: here the numbers of a sum are asked for."""
    graph = Graph(
        (Node("Abs", ("x",), ("y",)),), (End("x", "float32", ("n",)),), (End("y", "float32", ("n",)),), {}
    )
    monkeypatch.setitem(cast(dict[str, Any], STANDARD), "Abs", lambda node, x: x * x.sum().item())
    with pytest.raises(
        SlipwayError, match=r"Abs .* failed: Tensor.item\(\) cannot be called on meta tensors"
    ):
        pretended_step(graph, {"n": 3})
