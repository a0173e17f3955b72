"""`gated_activation` and `activation`: the kernels under the emulator, the reference against torch."""

from __future__ import annotations

import torch
from torch.nn import functional

from plugins.checks import gated_activation as checks
from plugins.cuda.case import relative_error
from plugins.reference.activations import Activation, activated, activation, gated_activation
from plugins.reference.elementwise import swiglu
from tests.plugins.cuda.emulation import QUICK_UNDER_ASAN, wrong

OPERATORS = ("activation", "gated_activation")


@QUICK_UNDER_ASAN
def test_kernels_give_what_the_reference_gives(flavour: str, scale: str, seed: int) -> None:
    assert wrong(checks, OPERATORS, flavour, scale, seed, half_suffices=True) == {}


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
