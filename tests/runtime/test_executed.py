"""What a machine lacks for an engine is said before anything is loaded."""

from __future__ import annotations

import ctypes.util
import re
from pathlib import Path

import pytest

from model_repo.runtime.contract import EngineSpec, KVSpec, Limits
from model_repo.runtime.errors import BadInput
from model_repo.runtime.executed import ON_CPU, ON_GPU, check_machine, check_on_cpu
from model_repo.runtime.executors import decoder_executor
from model_repo.runtime.tensor_session import tensor_session

HAS_DRIVER = ctypes.util.find_library("cuda") is not None


def spec(target: str) -> EngineSpec:
    return EngineSpec(
        kind="decoder",
        name="tiny",
        target=target,
        precision="fp16",
        graph="engine",
        plugin=None,
        vocab_size=8,
        max_length=32,
        kv=(KVSpec(0, 1, 8, 8, 0, "float16"),),
        limits=Limits(2, 8, 32, 16, 4),
    )


@pytest.mark.parametrize("target", ON_GPU)
def test_without_a_driver_the_target_and_what_to_do_are_named(target: str) -> None:
    words = f"the engine x is of target '{target}', whose engines run on an NVIDIA GPU, and no driver is here .*no-such"
    with pytest.raises(BadInput, match=words):
        check_machine(target, "the engine x", driver="libno-such-driver.so")


@pytest.mark.skipif(HAS_DRIVER, reason="a GPU's driver is here")
@pytest.mark.parametrize("target", ON_GPU)
def test_loading_says_so_first(target: str, tmp_path: Path) -> None:
    for load in (
        lambda: decoder_executor(tmp_path, spec(target), 4, 1),
        lambda: tensor_session(tmp_path, spec(target), 1),
    ):
        with pytest.raises(BadInput, match=re.escape(f"{tmp_path / 'engine'} is of target {target!r}")):
            load()


def test_a_target_that_nobody_runs_is_told_from_those_that_are() -> None:
    with pytest.raises(BadInput, match=r"does not run; it has onnxruntime, onnxruntime-cuda, tensorrt"):
        check_machine("openvino", "the engine x")
    for target in ON_CPU:
        check_machine(target, "the engine x", driver="libno-such-driver.so")


def test_what_is_for_a_cpu_refuses_the_others(tmp_path: Path) -> None:
    check_on_cpu(tmp_path, spec("onnxruntime"), "evaluated")
    with pytest.raises(BadInput, match="engines are evaluated on a CPU only"):
        check_on_cpu(tmp_path, spec("tensorrt"), "evaluated")
