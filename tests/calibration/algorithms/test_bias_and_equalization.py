"""Bias correction and cross-layer equalization, with torch's own layers as the judge."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from calibration.algorithms.bias_correction import corrected_bias
from calibration.algorithms.equalization import equalize
from calibration.schemes import Scheme, dequantize, quantize

from .layers import layer


def test_the_mean_output_is_the_float_layers() -> None:
    case = layer(12, 32)
    bias = np.random.default_rng(0).standard_normal(12).astype(np.float32)
    rounded = dequantize(quantize(case.weight, Scheme("int4", "tensor")))
    corrected = corrected_bias(case.weight, rounded, bias, case.statistics.mean)
    exact = (case.inputs.astype(np.float64) @ case.weight.T + bias).mean(axis=0)
    before = (case.inputs.astype(np.float64) @ rounded.T + bias).mean(axis=0)
    after = (case.inputs.astype(np.float64) @ rounded.T + corrected).mean(axis=0)
    assert np.abs(before - exact).max() > 0.05
    np.testing.assert_allclose(after, exact, atol=1e-5)


def test_a_convolution_as_rows_and_columns() -> None:
    """Means of its input channels, repeated over the kernel: exact where nothing lies beyond the border."""
    draw = torch.Generator().manual_seed(0)
    conv = torch.nn.Conv2d(3, 5, 3)
    inputs = torch.rand((4, 3, 9, 9), generator=draw) * 0 + torch.rand((1, 3, 1, 1), generator=draw)
    weight = conv.weight.detach().numpy()
    rounded = dequantize(quantize(weight, Scheme("int4", "tensor")))
    mean = np.repeat(inputs.mean(dim=(0, 2, 3)).numpy(), 9)
    with torch.no_grad():
        exact = conv(inputs).mean(dim=(0, 2, 3)).numpy()
        bias = corrected_bias(weight.reshape(5, -1), rounded.reshape(5, -1), conv.bias.numpy(), mean)
        conv.weight.copy_(torch.from_numpy(rounded))
        conv.bias.copy_(torch.from_numpy(bias))
        np.testing.assert_allclose(conv(inputs).mean(dim=(0, 2, 3)).numpy(), exact, atol=1e-5)


@pytest.mark.parametrize("groups", [1, 2, 8], ids=["dense", "grouped", "depthwise"])
@pytest.mark.parametrize("activation", [torch.nn.ReLU(), torch.nn.LeakyReLU(0.1), torch.nn.Identity()])
def test_equalized_convolutions_compute_the_same(groups: int, activation: torch.nn.Module) -> None:
    torch.manual_seed(groups)
    first, second = torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.Conv2d(8, 16, 3, groups=groups, padding=1)
    inputs = torch.randn(2, 3, 10, 10)
    with torch.no_grad():
        first.weight *= torch.tensor([10.0, 0.01, 1, 1, 5, 0.1, 1, 3]).reshape(-1, 1, 1, 1)
        exact = second(activation(first(inputs))).numpy()
        pair = equalize(first.weight.numpy(), first.bias.numpy(), second.weight.numpy(), groups)
        assert pair.bias is not None
        first.weight.copy_(torch.from_numpy(pair.first))
        first.bias.copy_(torch.from_numpy(pair.bias))
        second.weight.copy_(torch.from_numpy(pair.second))
        np.testing.assert_allclose(second(activation(first(inputs))).numpy(), exact, atol=1e-5)
    ranges = np.abs(pair.first).max(axis=(1, 2, 3))
    torch_second = second.weight.detach().numpy().reshape(groups, 16 // groups, 8 // groups, 3, 3)
    np.testing.assert_allclose(ranges, np.abs(torch_second).max(axis=(1, 3, 4)).reshape(-1), rtol=1e-5)


def test_equal_ranges_make_one_scale_for_all_channels_hurt_less() -> None:
    torch.manual_seed(0)
    first, second = torch.nn.Conv2d(3, 8, 3), torch.nn.Conv2d(8, 4, 3)
    inputs = torch.randn(2, 3, 10, 10)
    scheme = Scheme("int8", "tensor")
    with torch.no_grad():
        first.weight *= torch.tensor([30.0, 0.01, 1, 1, 5, 0.1, 1, 3]).reshape(-1, 1, 1, 1)
        second.weight /= torch.tensor([30.0, 0.01, 1, 1, 5, 0.1, 1, 3]).reshape(1, -1, 1, 1)
        exact = second(torch.relu(first(inputs)))
        pair = equalize(first.weight.numpy(), first.bias.numpy(), second.weight.numpy())
        errors = []
        for a, bias, b in (
            (first.weight.numpy(), first.bias.numpy(), second.weight.numpy()),
            (pair.first, pair.bias, pair.second),
        ):
            a, b = (torch.from_numpy(dequantize(quantize(part, scheme))) for part in (a, b))
            hidden = torch.relu(torch.nn.functional.conv2d(inputs, a, torch.from_numpy(bias)))
            errors.append(float((torch.nn.functional.conv2d(hidden, b, second.bias) - exact).square().mean()))
    assert errors[1] < 0.1 * errors[0]


def test_dead_channels_keep_their_factor_and_no_bias_stays_none() -> None:
    first, second = np.ones((3, 2, 1, 1), np.float32), np.ones((4, 3, 1, 1), np.float32) * 4
    first[0], second[:, 1] = 0, 0
    pair = equalize(first, None, second)
    np.testing.assert_allclose(pair.factors, [1, 1, 0.5])
    assert pair.bias is None
