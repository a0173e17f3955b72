"""The copy of pools that are not bound in place: by which package, with which arguments. No device is here."""

from __future__ import annotations

from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from model_repo.runtime.errors import BadInput, SlipwayError
from plugins.tensorrt import device


@pytest.fixture
def packages(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Modules that can be imported; none at first."""
    there: dict[str, Any] = {}

    def find(name: str) -> Any:
        if name not in there:
            raise ImportError(name)
        return there[name]

    monkeypatch.setattr(device, "importlib", SimpleNamespace(import_module=find))
    return there


def test_cuda_python_copies_in_the_order_of_the_stream(packages: dict[str, Any]) -> None:
    asked: list[tuple[int, ...]] = []
    driver = SimpleNamespace(cuMemcpyDtoDAsync=lambda *given: (asked.append(given), (0,))[1])
    packages |= {"cuda.bindings.driver": driver, "pycuda.driver": ModuleType("unused")}
    device.copy(0x1000, 0x2000, 64, 7)
    assert asked == [(0x1000, 0x2000, 64, 7)]


def test_a_driver_that_refuses_is_an_error(packages: dict[str, Any]) -> None:
    packages["cuda.bindings.driver"] = SimpleNamespace(cuMemcpyDtoDAsync=lambda *_: (700,))
    with pytest.raises(SlipwayError, match="does not copy 64 bytes from 0x2000 to 0x1000: 700"):
        device.copy(0x1000, 0x2000, 64, 7)


def test_pycuda_waits_before_and_after(packages: dict[str, Any]) -> None:
    done: list[Any] = []
    packages["pycuda.driver"] = SimpleNamespace(
        Context=SimpleNamespace(synchronize=lambda: done.append("waited")),
        memcpy_dtod=lambda *given: done.append(given),
    )
    device.copy(0x1000, 0x2000, 64, 7)
    assert done == ["waited", (0x1000, 0x2000, 64), "waited"]


def test_without_either_it_says_what_to_install(packages: dict[str, Any]) -> None:
    with pytest.raises(
        BadInput, match="need cuda-python or pycuda where pools are not bound in place: pip install"
    ):
        device.copy(0x1000, 0x2000, 64, 7)
