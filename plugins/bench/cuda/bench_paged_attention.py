"""Attention through a block table: decode, a long context alone, and a step with a chunk of a prompt in it.

Layer of 32 query and 8 key heads of 128, blocks of 16 tokens in random order. torch's baseline has an easier task: keys
and values of each sequence lie contiguous. FlashInfer reads the same pools.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .benchmark import Bench, Benchmark, Goal, Prepared
from .timing import Call

OPERATOR = "paged_attention"
PLAN = "attention_plan"
DECODE = "decode, bf16, 64 x 4096"


@dataclass(frozen=True)
class Step:
    """(tokens in the cache, new tokens) of each sequence, and the layer."""

    sequences: tuple[tuple[int, int], ...]
    heads: int = 32
    kv_heads: int = 8
    head_dim: int = 128
    block_size: int = 16
    pool: torch.dtype = torch.bfloat16
    writes: bool = False

    @property
    def tokens(self) -> int:
        """New tokens of all sequences."""
        return sum(new for _, new in self.sequences)

    @property
    def blocks(self) -> list[int]:
        """Blocks of each sequence."""
        return [-(-(past + new) // self.block_size) for past, new in self.sequences]

    @property
    def bytes_moved(self) -> int:
        """Keys and values once, queries in and results out, and what is written."""
        row = self.kv_heads * self.head_dim * self.pool.itemsize
        cached = sum(past + new for past, new in self.sequences)
        queries = 2 * self.tokens * self.heads * self.head_dim * 2
        written = self.tokens * self.kv_heads * self.head_dim * 2 * 2 + 2 * self.tokens * row
        return 2 * cached * row + queries + (written if self.writes else 0)

    @property
    def operations(self) -> int:
        """Of the two products over the visible keys."""
        visible = sum(new * past + new * (new + 1) // 2 for past, new in self.sequences)
        return 4 * visible * self.heads * self.head_dim


def benchmarks(tiny: bool = False) -> Iterator[Benchmark]:
    """The cases of the goals."""
    many, long, few = (5, 90, 3) if tiny else (64, 4096, 60)
    alone, past, chunk = (300, 40, 20) if tiny else (131072, 2048, 512)
    layer = (4, 2, 64) if tiny else (32, 8, 128)
    decode = ((long - 1, 1),) * many
    yield _benchmark(
        DECODE, Step(decode, *layer), Goal("copy bandwidth", 0.88), Goal("ahead of", 1.0, "FlashInfer")
    )
    yield _benchmark(
        "decode, e4m3 pools, 64 x 4096",
        Step(decode, *layer, pool=torch.float8_e4m3fn),
        Goal("times faster than", 1.8, DECODE),
    )
    yield _benchmark("decode, bf16, 1 x 128k", Step(((alone - 1, 1),), *layer), Goal("copy bandwidth", 0.8))
    mixed = ((past - 1, 1),) * few + ((past, chunk),)
    yield _benchmark(
        "60 decodes at 2048, a chunk of 512 at 2048", Step(mixed, *layer, writes=True), Goal("floors", 1.15)
    )


def _benchmark(case: str, step: Step, *goals: Goal) -> Benchmark:
    return Benchmark(OPERATOR, case, lambda bench: _prepare(bench, step), goals)


def _prepare(bench: Bench, step: Step) -> Prepared:
    sets = [_tensors(bench, step) for _ in range(bench.clock.sets(step.bytes_moved))]
    for tensors in sets:
        tensors["attention_metadata"] = _plan(bench, step, tensors)
    attributes = {"num_heads": step.heads, "kv_num_heads": step.kv_heads}
    calls = [bench.kernel(OPERATOR, tensors, attributes) for tensors in sets]
    baselines: dict[str, Callable[[], Sequence[Call]]] = {}
    if step.pool == torch.bfloat16:
        baselines["FlashInfer"] = lambda: [_flashinfer(bench, step, tensors) for tensors in sets]
        if len(set(step.sequences)) == 1 and step.sequences[0][1] == 1:
            baselines["torch, contiguous"] = lambda: [_torch(bench, step) for _ in sets]
    return Prepared(calls, step.bytes_moved, step.operations, baselines)


def _tensors(bench: Bench, step: Step) -> dict[str, Tensor]:
    blocks = step.blocks
    order = torch.randperm(sum(blocks), device=bench.device).int()
    table = torch.full((len(blocks), max(blocks)), -1, dtype=torch.int32, device=bench.device)
    parts = torch.split(order, blocks)
    for row, part in enumerate(parts):
        table[row, : len(part)] = part
    starts = [0]
    for _, new in step.sequences:
        starts.append(starts[-1] + new)
    pool = (sum(blocks), step.block_size, step.kv_heads, step.head_dim)
    made = {
        "query": bench.randn(step.tokens, step.heads * step.head_dim),
        "key_cache": bench.randn(*pool, dtype=step.pool),
        "value_cache": bench.randn(*pool, dtype=step.pool),
        "cumulative_sequence_length": torch.tensor(starts, dtype=torch.int32, device=bench.device),
        "past_seqlens": torch.tensor([p for p, _ in step.sequences], dtype=torch.int32, device=bench.device),
        "block_table": table,
        "output": bench.randn(step.tokens, step.heads * step.head_dim),
    }
    if step.pool.itemsize == 1:
        made["k_scale"] = torch.ones(step.kv_heads, device=bench.device)
        made["v_scale"] = torch.ones(step.kv_heads, device=bench.device)
    if step.writes:
        columns = step.kv_heads * step.head_dim
        made["key"], made["value"] = (bench.randn(step.tokens, columns) for _ in range(2))
        made["slot_mapping"] = _slots(step, parts).to(bench.device)
    return made


def _plan(bench: Bench, step: Step, tensors: Mapping[str, Tensor]) -> Tensor:
    """The step's work list, made once for all layers and so no part of what is measured."""
    given = {name: tensors[name] for name in ("cumulative_sequence_length", "past_seqlens")}
    attributes = {
        "tokens": step.tokens,
        "num_heads": step.heads,
        "kv_num_heads": step.kv_heads,
        "max_length": tensors["block_table"].shape[1] * step.block_size,
        "pool_tokens": tensors["key_cache"].shape[0] * step.block_size,
    }
    empty = torch.empty(0, dtype=torch.int32, device=bench.device)
    needed = bench.library.workspace_bytes(PLAN, {**given, "attention_metadata": empty}, attributes)
    metadata = torch.empty(-(-needed // 4), dtype=torch.int32, device=bench.device)
    bench.kernel(PLAN, {**given, "attention_metadata": metadata}, attributes)()
    return metadata


def _slots(step: Step, parts: Sequence[Tensor]) -> Tensor:
    """Where the new rows of each sequence go."""
    listed = []
    for (past, new), part in zip(step.sequences, parts, strict=True):
        positions = torch.arange(past, past + new)
        listed.append(
            part.cpu()[positions // step.block_size] * step.block_size + positions % step.block_size
        )
    return torch.cat(listed).int()


def _torch(bench: Bench, step: Step) -> Call:
    length = sum(step.sequences[0])
    query = bench.randn(len(step.sequences), step.heads, 1, step.head_dim)
    key, value = (bench.randn(len(step.sequences), step.kv_heads, length, step.head_dim) for _ in range(2))
    attention = torch.nn.functional.scaled_dot_product_attention
    return lambda: attention(query, key, value, enable_gqa=True)


def _flashinfer(bench: Bench, step: Step, tensors: Mapping[str, Tensor]) -> Call:
    """Raises ImportError where FlashInfer is not installed."""
    import flashinfer

    table = tensors["block_table"]
    indices = table[table >= 0]
    counts = torch.tensor([0, *step.blocks], device=bench.device).cumsum(0).int()
    lengths = torch.tensor([past + new for past, new in step.sequences], device=bench.device)
    last = ((lengths - 1) % step.block_size + 1).int()
    query = tensors["query"].view(step.tokens, step.heads, step.head_dim)
    pools = (tensors["key_cache"], tensors["value_cache"])
    scratch = torch.empty(256 << 20, dtype=torch.uint8, device=bench.device)
    layer = (step.heads, step.kv_heads, step.head_dim, step.block_size)
    if step.tokens == len(step.sequences):
        wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(scratch, "NHD", use_tensor_cores=True)
        wrapper.plan(counts, indices, last, *layer, q_data_type=torch.bfloat16, kv_data_type=step.pool)
    else:
        wrapper = flashinfer.BatchPrefillWithPagedKVCacheWrapper(scratch, "NHD")
        starts = tensors["cumulative_sequence_length"]
        wrapper.plan(starts, counts, indices, last, *layer, causal=True, q_data_type=torch.bfloat16)
    return lambda: wrapper.run(query, pools)
