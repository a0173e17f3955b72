"""FlashAttention: attention of packed sequences without a cache, for encoders, vision and prefill.

| input | shape |
| --- | --- |
| `query` | [tokens, num_heads * dim], or packed with key and value [tokens, (num_heads + 2 * kv_num_heads) * dim] |
| `key`, `value` | [tokens, kv_num_heads * dim], each its own dim; absent when packed |
| others | as the kernel has them (cuda/OPERATORS.md) |

`output` is [tokens, num_heads * value_dim]. Heads of a packed query are parts of its rows: nothing is copied.
"""

from __future__ import annotations

import dataclasses

from plugins.cuda.library import TensorAt

from . import names
from .form import Extent, PluginForm


class FlashAttentionForm(PluginForm):
    """See the module."""

    name = names.FLASH_ATTENTION
    operator = "flash_attention"
    own_attributes = ("num_heads", "kv_num_heads")

    @property
    def _heads(self) -> tuple[int, int]:
        return int(self.attributes["num_heads"]), int(self.attributes["kv_num_heads"])

    def output_extents(self, name: str) -> list[Extent]:
        """[tokens, num_heads * value_dim]."""
        heads, kv_heads = self._heads
        columns = (
            Extent("value", 1, heads, kv_heads)
            if "value" in self.inputs
            else Extent("query", 1, heads, heads + 2 * kv_heads)
        )
        return [Extent("query", 0), columns]

    def arrange(self, tensors: dict[str, TensorAt]) -> dict[str, TensorAt]:
        """Rows cut into heads: [tokens, heads, dim]."""
        heads, kv_heads = self._heads
        tensors = dict(tensors)
        query = tensors["query"]
        if "key" in tensors:
            parts = {
                "query": (query, heads),
                "key": (tensors["key"], kv_heads),
                "value": (tensors["value"], kv_heads),
            }
            tensors |= {
                name: _by_heads(rows, count, rows.shape[1] // count) for name, (rows, count) in parts.items()
            }
        else:
            dim = query.shape[1] // (heads + 2 * kv_heads)
            first = {"query": (0, heads), "key": (heads, kv_heads), "value": (heads + kv_heads, kv_heads)}
            tensors |= {
                name: _by_heads(query, count, dim, begin * dim) for name, (begin, count) in first.items()
            }
        output = tensors["output"]
        return tensors | {"output": _by_heads(output, heads, output.shape[1] // heads)}

    def _views(self) -> frozenset[str]:
        return frozenset({"key", "value"} if "key" not in self.inputs and "value" not in self.inputs else ())


def _by_heads(rows: TensorAt, heads: int, dim: int, column: int = 0) -> TensorAt:
    """Columns from `column` on of [tokens, columns] as [tokens, heads, dim]."""
    tokens, columns = rows.shape
    address = rows.address + column * rows.dtype.itemsize if rows.address else 0
    return dataclasses.replace(rows, shape=(tokens, heads, dim), strides=(columns, dim, 1), address=address)
