"""What a model checks before it serves, with stand-ins for tritonserver's side."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from model_repo.backends.requirements import check_requirement
from model_repo.runtime.errors import BadInput


def test_requirements_that_are_met() -> None:
    check_requirement("numpy>=1.26")
    check_requirement("numpy>=1")


def test_package_that_is_too_old() -> None:
    with pytest.raises(BadInput, match=r"at least 99\.1 is needed"):
        check_requirement("numpy>=99.1")


def test_package_that_is_missing() -> None:
    with pytest.raises(BadInput, match="no-such-package is missing"):
        check_requirement("no-such-package>=1")


def test_line_that_says_nothing() -> None:
    with pytest.raises(BadInput, match=r"name>=version"):
        check_requirement("numpy")


class StandInTensor:
    """A tensor that goes through memory as tritonserver's does; `stride` 0 is how numpy 2 is misread."""

    stride = 4

    def __init__(self, name: str, array: Any) -> None:
        self.array = array

    def to_dlpack(self) -> Any:
        return self.array

    @classmethod
    def from_dlpack(cls, name: str, capsule: Any) -> StandInTensor:
        return cls(name, np.lib.stride_tricks.as_strided(capsule, strides=(cls.stride,)))

    def as_numpy(self) -> Any:
        return self.array


@pytest.fixture
def tensors(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """`backends.tensors` over the stand-in."""
    backend = SimpleNamespace(Tensor=StandInTensor)
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", backend)
    monkeypatch.delitem(sys.modules, "model_repo.backends.tensors", raising=False)
    module = importlib.import_module("model_repo.backends.tensors")
    monkeypatch.delitem(sys.modules, "model_repo.backends.tensors")
    return module


def test_tensors_that_come_through_whole(tensors: ModuleType) -> None:
    tensors.check_round_trip()


def test_tensors_that_numpy_2_damages(tensors: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StandInTensor, "stride", 0)
    with pytest.raises(BadInput, match=r"\[1, 2, 3\] came back as \[1, 1, 1\].*numpy<2"):
        tensors.check_round_trip()
