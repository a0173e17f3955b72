"""Attention without a cache: one sequence of 16384 tokens and 16 heads, as in a long prefill."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from .benchmark import Bench, Benchmark, Goal, Prepared
from .timing import Call

OPERATOR = "flash_attention"
BACKENDS = {
    "torch flash": SDPBackend.FLASH_ATTENTION,
    "torch cuDNN": SDPBackend.CUDNN_ATTENTION,
    "torch efficient": SDPBackend.EFFICIENT_ATTENTION,
}
HALF_CASE = "bf16, head 128, causal"
E4M3_GAIN = 1.4
"""What E4M3 must gain over bf16 of the same call."""


@dataclass(frozen=True)
class Size:
    """One call: a sequence of `tokens`, as many key heads as query heads."""

    tokens: int = 16384
    heads: int = 16
    head_dim: int = 128
    is_causal: bool = True
    dtype: torch.dtype = torch.bfloat16

    @property
    def operations(self) -> int:
        """Of the two products over the visible keys."""
        products = 4 * self.tokens**2 * self.heads * self.head_dim
        return products // 2 if self.is_causal else products


def benchmarks(tiny: bool = False) -> Iterator[Benchmark]:
    """The cases of the goals: head sizes, masks, FP8."""
    tokens, heads = (80, 2) if tiny else (16384, 16)
    best = Goal("ahead of", 1.0)
    yield _benchmark(
        HALF_CASE, Size(tokens, heads), Goal("matmul rate", 0.75), Goal("ahead of", 1.0, "torch cuDNN")
    )
    yield _benchmark("bf16, head 64, causal", Size(tokens, heads, 64), best)
    yield _benchmark("bf16, head 256, causal", Size(tokens, heads, 256), best)
    yield _benchmark("bf16, head 128, full", Size(tokens, heads, is_causal=False), best)
    for words, head_dim, is_causal in (
        ("head 128, causal", 128, True),
        ("head 64, causal", 64, True),
        ("head 256, causal", 256, True),
        ("head 128, full", 128, False),
    ):
        size = Size(tokens, heads, head_dim, is_causal, torch.float8_e4m3fn)
        gain = Goal("times faster than", E4M3_GAIN, f"bf16, {words}")
        yield _benchmark(f"e4m3, {words}", size, gain)


def _benchmark(case: str, size: Size, *goals: Goal) -> Benchmark:
    return Benchmark(OPERATOR, case, lambda bench: _prepare(bench, size), goals)


def _prepare(bench: Bench, size: Size) -> Prepared:
    shape = (size.tokens, size.heads, size.head_dim)
    starts = torch.tensor([0, size.tokens], dtype=torch.int32, device=bench.device)
    bytes_moved = size.tokens * size.heads * size.head_dim * (3 * size.dtype.itemsize + 2)
    sets = []
    for _ in range(bench.clock.sets(bytes_moved)):
        query, key, value = (bench.randn(*shape, dtype=size.dtype) for _ in range(3))
        output = torch.empty(shape, dtype=torch.bfloat16, device=bench.device)
        sets.append({"query": query, "key": key, "value": value, "output": output})
    attributes = {"causal": float(size.is_causal)}
    calls = [
        bench.kernel(OPERATOR, {**tensors, "cu_seqlens_q": starts, "cu_seqlens_k": starts}, attributes)
        for tensors in sets
    ]
    if size.dtype == torch.float8_e4m3fn:
        return Prepared(calls, bytes_moved, size.operations)
    baselines = {name: _torch(backend, sets, size.is_causal) for name, backend in BACKENDS.items()}
    return Prepared(calls, bytes_moved, size.operations, baselines)


def _torch(
    backend: SDPBackend, sets: Sequence[dict[str, Tensor]], is_causal: bool
) -> Callable[[], Sequence[Call]]:
    def call(tensors: dict[str, Tensor]) -> Call:
        query, key, value = (tensors[name].transpose(0, 1)[None] for name in ("query", "key", "value"))

        def run() -> Tensor:
            with sdpa_kernel(backend):
                return torch.nn.functional.scaled_dot_product_attention(
                    query, key, value, is_causal=is_causal
                )

        return run

    return lambda: [call(tensors) for tensors in sets]
