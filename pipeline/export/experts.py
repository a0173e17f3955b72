"""How mixtures of experts get in: a function for transformers' experts interface, one operator a linear layer.

transformers' own forms do not suit a graph: the eager one loops over the experts that were hit, `batched_mm` gathers
a copy of the weights for each token, and computing every expert on every token costs experts / top_k times the
arithmetic. Here each token is repeated once for each of its experts, and `slipway::expert_linear` multiplies each row
with the matrix of its expert: the cost follows the chosen experts, and weights stay where they are.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.integrations.moe import ExpertsInterface

import plugins.expert_ops  # noqa: F401  registers torch.ops.slipway.expert_linear

EXPERTS = "slipway_experts"


def prepare_experts(model: PreTrainedModel) -> None:
    """Lets the model's experts, if it has any, be computed by the operator."""
    if model._can_set_experts_implementation():
        model.set_experts_implementation(EXPERTS)


def _experts(module: nn.Module, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """transformers' experts function: hidden_states [tokens, hidden], the other two [tokens, top_k].

    Returns [tokens, hidden]: the sum of each token's experts, weighted. Attributes of `module` are those that
    transformers' `use_experts_implementation` sets: has_gate, has_bias, is_transposed, has_post_expert_norm.
    """
    tokens, top_k = top_k_index.shape
    expert_ids = top_k_index.reshape(-1).to(torch.int32)
    rows = hidden_states.unsqueeze(1).expand(-1, top_k, -1).reshape(-1, hidden_states.shape[-1])
    if module.has_gate:
        rows = module._apply_gate(_linear(module, "gate_up_proj", rows, expert_ids))  # type: ignore[operator]
    else:
        rows = module.act_fn(_linear(module, "up_proj", rows, expert_ids))  # type: ignore[operator]
    rows = _linear(module, "down_proj", rows, expert_ids)
    if module.has_post_expert_norm:
        rows = module.post_expert_norm(rows)  # type: ignore[operator]
    weighted = rows * top_k_weights.reshape(-1, 1).to(rows.dtype)
    return weighted.view(tokens, top_k, -1).sum(1).to(hidden_states.dtype)


def _linear(module: nn.Module, name: str, rows: Tensor, expert_ids: Tensor) -> Tensor:
    """The layer `name` of each row's expert, with its bias."""
    result: Tensor = torch.ops.slipway.expert_linear(
        rows, getattr(module, name), expert_ids, module.is_transposed
    )
    if module.has_bias:
        result = result + getattr(module, f"{name}_bias").index_select(0, expert_ids)
    return result


ExpertsInterface.register(EXPERTS, _experts)
