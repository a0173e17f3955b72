"""The torch operator `slipway::expert_linear`: schema, shape function and body. The export traces it."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.library.custom_op("slipway::expert_linear", mutates_args=())
def expert_linear(rows: Tensor, weight: Tensor, expert_ids: Tensor, transposed: bool) -> Tensor:
    """Each row times its expert's matrix; see `plugins.schemas.EXPERT_LINEAR`.

    rows [rows, in], weight [experts, out, in] (transposed: [experts, in, out]), expert_ids int32 [rows].
    Returns [rows, out] in the dtype of `rows`. One product an expert: `plugins.reference.expert_linear` is the
    definition, row by row.
    """
    result = rows.new_empty(rows.shape[0], weight.shape[2 if transposed else 1])
    for expert in range(weight.shape[0]):
        own = expert_ids == expert
        result[own] = rows[own] @ (weight[expert] if transposed else weight[expert].T)
    return result


@expert_linear.register_fake
def _expert_linear_shape(rows: Tensor, weight: Tensor, expert_ids: Tensor, transposed: bool) -> Tensor:
    return rows.new_empty(rows.shape[0], weight.shape[2 if transposed else 1])
