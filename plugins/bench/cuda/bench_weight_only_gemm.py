"""Few rows times a large matrix in 4 or 8 bits: what decode reads of a model's weights, bound by memory.

Weights are random codes; which ones does not matter to the time, and random ones are no easier than real ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from plugins.weight_layout import COLUMNS, SLAB, UNIT_BYTES

from .benchmark import Bench, Benchmark, Goal, Prepared
from .timing import Call

OPERATOR = "weight_only_gemm"
GROUP = 128


def benchmarks(tiny: bool = False) -> Iterator[Benchmark]:
    """The feed-forward matrix of an 8 B model: 4096 x 14336."""
    k, n = (256, 192) if tiny else (4096, 14336)
    goal = Goal("copy bandwidth", 0.8)
    for rows in (1, 4, 16, 64):
        goals = (goal,) if rows <= 16 else ()
        yield _benchmark(f"int4, group {GROUP}, {rows} rows, {k} x {n}", rows, k, n, torch.uint8, *goals)
    yield _benchmark(f"int8, 1 rows, {k} x {n}", 1, k, n, torch.int8, goal)
    yield _benchmark(f"e4m3, 1 rows, {k} x {n}", 1, k, n, torch.float8_e4m3fn, goal)


def _benchmark(case: str, rows: int, k: int, n: int, kind: torch.dtype, *goals: Goal) -> Benchmark:
    return Benchmark(OPERATOR, case, lambda bench: _prepare(bench, rows, k, n, kind), goals)


def _prepare(bench: Bench, rows: int, k: int, n: int, kind: torch.dtype) -> Prepared:
    sets = [_tensors(bench, rows, k, n, kind)]
    bytes_moved = sum(tensor.nbytes for tensor in sets[0].values())
    sets += [_tensors(bench, rows, k, n, kind) for _ in range(bench.clock.sets(bytes_moved) - 1)]
    attributes = {"group": GROUP} if kind == torch.uint8 else {}
    calls = [bench.kernel(OPERATOR, tensors, attributes) for tensors in sets]
    baselines = {"torch bf16": lambda: _bf16(bench, rows, k, n)}
    if kind == torch.uint8:
        baselines["torch int4"] = lambda: _int4(bench, rows, k, n)
    return Prepared(calls, bytes_moved, 2 * rows * k * n, baselines)


def _tensors(bench: Bench, rows: int, k: int, n: int, kind: torch.dtype) -> dict[str, Tensor]:
    blocks, slabs = -(-n // COLUMNS), -(-k // SLAB[kind])
    codes = bench.randint(
        0, 255 if kind == torch.uint8 else 120, blocks, slabs, UNIT_BYTES, dtype=torch.uint8
    )
    made = {"x": bench.randn(rows, k), "weight": codes.view(kind), "y": bench.randn(rows, n)}
    if kind == torch.uint8:
        made["scale"] = bench.randn(blocks, k // GROUP, COLUMNS) * 0.01
    else:
        made["channel_scale"] = torch.full((n,), 0.01, device=bench.device)
    return made


def _bf16(bench: Bench, rows: int, k: int, n: int) -> Sequence[Call]:
    """The same product with weights in 16 bits: four times the bytes of int4."""
    x = bench.randn(rows, k)

    def call(weight: Tensor) -> Call:
        return lambda: torch.nn.functional.linear(x, weight)

    return [call(bench.randn(n, k)) for _ in range(bench.clock.sets(2 * k * n))]


def _int4(bench: Bench, rows: int, k: int, n: int) -> Sequence[Call]:
    """torch's own int4 kernel for GPUs, where this version of torch has it."""
    x = bench.randn(rows, k)

    def call() -> Call:
        packed = torch.ops.aten._convert_weight_to_int4pack(
            bench.randint(0, 255, n, k // 2, dtype=torch.uint8), 8
        )
        scales = bench.randn(k // GROUP, n, 2) * 0.01
        return lambda: torch.ops.aten._weight_int4pack_mm(x, packed, GROUP, scales)

    return [call() for _ in range(bench.clock.sets(k * n // 2))]
