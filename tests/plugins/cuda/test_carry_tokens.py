"""`carry_tokens`: the kernel under the emulator against the reference, and the reference against indexing."""

from __future__ import annotations

import torch

from plugins.checks import carry_tokens as checks
from plugins.reference.carry_tokens import carry_tokens
from tests.plugins.cuda.emulation import SMALL_UNDER_ASAN, wrong

OPERATORS = ("carry_tokens",)


@SMALL_UNDER_ASAN
def test_the_kernel_gives_what_the_reference_gives(flavour: str, scale: str, seed: int) -> None:
    assert wrong(checks, OPERATORS, flavour, scale, seed) == {}


def test_places_without_a_row_stay_and_no_token_is_token_0() -> None:
    sampled = torch.tensor([7, -1, 9], dtype=torch.int32)
    source = torch.tensor([-1, 2, 0, 1, 3, 2, -5], dtype=torch.int32)
    input_ids = torch.tensor([10, 11, 12, 13, 14, 15, 16], dtype=torch.int32)
    assert carry_tokens(sampled, source, input_ids).tolist() == [10, 9, 7, 0, 14, 9, 16]
    assert input_ids.tolist() == [10, 11, 12, 13, 14, 15, 16]
