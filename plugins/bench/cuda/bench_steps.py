"""What runs once between two decode steps, or when blocks move: step_prepare and block_copy."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from .benchmark import Bench, Benchmark, Prepared

BLOCK_SIZE = 16


def benchmarks(tiny: bool = False) -> Iterator[Benchmark]:
    """A batch of 256; 256 blocks of 32 layers."""
    batch, pairs, block_bytes = (5, 3, 256) if tiny else (256, 256, 16 * 8 * 128 * 2)
    yield Benchmark("step_prepare", f"{batch} sequences", lambda bench: _step(bench, batch))
    yield Benchmark(
        "block_copy", f"{pairs} blocks of 32 layers", lambda bench: _copy(bench, pairs, 64, block_bytes)
    )


def _step(bench: Bench, batch: int) -> Prepared:
    max_blocks = 64

    def numbers(*shape: int, beyond: int = 100) -> torch.Tensor:
        return bench.randint(1, beyond, *shape, dtype=torch.int32)

    tensors = {
        "sampled": numbers(batch, 1),
        "block_table": numbers(batch, max_blocks),
        "status": torch.ones(batch, dtype=torch.int32, device=bench.device),
        "past_lens": numbers(batch),
        "remaining": torch.full((batch,), 1 << 30, dtype=torch.int32, device=bench.device),
        "next_token": numbers(batch),
    }
    for name, count in {
        "num_new_tokens": batch,
        "input_ids": batch,
        "position_ids": batch,
        "slot_mapping": batch,
        "cu_seqlens": batch + 1,
        "logits_indices": batch,
    }.items():
        tensors[name] = numbers(count)
    call = bench.kernel("step_prepare", tensors, {"block_size": BLOCK_SIZE})
    return Prepared([call], sum(tensor.nbytes for tensor in tensors.values()), 0)


def _copy(bench: Bench, pairs: int, pools: int, block_bytes: int) -> Prepared:
    destination = bench.randint(0, 255, pools, 2 * pairs, block_bytes, dtype=torch.uint8)
    order = torch.randperm(2 * pairs, device=bench.device).int().view(pairs, 2).contiguous()
    refused = torch.zeros(1, dtype=torch.int32, device=bench.device)
    call = bench.kernel("block_copy", {"destination": destination, "block_pairs": order, "refused": refused})
    return Prepared([call], 2 * pairs * pools * block_bytes, 0)
