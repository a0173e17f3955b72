"""`rms_norm` and `layer_norm`: the kernels under the emulator against the reference, the reference against torch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from plugins.checks import rms_norm as checks
from plugins.checks._rows import decided
from plugins.cuda.case import relative_error
from plugins.cuda.emulated import Build
from plugins.reference.norms import layer_norm, rms_norm
from plugins.reference.rows import quantize, row_scales
from tests.plugins.cuda.emulation import QUICK_UNDER_ASAN, dependent, wrong

OPERATORS = ("layer_norm", "rms_norm")


@QUICK_UNDER_ASAN
def test_kernels_give_what_the_reference_gives(flavour: str, scale: str, seed: int) -> None:
    assert wrong(checks, OPERATORS, flavour, scale, seed, half_suffices=True) == {}


def test_a_row_does_not_depend_on_the_others() -> None:
    assert dependent(checks, OPERATORS) == []


def test_the_sum_may_overwrite_an_input() -> None:
    """`input_skip_sum` at the address of `skip`: in the library, since a case's tensors lie apart."""
    from plugins.cuda.library import Library

    generator = torch.Generator().manual_seed(5)
    rows, skip = (torch.randn(5, 1160, generator=generator).half() for _ in range(2))
    weight, output = torch.ones(1160, dtype=torch.float16), torch.empty(5, 1160, dtype=torch.float16)
    result, total = rms_norm(rows, weight, skip=skip)
    tensors = {"input": rows, "skip": skip, "weight": weight, "output": output, "input_skip_sum": skip}
    Library(Build("plain", OPERATORS).library()).run("rms_norm", tensors, {"epsilon": 1e-6})
    assert torch.equal(skip, total.half())
    assert relative_error(output, result) < 1e-3


@pytest.mark.parametrize("weight_offset", [0.0, 1.0])
def test_the_reference_is_torchs_norm(weight_offset: float) -> None:
    generator = torch.Generator().manual_seed(6)
    rows, skip = (torch.randn(5, 72, generator=generator) * 3 + 2 for _ in range(2))
    weight, bias = (torch.randn(72, generator=generator) for _ in range(2))
    total = rows + skip
    scaled = weight + weight_offset
    for function, want in (
        (rms_norm, torch.nn.functional.rms_norm(total, (72,), scaled, 1e-3) + bias),
        (layer_norm, torch.nn.functional.layer_norm(total, (72,), scaled, bias, 1e-3)),
    ):
        got, added = function(rows, weight, skip=skip, bias=bias, epsilon=1e-3, weight_offset=weight_offset)
        assert relative_error(got, want) < 1e-6
        assert torch.equal(added, total)


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_quantization_rounds_to_the_nearest_code(dtype: torch.dtype) -> None:
    """Against a search among all codes; ties go to the even one, in int8 an even number, in E4M3 an even byte."""
    raw = torch.arange(-127, 128, dtype=torch.int8) if dtype == torch.int8 else torch.arange(0, 0x7F)
    codes = raw if dtype == torch.int8 else raw.to(torch.uint8).view(dtype)
    numbers = codes.double()
    drawn = torch.randn(500, generator=torch.Generator().manual_seed(0)) * 50
    values = torch.cat([numbers, (numbers[1:] + numbers[:-1]) / 2, drawn.double()])
    got = quantize(values[None].float(), torch.ones(1), dtype)[0]
    distance = (values[:, None].abs() if dtype != torch.int8 else values[:, None]) - numbers
    nearest = distance.abs().amin(dim=1)
    assert torch.equal((got.double() - values).abs(), nearest)
    tie = (distance.abs() == nearest[:, None]).sum(dim=1) > 1
    assert bool((got.view(torch.int8)[tie] % 2 == 0).all())


def test_rows_of_zeros_have_scale_zero_and_codes_zero() -> None:
    values = torch.tensor([[0.0, 0.0], [1.0, -2.0]])
    scales = row_scales(values, torch.int8)
    assert torch.equal(scales, torch.tensor([0.0, 2.0]) / 127)
    assert torch.equal(quantize(values, scales, torch.int8).int(), torch.tensor([[0, 0], [64, -127]]))


def test_results_between_two_codes_are_told() -> None:
    def told(values: list[float], dtype: torch.dtype) -> Tensor:
        return decided(torch.tensor([[*values, 100.0]]), torch.ones(1), dtype)[0, :-1]

    assert told([2.5, 2.50000001, 2.51, -0.5, 0.3], torch.int8).tolist() == [False, False, True, False, True]
    assert told([17.0, 17.1, 16.0], torch.float8_e4m3fn).tolist() == [False, True, True]
