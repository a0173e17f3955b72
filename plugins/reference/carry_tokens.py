"""What `carry_tokens` means: tokens of the last step in the places of the next one."""

from __future__ import annotations

from torch import Tensor


def carry_tokens(sampled: Tensor, source: Tensor, input_ids: Tensor) -> Tensor:
    """input_ids[t] = max(sampled[source[t]], 0) where source[t] is a row of `sampled`; a copy.

    All int32: sampled [rows], source and input_ids [tokens].
    """
    carried = input_ids.clone()
    for place, row in enumerate(source.tolist()):
        if 0 <= row < len(sampled):
            carried[place] = max(int(sampled[row]), 0)
    return carried
