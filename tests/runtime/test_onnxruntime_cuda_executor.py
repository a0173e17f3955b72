"""The CUDA executor's logic on the CPU provider: one staged copy, pools bound by address, logits on the host."""

from __future__ import annotations

import ctypes
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from model_repo.runtime.contract import KVSpec
from model_repo.runtime.engine import Engine
from model_repo.runtime.errors import BadInput
from model_repo.runtime.onnxruntime_cuda_executor import MAX_BINDINGS, OnnxRuntimeCudaExecutor, cuda_session
from model_repo.runtime.request import Request, SamplingParams
from tests.runtime.test_onnxruntime_executor import SPEC, VOCAB, expected_logits, step, write_decoder


@pytest.fixture
def executor(tmp_path: Path) -> OnnxRuntimeCudaExecutor:
    return on_cpu(write_decoder(tmp_path))


def on_cpu(folder: Path) -> OnnxRuntimeCudaExecutor:
    return OnnxRuntimeCudaExecutor(cuda_session(folder / "engine.onnx", device="cpu"), SPEC, 10, device="cpu")


def test_every_input_arrives_and_pools_stay_where_they_are(executor: OnnxRuntimeCudaExecutor) -> None:
    number, shape, memory = executor._pools["value_cache_1"]
    assert (number, shape) == (10, (10, 4, 1, 3))
    pool = np.ctypeslib.as_array(
        ctypes.cast(memory.data_ptr(), ctypes.POINTER(ctypes.c_uint16)), (10 * 4 * 3,)
    ).view(np.float16)
    assert not pool.any()
    for seed, (tokens, batch, blocks, selected) in enumerate(
        [(5, 2, 8, [1, 4]), (2, 1, 8, [0]), (5, 2, 8, [0, 3]), (8, 4, 16, [1, 3, 5, 7]), (5, 2, 8, [2])]
    ):
        pool[-1] = seed  # as attention does: straight into the pool
        given = step(tokens, batch, blocks, selected, seed)
        logits = executor.run(given)
        assert logits.shape == (len(selected), VOCAB)
        assert (logits == expected_logits(given, float(seed))).all()
    assert executor._pools["value_cache_1"][2].data_ptr() == memory.data_ptr()


def test_bindings_are_reused_by_shape_and_few(executor: OnnxRuntimeCudaExecutor) -> None:
    executor.run(step(4, 2, 8, [0]))
    (binding,) = executor._bindings.values()
    executor.run(step(4, 2, 8, [3], seed=1))
    assert list(executor._bindings.values()) == [binding]
    for tokens in range(2, MAX_BINDINGS + 12):
        executor.run(step(tokens, 1, 8, [0]))
    assert len(executor._bindings) == MAX_BINDINGS


def test_the_loop_runs_over_it(executor: OnnxRuntimeCudaExecutor) -> None:
    """Logits' largest column is what the token ids make it: the same one throughout."""
    sampling = SamplingParams(max_tokens=3, temperature=0.0)
    completions = Engine(executor, SPEC).generate([Request(str(i), (1, 2, 3), sampling) for i in range(3)])
    assert {completion.finish_reason for completion in completions} == {"length"}


def test_pools_that_numpy_has_no_type_for_are_bound_by_number(tmp_path: Path) -> None:
    spec = replace(SPEC, kv=(KVSpec(0, 1, 2, 3, 0, "bfloat16"),))
    session = cuda_session(write_decoder(tmp_path) / "engine.onnx", device="cpu")
    made = OnnxRuntimeCudaExecutor(session, spec, 10, device="cpu")
    number, shape, memory = made._pools["key_cache_0"]
    assert (number, shape, memory.tensor_size_in_bytes()) == (16, (10, 4, 1, 2), 10 * 4 * 2 * 2)


@pytest.mark.skipif("CUDAExecutionProvider" in ort.get_available_providers(), reason="the provider is here")
def test_without_the_provider_the_package_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="pip install onnxruntime-gpu"):
        cuda_session(write_decoder(tmp_path) / "engine.onnx")


def test_a_file_that_is_no_graph_is_refused(tmp_path: Path) -> None:
    (tmp_path / "engine.onnx").write_bytes(b"nothing")
    with pytest.raises(BadInput, match=r"does not load .*build the engine again"):
        cuda_session(tmp_path / "engine.onnx", device="cpu")
