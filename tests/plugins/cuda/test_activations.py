"""`gated_activation` and `activation`: the kernels under the emulator, the reference against torch."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from plugins.checks import gated_activation as checks
from plugins.cuda.case import Scale, relative_error
from plugins.cuda.emulated import Build, check
from plugins.reference.activations import Activation, activated, activation, gated_activation
from plugins.reference.elementwise import swiglu

OPERATORS = ("activation", "gated_activation")


@pytest.mark.parametrize(
    ("flavour", "scale", "seed"), [("plain", "small", 1), ("asan", "quick", 2), ("tsan", "quick", 3)]
)
def test_kernels_give_what_the_reference_gives(flavour: str, scale: str, seed: int) -> None:
    defines = (
        () if scale == "small" else ("SLIPWAY_ONLY_FLOAT16",)
    )  # quick cases have no other; compiles faster
    build = Build(flavour, OPERATORS, defines=defines)
    assert check(checks.cases(Scale(scale), seed), build, seed=seed) == {}


def test_the_reference_is_torchs_function() -> None:
    x = torch.linspace(-12, 12, 999)
    for kind, want in (
        (Activation.SILU, functional.silu(x)),
        (Activation.GELU_TANH, functional.gelu(x, approximate="tanh")),
        (Activation.GELU_ERF, functional.gelu(x)),
    ):
        assert relative_error(activated(x, kind), want) < 1e-6


def test_gate_is_the_first_half_and_bias_is_added_before() -> None:
    generator = torch.Generator().manual_seed(1)
    rows, bias = torch.randn(3, 16, generator=generator), torch.randn(16, generator=generator)
    assert torch.equal(gated_activation(rows, Activation.SILU), swiglu(rows))
    assert torch.equal(
        activation(rows, bias, Activation.GELU_ERF), activation(rows + bias, None, Activation.GELU_ERF)
    )
