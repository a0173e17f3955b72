"""The host's memory as a device: order of work, capture, what misuse is answered with."""

from __future__ import annotations

import threading
from typing import get_args

import numpy as np
import pytest

from model_repo.runtime.device import ALIGNMENT, Device, OutOfMemory
from model_repo.runtime.errors import SlipwayError
from model_repo.runtime.host_device import HostDevice, Order


@pytest.mark.parametrize("order", get_args(Order))
def test_copies_are_done_in_order_before_the_event(order: Order) -> None:
    device: Device = HostDevice(order)
    first, second = device.allocate(64), device.allocate(64)
    assert first % ALIGNMENT == second % ALIGNMENT == 0
    given, back = device.staging(64), device.staging(64)
    given[:] = np.arange(64)
    device.upload(first, given)
    device.copy(second, first, 32)
    device.zero(second + 8, 8)
    device.download(back[:32], second)
    device.record().wait()
    assert back[:32].tolist() == [*range(8), *[0] * 8, *range(16, 32)]
    device.close()


def test_work_that_is_late_sees_what_the_host_wrote_since() -> None:
    device = HostDevice("when_awaited")
    address, given, back = device.allocate(4), device.staging(4), device.staging(4)
    given[:] = 1
    device.upload(address, given)
    device.download(back, address)
    event = device.record()
    given[:] = 2
    event.wait()
    assert back.tolist() == [2, 2, 2, 2]


def test_a_thread_works_while_the_host_goes_on() -> None:
    device = HostDevice("in_thread")
    gate, seen = threading.Event(), threading.Event()
    device.queue(lambda: (seen.set(), gate.wait())[0])
    event = device.record()
    assert seen.wait(30)
    gate.set()
    event.wait()
    device.close()


@pytest.mark.parametrize("order", get_args(Order))
def test_the_event_behind_a_failure_raises_it_and_the_next_does_not(order: Order) -> None:
    device = HostDevice(order)

    def fail() -> None:
        raise ValueError("what went wrong")

    device.queue(fail)
    first = device.record()
    second = device.record()
    with pytest.raises(SlipwayError, match=r"work on the device failed: ValueError.*what went wrong"):
        first.wait()
    second.wait()
    device.close()


def test_captured_work_is_not_done_until_it_is_launched() -> None:
    device = HostDevice()
    address, given, back = device.allocate(4), device.staging(4), device.staging(4)
    device.zero(address, 4)

    def work() -> None:
        device.upload(address, given)

    given[:] = 7
    captured = device.capture(work)
    device.download(back, address)
    assert back.tolist() == [0, 0, 0, 0]
    given[:] = 9
    captured.launch()
    device.download(back, address)
    assert back.tolist() == [9, 9, 9, 9]
    with pytest.raises(SlipwayError, match="being captured already"):
        device.capture(lambda: (device.capture(work), None)[1])


def test_the_limit_is_an_error_with_its_numbers() -> None:
    device = HostDevice(limit=1000)
    address = device.allocate(600)
    assert device.memory == (400, 1000)
    with pytest.raises(
        OutOfMemory, match="500 bytes of device memory were asked for and 400 are free"
    ) as raised:
        device.allocate(500)
    assert (raised.value.needed, raised.value.free) == (500, 400)
    device.free(address)
    device.free(device.allocate(1000))
    with pytest.raises(SlipwayError, match="not the address of an allocation"):
        device.free(address)


def test_misuse_is_an_error() -> None:
    device = HostDevice()
    address, given = device.allocate(16), device.staging(16)
    with pytest.raises(SlipwayError, match=r"16 bytes at .* do not lie in an allocation"):
        device.upload(address + 1, given)
    with pytest.raises(SlipwayError, match="do not lie in staging memory"):
        device.upload(address, np.zeros(16, np.uint8))
    with pytest.raises(SlipwayError, match="must be contiguous"):
        device.upload(address, given[::2])
    with pytest.raises(SlipwayError, match="17 bytes at"):
        device.zero(address, 17)
    assert device.view(address, (2, 2), np.int32).shape == (2, 2)
