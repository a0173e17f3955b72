"""Steps on ONNX Runtime: every contract input arrives, pools are bound once and never copied."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model_repo.runtime.contract import (
    STEP_INPUTS,
    EngineSpec,
    KVSpec,
    Limits,
    StepTensors,
    decoder_inputs,
    key_cache,
    value_cache,
)
from model_repo.runtime.engine import Engine
from model_repo.runtime.errors import BadInput
from model_repo.runtime.onnxruntime_executor import MAX_BINDINGS, OnnxRuntimeExecutor
from model_repo.runtime.request import Request, SamplingParams
from tests.runtime.graphs import save

onnx = pytest.importorskip("onnx", reason="graphs are written with the package onnx")

VOCAB = 8
KV = (KVSpec(0, 1, 2, 3, 0, "float32"), KVSpec(0, 1, 2, 3, 0, "float16"))
SPEC = EngineSpec(
    kind="decoder",
    name="sums",
    target="onnxruntime",
    precision="fp32",
    graph="engine.onnx",
    plugin=None,
    vocab_size=VOCAB,
    max_length=32,
    kv=KV,
    limits=Limits(max_batch=4, token_budget=8, max_length=32, block_size=4, num_blocks=10),
)


def write_decoder(folder: Path) -> Path:
    """A graph whose logits row r is [row, id, position, sum cu, sum past, sum table, slot, pool sums of slot 0].

    The last column adds up element 0 of all pools, so that a write to a pool's memory shows.
    """
    types = {"int32": onnx.TensorProto.INT32, "float32": onnx.TensorProto.FLOAT,
             "float16": onnx.TensorProto.FLOAT16}  # fmt: skip
    inputs = [
        onnx.helper.make_tensor_value_info(spec.name, types[spec.dtype], list(spec.shape))
        for spec in decoder_inputs(KV)
    ]
    make = onnx.helper.make_node
    nodes = [make("Cast", ["logits_indices"], ["rows"], to=types["float32"])]
    columns = ["rows"]
    for name in ("input_ids", "position_ids", "slot_mapping"):
        nodes += [
            make("Gather", [name, "logits_indices"], [f"{name}_rows"]),
            make("Cast", [f"{name}_rows"], [f"{name}_column"], to=types["float32"]),
        ]
        columns.append(f"{name}_column")
    for name in ("cu_seqlens", "past_lens", "block_table"):
        nodes += [
            make("Cast", [name], [f"{name}_float"], to=types["float32"]),
            make("ReduceSum", [f"{name}_float"], [f"{name}_sum"], keepdims=0),
            make("Sub", ["rows", "rows"], [f"{name}_zero"]),
            make("Add", [f"{name}_zero", f"{name}_sum"], [f"{name}_column"]),
        ]
        columns.append(f"{name}_column")
    sums = []
    for layer in range(len(KV)):
        for name in (key_cache(layer), value_cache(layer)):
            nodes += [
                make("Cast", [name], [f"{name}_float"], to=types["float32"]),
                make("ReduceSum", [f"{name}_float"], [f"{name}_sum"], keepdims=0),
            ]
            sums.append(f"{name}_sum")
    nodes += [
        make("Sum", sums, ["pool_sum"]),
        make("Sub", ["rows", "rows"], ["pool_zero"]),
        make("Add", ["pool_zero", "pool_sum"], ["pool_column"]),
    ]
    columns.append("pool_column")
    axis = onnx.helper.make_node("Constant", [], ["axis"], value_ints=[1])
    nodes.insert(0, axis)
    nodes += [make("Unsqueeze", [column, "axis"], [f"{column}_2"]) for column in columns]
    nodes.append(make("Concat", [f"{column}_2" for column in columns], ["logits"], axis=1))
    logits = onnx.helper.make_tensor_value_info("logits", types["float32"], ["selected", VOCAB])
    save(folder, "sums", nodes, inputs, [logits])
    return folder


def step(tokens: int, batch: int, blocks: int, selected: list[int], seed: int = 0) -> StepTensors:
    """Random tensors of these sizes; the executor does not look at what they mean."""
    generator = np.random.default_rng(seed)

    def ints(*shape: int) -> Any:
        return generator.integers(-1, 50, shape).astype(np.int32)

    return StepTensors(ints(tokens), ints(tokens), ints(batch + 1), ints(batch), ints(batch, blocks),
                       ints(tokens), np.array(selected, np.int32))  # fmt: skip


def expected_logits(tensors: StepTensors, pool_sum: float) -> Any:
    rows = tensors.logits_indices
    sums = [tensors.cu_seqlens.sum(), tensors.past_lens.sum(), tensors.block_table.sum()]
    columns = [rows, tensors.input_ids[rows], tensors.position_ids[rows], tensors.slot_mapping[rows]]
    constants = [np.full(len(rows), value) for value in (*sums, pool_sum)]
    return np.stack([*columns, *constants], axis=1).astype(np.float32)


@pytest.fixture
def executor(tmp_path: Path) -> OnnxRuntimeExecutor:
    return OnnxRuntimeExecutor(write_decoder(tmp_path), SPEC, num_blocks=10, threads=1)


def test_every_input_of_the_contract_reaches_the_graph(executor: OnnxRuntimeExecutor) -> None:
    assert executor._graph_inputs == {spec.name for spec in decoder_inputs(KV)}
    assert len(STEP_INPUTS) + 2 * len(KV) == len(executor._graph_inputs)
    for seed, (tokens, batch, blocks, selected) in enumerate(
        [(5, 2, 8, [1, 4]), (2, 1, 8, [0]), (5, 2, 8, [0, 3]), (8, 4, 16, [1, 3, 5, 7]), (5, 2, 8, [2])]
    ):
        tensors = step(tokens, batch, blocks, selected, seed)
        logits = executor.run(tensors)
        assert logits.dtype == np.float32
        assert (logits == expected_logits(tensors, 0.0)).all()


def test_pools_are_the_memory_that_the_graph_reads_in_every_step(executor: OnnxRuntimeExecutor) -> None:
    arrays = list(executor._pool_arrays.values())
    assert [array.shape for array in arrays] == [(10, 4, 1, 2), (10, 4, 1, 3)] * 2
    assert [array.dtype for array in arrays] == [np.float32] * 2 + [np.float16] * 2
    assert sum(pool.nbytes for pool in executor._pool_arrays.values()) == 10 * 4 * 5 * 4 + 10 * 4 * 5 * 2
    names = [name(layer) for layer in range(2) for name in (key_cache, value_cache)]
    addresses = {name: executor._pools[name].data_ptr() for name in names}
    assert list(addresses.values()) == [array.ctypes.data for array in arrays]
    total = 0.0
    for shape, array in zip([(4, 1), (5, 2), (4, 1), (6, 3)], arrays, strict=True):
        array[9, 3] += 2.0  # as the attention operator writes: straight into the pool
        total += 2.0 * array.shape[3]
        tensors = step(shape[0], shape[1], 8, [0])
        assert executor.run(tensors)[0, -1] == total
    assert {name: executor._pools[name].data_ptr() for name in names} == addresses


def test_bindings_are_reused_by_shape_and_few(executor: OnnxRuntimeExecutor) -> None:
    executor.run(step(4, 2, 8, [0]))
    (binding,) = executor._bindings.values()
    buffers = {name: array.ctypes.data for name, array in binding.inputs.items()}
    executor.run(step(4, 2, 8, [3], seed=1))
    executor.run(step(4, 2, 8, [2], seed=2))
    assert list(executor._bindings.values()) == [binding]
    assert {name: array.ctypes.data for name, array in binding.inputs.items()} == buffers
    for tokens in range(2, MAX_BINDINGS + 12):
        executor.run(step(tokens, 1, 8, [0]))
    assert len(executor._bindings) == MAX_BINDINGS


def test_an_engine_on_the_graph_runs_requests(tmp_path: Path) -> None:
    """The largest column wins: with few tokens that is decided by the inputs that the test knows."""
    executor = OnnxRuntimeExecutor(write_decoder(tmp_path), SPEC, num_blocks=10, threads=1)
    executor._pool_arrays["key_cache_0"][0, 0, 0, 0] = 1e6
    engine = Engine(executor, SPEC)
    sampling = SamplingParams(max_tokens=3, temperature=0.0)
    completions = engine.generate([Request(str(i), (1, 2, 3), sampling) for i in range(3)])
    assert [completion.token_ids for completion in completions] == [(7, 7, 7)] * 3


def test_a_failing_graph_ends_the_request_and_not_the_loop(tmp_path: Path) -> None:
    executor = OnnxRuntimeExecutor(write_decoder(tmp_path), SPEC, num_blocks=10, threads=1)
    engine = Engine(executor, SPEC)
    run, failing = executor.run, [True]

    def out_of_range(tensors: StepTensors) -> Any:
        rows = np.array([99], np.int32) if failing.pop() else tensors.logits_indices
        failing.append(False)
        return run(StepTensors(**{**vars(tensors), "logits_indices": rows}))

    executor.run = out_of_range  # type: ignore[method-assign, assignment]
    sampling = SamplingParams(max_tokens=2, temperature=0.0)
    failed = engine.generate([Request("a", (1, 2), sampling)])[0]
    assert failed.finish_reason == "error"
    assert "99" in (failed.error or "")
    assert engine.generate([Request("b", (1, 2), sampling)])[0].finish_reason == "length"


def test_pools_of_a_type_without_numpy_are_refused(tmp_path: Path) -> None:
    spec = EngineSpec(**{**vars(SPEC), "kv": (KVSpec(0, 1, 2, 2, 0, "bfloat16"),)})
    with pytest.raises(BadInput, match=r"bfloat16.*float32, float16"):
        OnnxRuntimeExecutor(write_decoder(tmp_path), spec, num_blocks=10, threads=1)
