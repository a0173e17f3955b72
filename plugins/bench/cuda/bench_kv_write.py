"""New keys and values to their slots: 64 MiB of them, with rotary embedding, to pools of 16 and of 8 bits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from .benchmark import Bench, Benchmark, Goal, Prepared
from .timing import Call

OPERATOR = "kv_write"
BLOCK_SIZE = 16
MAX_POSITIONS = 4096


def benchmarks(tiny: bool = False) -> Iterator[Benchmark]:
    """Prefill of many tokens, as bytes matter there."""
    tokens, kv_heads, size = (33, 2, 64) if tiny else (16384, 8, 128)
    goal = Goal("copy bandwidth", 0.85)
    for name, pool, rotary in (
        ("bf16, 64 MiB", torch.bfloat16, False),
        ("bf16, 64 MiB, rotary", torch.bfloat16, True),
        ("bf16 to e4m3 pools, 64 MiB, rotary", torch.float8_e4m3fn, True),
    ):
        yield Benchmark(
            OPERATOR,
            name,
            lambda bench, pool=pool, rotary=rotary: _prepare(bench, tokens, kv_heads, size, pool, rotary),  # type: ignore[misc]
            (goal,),
        )


def _prepare(
    bench: Bench, tokens: int, kv_heads: int, size: int, pool: torch.dtype, rotary: bool
) -> Prepared:
    new_bytes = 2 * tokens * kv_heads * size * 2
    bytes_moved = new_bytes + new_bytes // 2 * pool.itemsize + tokens * 4
    sets = [
        _tensors(bench, tokens, kv_heads, size, pool, rotary) for _ in range(bench.clock.sets(bytes_moved))
    ]
    calls = [bench.kernel(OPERATOR, tensors) for tensors in sets]
    if rotary:  # torch has nothing that does the same in one call
        return Prepared(calls, bytes_moved, 0)
    return Prepared(
        calls,
        bytes_moved,
        0,
        {
            "torch": lambda: [_index_copy(tensors) for tensors in sets],
            "torch.compile": lambda: [_index_copy(tensors, compiled=True) for tensors in sets],
        },
    )


def _tensors(
    bench: Bench, tokens: int, kv_heads: int, size: int, pool: torch.dtype, rotary: bool
) -> dict[str, Tensor]:
    num_blocks = -(-tokens // BLOCK_SIZE)
    order = torch.randperm(num_blocks * BLOCK_SIZE, device=bench.device)[:tokens]
    made = {
        "key": bench.randn(tokens, kv_heads, size),
        "value": bench.randn(tokens, kv_heads, size),
        "key_cache": bench.randn(num_blocks, BLOCK_SIZE, kv_heads, size, dtype=pool),
        "value_cache": bench.randn(num_blocks, BLOCK_SIZE, kv_heads, size, dtype=pool),
        "slot_mapping": order.int(),
    }
    if rotary:
        made["cos"] = bench.randn(MAX_POSITIONS, size // 2)
        made["sin"] = bench.randn(MAX_POSITIONS, size // 2)
        made["position_ids"] = bench.randint(0, MAX_POSITIONS, tokens, dtype=torch.int32)
    if pool == torch.float8_e4m3fn:
        made["key_scale"] = torch.full((kv_heads,), 0.01, device=bench.device)
        made["value_scale"] = torch.full((kv_heads,), 0.01, device=bench.device)
    return made


def _write(key: Tensor, value: Tensor, keys: Tensor, values: Tensor, slots: Tensor) -> None:
    keys.index_copy_(0, slots, key)
    values.index_copy_(0, slots, value)


def _index_copy(tensors: dict[str, Tensor], compiled: bool = False) -> Call:
    write: Any = torch.compile(_write, dynamic=False) if compiled else _write
    slots = tensors["slot_mapping"].long()
    pools = [tensors[name].flatten(0, 1) for name in ("key_cache", "value_cache")]
    return lambda: write(tensors["key"], tensors["value"], *pools, slots)
