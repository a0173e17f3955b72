"""Norms and activations on 64 MiB of rows, plain and with their result quantized: bound by memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from .benchmark import Bench, Benchmark, Goal, Prepared
from .timing import Call

EPSILON = 1e-6
AT_BANDWIDTH = Goal("copy bandwidth", 0.85)

Function = Callable[[Mapping[str, Tensor]], object]


def benchmarks(tiny: bool = False) -> Iterator[Benchmark]:
    """Each kernel with the tensors that a layer gives it."""
    rows, hidden = (3, 72) if tiny else (8192, 4096)

    def case(operator: str, name: str, *tensors: str, inner: int = hidden) -> Benchmark:
        return Benchmark(
            operator, name, lambda bench: _prepare(bench, operator, rows, inner, tensors), (AT_BANDWIDTH,)
        )

    yield case("rms_norm", "bf16, 64 MiB", "input", "weight", "output")
    yield case("rms_norm", "bf16, 64 MiB, with skip", "input", "skip", "weight", "output", "input_skip_sum")
    yield case("rms_norm", "bf16 to e4m3 by row, 64 MiB, with skip", *_QUANTIZED)
    yield case("layer_norm", "bf16, 64 MiB", "input", "weight", "bias", "output")
    yield case("gated_activation", "bf16, 64 MiB", "gate_up", "output", inner=hidden // 2)
    yield case("activation", "bf16, 64 MiB", "input", "bias", "output")


_QUANTIZED = ("input", "skip", "weight", "codes", "row_scale", "input_skip_sum")


def _prepare(bench: Bench, operator: str, rows: int, hidden: int, names: Sequence[str]) -> Prepared:
    sets = [_tensors(bench, rows, hidden, names)]
    bytes_moved = sum(tensor.nbytes for tensor in sets[0].values())
    sets += [_tensors(bench, rows, hidden, names) for _ in range(bench.clock.sets(bytes_moved) - 1)]
    calls = [bench.kernel(operator, tensors) for tensors in sets]
    function = _FUNCTIONS[operator]
    baselines = {
        "torch": lambda: [_call(function, tensors) for tensors in sets],
        "torch.compile": lambda: _compiled(function, sets),
    }
    quantized = "row_scale" in sets[0]  # torch has no function that does the same
    return Prepared(calls, bytes_moved, 0, {} if quantized else baselines)


def _tensors(bench: Bench, rows: int, hidden: int, names: Sequence[str]) -> dict[str, Tensor]:
    def make(name: str) -> Tensor:
        if name in ("weight", "bias"):
            return bench.randn(hidden)
        if name == "gate_up":
            return bench.randn(rows, 2 * hidden)
        if name == "row_scale":
            return torch.empty(rows, device=bench.device)
        dtype = torch.float8_e4m3fn if name == "codes" else torch.bfloat16
        return bench.randn(rows, hidden, dtype=dtype)

    return {"output" if name == "codes" else name: make(name) for name in names}


def _call(function: Function, tensors: Mapping[str, Tensor]) -> Call:
    return lambda: function(tensors)


def _compiled(function: Function, sets: Sequence[Mapping[str, Tensor]]) -> list[Call]:
    compiled = torch.compile(function, dynamic=False)
    return [_call(compiled, tensors) for tensors in sets]


def _rms_norm(tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    rows = tensors["input"]
    if "skip" in tensors:
        rows = rows + tensors["skip"]
    return functional.rms_norm(rows, rows.shape[-1:], tensors["weight"], EPSILON), rows


def _layer_norm(tensors: Mapping[str, Tensor]) -> Tensor:
    rows = tensors["input"]
    return functional.layer_norm(rows, rows.shape[-1:], tensors["weight"], tensors["bias"], EPSILON)


def _gated(tensors: Mapping[str, Tensor]) -> Tensor:
    gate, up = tensors["gate_up"].chunk(2, dim=-1)
    return functional.silu(gate) * up


def _activation(tensors: Mapping[str, Tensor]) -> Tensor:
    return functional.silu(tensors["input"] + tensors["bias"])


_FUNCTIONS: Mapping[str, Function] = {
    "rms_norm": _rms_norm,
    "layer_norm": _layer_norm,
    "gated_activation": _gated,
    "activation": _activation,
}
