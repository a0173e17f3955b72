"""From an encoder's hidden states to one embedding a text: pooling, dense layers, normalization."""

from __future__ import annotations

import pickle
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from model_repo.runtime.errors import BadInput
from pipeline.sources.base import DenseLayer, Pooling


class SentenceHead(nn.Module):
    """Pooling over the tokens that are not padding, then `dense`, then, with `normalize`, division by the L2 norm.

    Pooling: `mean`; `cls`, the first token; `lasttoken`; `max` of each element; `mean_sqrt_len`, the sum over the
    root of the number of tokens; `weightedmean`, where the n-th token counts n times.
    """

    def __init__(self, pooling: Pooling, dense: Sequence[nn.Module], normalize: bool) -> None:
        super().__init__()
        self.pooling = pooling
        self.dense = nn.ModuleList(dense)
        self.normalize = normalize

    def forward(self, hidden: Tensor, attention_mask: Tensor) -> Tensor:
        """hidden [batch, length, hidden], attention_mask int64 [batch, length]; returns [batch, width]."""
        pooled = self._pooled(hidden, attention_mask)
        for layer in self.dense:
            pooled = layer(pooled)
        if self.normalize:
            pooled = pooled / torch.linalg.vector_norm(pooled, dim=1, keepdim=True).clamp(min=1e-12)
        return pooled

    def _pooled(self, hidden: Tensor, attention_mask: Tensor) -> Tensor:
        if self.pooling == "cls":
            return hidden[:, 0]
        if self.pooling == "lasttoken":
            last = (attention_mask.sum(dim=1) - 1).clamp(min=0)
            return hidden.gather(1, last[:, None, None].expand(-1, 1, hidden.shape[-1])).squeeze(1)
        if self.pooling == "max":
            far = torch.finfo(hidden.dtype).min
            return hidden.masked_fill(attention_mask.unsqueeze(-1) == 0, far).amax(dim=1)
        weights = attention_mask.unsqueeze(-1).to(hidden.dtype)
        if self.pooling == "weightedmean":
            weights = weights * torch.arange(1, hidden.shape[1] + 1, dtype=hidden.dtype)[None, :, None]
        total = weights.sum(dim=1).clamp(min=1e-9)
        if self.pooling == "mean_sqrt_len":
            total = total.sqrt()
        return (hidden * weights).sum(dim=1) / total


def dense_modules(layers: Sequence[DenseLayer]) -> list[nn.Module]:
    """The layers with their weights, in float32. Raises BadInput when the weights do not fit."""
    return [_loaded(layer) for layer in layers]


def _loaded(layer: DenseLayer) -> nn.Module:
    linear = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias)
    try:
        if layer.weights.suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(layer.weights)
        else:
            state = torch.load(layer.weights, map_location="cpu", weights_only=True)
        linear.load_state_dict(
            {name.removeprefix("linear."): tensor.float() for name, tensor in state.items()}
        )
    except (RuntimeError, OSError, ValueError, AttributeError, EOFError, pickle.UnpicklingError) as error:
        text = " ".join(str(error).split())
        raise BadInput(f"{layer.weights} does not fit its config.json: {text:.300}") from error
    activation: nn.Module = getattr(nn, layer.activation)()
    return nn.Sequential(linear, activation).eval().requires_grad_(False)
