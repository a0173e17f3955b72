"""Sampling of 64 requests over a large vocabulary, and the acceptance of drafted tokens."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .benchmark import Bench, Benchmark, Goal, Prepared
from .timing import Call

TOP_K, TOP_P = 50, 0.9


def benchmarks(tiny: bool = False) -> Iterator[Benchmark]:
    """Vocabulary of Llama 3."""
    batch, vocab = (3, 500) if tiny else (64, 128256)
    name = f"float32 logits, {batch} x {vocab}"
    yield Benchmark(
        "sampling",
        f"{name}, top-k {TOP_K}, top-p {TOP_P}",
        lambda bench: _sampling(bench, batch, vocab),
        (Goal("microseconds", 60), Goal("ahead of", 1.0)),
    )
    yield Benchmark("sampling", f"{name}, greedy", lambda bench: _greedy(bench, batch, vocab))
    yield Benchmark(
        "speculative",
        f"{batch // 4} x 4 drafts x {vocab}" if batch > 4 else "tiny",
        lambda bench: _speculative(bench, max(1, batch // 4), 4, vocab),
    )


def _requests(bench: Bench, batch: int) -> dict[str, Tensor]:
    """Seeds and positions, one a request."""
    seed = bench.randint(0, 1 << 31, batch, dtype=torch.int64).view(torch.uint64)
    return {"seed": seed, "position": bench.randint(0, 1000, batch, dtype=torch.int32)}


def _filled(bench: Bench, batch: int, value: float, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.full((batch,), value, device=bench.device).to(dtype)


def _sampling(bench: Bench, batch: int, vocab: int) -> Prepared:
    bytes_moved = batch * vocab * 4
    logits = [
        bench.randn(batch, vocab, dtype=torch.float32) * 3 for _ in range(bench.clock.sets(bytes_moved))
    ]
    shared = {
        **_requests(bench, batch),
        "temperature": _filled(bench, batch, 0.8),
        "top_k": _filled(bench, batch, TOP_K, torch.int32),
        "top_p": _filled(bench, batch, TOP_P),
    }
    token = bench.randint(0, 2, batch, dtype=torch.int32)
    calls = [bench.kernel("sampling", {"logits": rows, "token": token, **shared}) for rows in logits]
    baselines = {
        "torch topk": lambda: [_torch(rows) for rows in logits],
        "FlashInfer": lambda: [_flashinfer(rows) for rows in logits],
    }
    return Prepared(calls, bytes_moved, 0, baselines)


def _greedy(bench: Bench, batch: int, vocab: int) -> Prepared:
    bytes_moved = batch * vocab * 4
    logits = [bench.randn(batch, vocab, dtype=torch.float32) for _ in range(bench.clock.sets(bytes_moved))]
    shared = {**_requests(bench, batch), "temperature": _filled(bench, batch, 0.0)}
    token = bench.randint(0, 2, batch, dtype=torch.int32)
    calls = [bench.kernel("sampling", {"logits": rows, "token": token, **shared}) for rows in logits]
    return Prepared(calls, bytes_moved, 0, {"torch argmax": lambda: [_argmax(rows) for rows in logits]})


def _speculative(bench: Bench, batch: int, drafts: int, vocab: int) -> Prepared:
    bytes_moved = batch * (drafts + 1) * vocab * 4
    shared = {
        "draft_tokens": bench.randint(0, vocab, batch, drafts, dtype=torch.int32),
        **_requests(bench, batch),
        "accepted": bench.randint(0, 2, batch, dtype=torch.int32),
        "tokens": bench.randint(0, 2, batch, drafts + 1, dtype=torch.int32),
    }
    calls = [
        bench.kernel(
            "speculative", {"logits": bench.randn(batch, drafts + 1, vocab, dtype=torch.float32), **shared}
        )
        for _ in range(bench.clock.sets(bytes_moved))
    ]
    return Prepared(calls, bytes_moved, 0)


def _torch(logits: Tensor) -> Call:
    """The k likeliest, top-p among them, one drawn: as an engine in torch does it."""

    def run() -> Tensor:
        values, indices = torch.topk(logits / 0.8, TOP_K)
        probabilities = torch.softmax(values, dim=-1)
        below = probabilities.cumsum(dim=-1) - probabilities < TOP_P
        return indices.gather(1, torch.multinomial(probabilities * below, 1))

    return run


def _argmax(logits: Tensor) -> Call:
    return lambda: torch.argmax(logits, dim=-1)


def _flashinfer(logits: Tensor) -> Call:
    """Raises ImportError where FlashInfer is not installed."""
    import flashinfer

    scaled = logits / 0.8
    return lambda: flashinfer.sampling.top_k_top_p_sampling_from_logits(scaled, TOP_K, TOP_P)
