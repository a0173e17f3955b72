"""The kernels on a GPU, where there is one: the quick cases. `make gpu-check` does much more."""

from __future__ import annotations

import importlib

import pytest
import torch

from plugins.cuda.build import build
from plugins.cuda.case import Scale
from plugins.cuda.check_processes import modules_of_checks
from plugins.cuda.execution import Execution
from plugins.cuda.library import Library
from plugins.cuda.nvcc import machine_architecture
from tests.plugins.cuda.conftest import needs_nvcc


@pytest.fixture(scope="module")
def execution() -> Execution:
    chip = machine_architecture(*torch.cuda.get_device_capability())
    return Execution(Library(build((chip,)).library), torch.device("cuda"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device here")
@needs_nvcc
@pytest.mark.parametrize("module", modules_of_checks())
def test_quick_cases(execution: Execution, module: str) -> None:
    major, minor = torch.cuda.get_device_capability()
    cases = importlib.import_module(module).cases(Scale.QUICK, 1)
    fitting = [case for case in cases if case.least_compute_capability <= 10 * major + minor]
    reports = [execution.check(case, repetitions=5) for case in fitting]
    assert {report.case: report.problems for report in reports if report.problems} == {}
