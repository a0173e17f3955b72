"""What `slipway::ExpertLinear` means, in float32: one row after another."""

from __future__ import annotations

import torch
from torch import Tensor


def expert_linear(rows: Tensor, weight: Tensor, expert_ids: Tensor, *, transposed: bool) -> Tensor:
    """Row r of the result is row r of `rows` times the matrix of expert `expert_ids[r]`.

    rows: [rows, in]. weight: [experts, out, in], or [experts, in, out] when transposed. expert_ids: [rows], each in
    0 to experts - 1. Returns float32 [rows, out]. (Mixture of experts: Shazeer et al. 2017,
    https://arxiv.org/abs/1701.06538.)
    """
    out = weight.shape[2] if transposed else weight.shape[1]
    result = torch.empty(rows.shape[0], out, dtype=torch.float32, device=rows.device)
    for row, expert in enumerate(expert_ids.tolist()):
        matrix = weight[expert].float()
        result[row] = rows[row].float() @ (matrix if transposed else matrix.T)
    return result
