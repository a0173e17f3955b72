"""PagedAttention: rotary embedding, writing of new keys and values, and attention through the block table.

The nodes' inputs are those of `slipway::PagedAttention` (plugins/README.md), in 16 bit, with pools of 16 bit, int8 or
E4M3; outputs are `output` and the pools, bound to the memory of the inputs.
"""

from __future__ import annotations

from . import names
from .form import Extent, PluginForm


class PagedAttentionForm(PluginForm):
    """See the module."""

    name = names.PAGED_ATTENTION
    operator = "paged_attention"

    def output_extents(self, name: str) -> list[Extent]:
        """[tokens, num_heads * value_dim]."""
        return [Extent("query", 0), Extent("value_cache", 3, factor=int(self.attributes.get("num_heads", 1)))]
