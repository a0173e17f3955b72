"""Cases of `rms_norm` and `layer_norm`: row lengths of every form, dtypes, residual add, quantization."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from plugins.cuda.case import Case, Scale
from plugins.cuda.company import Company
from plugins.reference.norms import layer_norm, rms_norm
from plugins.reference.rows import quantize

from ._rows import SCALE_TOLERANCE, TOLERANCE, decided, dtype_name, scale_of

ROWS = (1, 3, 16, 17, 33, 64)
MANY_ROWS = 200
"""More than the teams of a persistent grid on the emulated device, for short rows."""

HIDDEN = (8, 64, 72, 100, 576, 4104)
"""Rows of a warp, of a block (more than 1024 elements), and of no whole number of chunks (100)."""

KEPT = 16384
"""The longest row that stays in registers."""


@dataclass(frozen=True)
class Setup:
    """One call. out: None for the input's dtype. own_scale: of a quantized output, a scale for each row."""

    operator: str = "rms_norm"
    rows: int = 3
    hidden: int = 64
    dtype: torch.dtype = torch.float16
    skip: bool = False
    sum: bool = False
    bias: bool = False
    float_weight: bool = False
    weight_offset: float = 0.0
    out: torch.dtype | None = None
    own_scale: bool = False

    @property
    def name(self) -> str:
        """All that tells it from others."""
        words = [self.operator, f"{self.rows}x{self.hidden}", dtype_name(self.dtype)]
        words += [
            word for word in ("skip", "sum", "bias", "float_weight", "own_scale") if getattr(self, word)
        ]
        words += [f"offset={self.weight_offset:g}"] * (self.weight_offset != 0)
        return "-".join(words + ([dtype_name(self.out)] if self.out else []))


def result_of(setup: Setup, tensors: dict[str, Tensor], epsilon: float) -> tuple[Tensor, Tensor]:
    """The reference's results and sums, float32."""
    function = rms_norm if setup.operator == "rms_norm" else layer_norm
    return function(
        tensors["input"],
        tensors["weight"],
        skip=tensors.get("skip"),
        bias=tensors.get("bias"),
        epsilon=epsilon,
        weight_offset=setup.weight_offset,
    )


def drawn(setup: Setup, generator: torch.Generator, rows: Tensor) -> dict[str, Tensor]:
    """Rows by their numbers: every fourth is small, so that epsilon counts, is around a large mean, or is zero."""
    values = torch.randn(len(rows), setup.hidden, generator=generator)
    kind = rows[:, None] % 4
    values = torch.where(kind == 1, values * 1e-3, values)
    values = torch.where(kind == 2, values * 200 + (1000 if setup.out is None else 200), values)
    values = torch.where(kind == 3, values * 0, values)
    tensors = {"input": values.to(setup.dtype)}
    if setup.skip:
        tensors["skip"] = torch.randn(len(rows), setup.hidden, generator=generator).to(setup.dtype)
    return tensors


def case_of(setup: Setup, seed: int) -> Case:
    """Draws inputs; rows with results between two codes are drawn anew."""
    generator = torch.Generator().manual_seed(seed)
    epsilon = 1e-5
    weight_type = torch.float32 if setup.float_weight else setup.dtype
    shared = {"weight": (1 + 0.3 * torch.randn(setup.hidden, generator=generator)).to(weight_type)}
    if setup.bias:
        shared["bias"] = (0.3 * torch.randn(setup.hidden, generator=generator)).to(weight_type)
    tensors = drawn(setup, generator, torch.arange(setup.rows))
    result, total = result_of(setup, tensors | shared, epsilon)
    expected: dict[str, Tensor] = {}
    tolerances: dict[str, float] = {}
    if setup.out is None:
        expected["output"] = result.to(setup.dtype)
        tolerances["output"] = TOLERANCE[setup.dtype]
    else:
        scale = scale_of(result, setup.out, setup.own_scale)
        while bool((bad := ~decided(result, scale, setup.out).all(dim=1)).any()):
            for name, rows in drawn(setup, generator, bad.nonzero()[:, 0]).items():
                tensors[name][bad] = rows
            result, total = result_of(setup, tensors | shared, epsilon)
            scale = scale_of(result, setup.out, True) if setup.own_scale else scale
        expected["output"] = quantize(result, scale, setup.out)
        if setup.own_scale:
            expected["row_scale"] = scale
            tolerances["row_scale"] = SCALE_TOLERANCE
        else:
            tensors["scale"] = scale
    if setup.sum:
        expected["input_skip_sum"] = total.to(setup.dtype)
    attributes = {"epsilon": epsilon, "weight_offset": setup.weight_offset}
    return Case(setup.name, setup.operator, tensors | shared, expected, attributes, tolerances=tolerances)


def quick_setups() -> Iterator[Setup]:
    """Few and short, all float16, yet each form of the kernel with each kind of result."""
    base = Setup()
    residual = replace(base, skip=True, sum=True)
    for setup in (
        replace(residual, hidden=72, rows=17, bias=True, weight_offset=1.0, float_weight=True),
        replace(base, hidden=100, rows=5, out=torch.float8_e4m3fn, own_scale=True),
        replace(residual, hidden=1032, rows=14, out=torch.int8, own_scale=True),
        replace(residual, hidden=1096, rows=14),
        replace(residual, hidden=1100, rows=3, bias=True),
        replace(base, rows=MANY_ROWS, hidden=8, out=torch.int8),
        replace(residual, hidden=KEPT + 8, rows=1),
    ):
        yield setup
        yield replace(setup, operator="layer_norm")


def small_setups() -> Iterator[Setup]:
    """The quick ones; all rows and lengths; all dtypes with all outputs."""
    yield from quick_setups()
    yield Setup("layer_norm", 2, KEPT + 8, torch.bfloat16, skip=True, sum=True)
    yield Setup("layer_norm", 3, 1100, torch.float32, skip=True, sum=True, bias=True)
    both = itertools.cycle(("rms_norm", "layer_norm"))
    types = itertools.cycle((torch.float16, torch.bfloat16, torch.float32))
    flags = itertools.cycle(itertools.product((False, True), repeat=4))
    for rows, hidden in itertools.product(ROWS, HIDDEN):
        if rows * hidden > 20000:
            continue
        skip, bias, float_weight, gemma = next(flags)
        setup = Setup(next(both), rows, hidden, next(types), skip, skip and rows % 2 == 1, bias, float_weight)
        yield replace(setup, weight_offset=float(gemma))
    outs = (torch.int8, torch.float8_e4m3fn)
    for dtype, out, own, hidden in itertools.product(TOLERANCE, outs, (False, True), (72, 100, 1160)):
        yield Setup(next(both), 5, hidden, dtype, hidden == 72, out=out, own_scale=own)


def full_setups() -> Iterator[Setup]:
    """Those of a GPU: the same and long rows, many of them."""
    yield from small_setups()
    operators, rows, lengths = (
        ("rms_norm", "layer_norm"),
        (1, 33, 4097),
        (576, 4096, 8192, 14336, KEPT, KEPT + 16),
    )
    for operator, dtype, count, hidden in itertools.product(operators, TOLERANCE, rows, lengths):
        yield Setup(operator, count, hidden, dtype, skip=True, sum=True)
    for out, own in itertools.product((torch.int8, torch.float8_e4m3fn), (False, True)):
        yield Setup("rms_norm", 129, 4096, torch.bfloat16, skip=True, sum=True, out=out, own_scale=own)


def refused() -> Iterator[Case]:
    """Calls that must be refused, beyond what the description says."""
    rows = torch.zeros(2, 16, dtype=torch.float16)
    tensors = {"input": rows, "weight": rows[0].clone()}
    codes = torch.zeros(2, 16, dtype=torch.int8)
    scale, row_scale = torch.ones(1), torch.ones(2)
    for name, more, expected, words in (
        ("no scale", {}, {"output": codes}, "neither scale nor row_scale is given"),
        ("two scales", {"scale": scale}, {"output": codes, "row_scale": row_scale}, "both scales are given"),
        ("needless scale", {"scale": scale}, {"output": rows}, "is not quantized, but a scale is given"),
        ("other type", {}, {"output": rows.bfloat16()}, "it must be of the input's type (float16)"),
        (
            "weight",
            {"weight": rows[0].bfloat16()},
            {"output": rows},
            "weight is bfloat16; it must be float32 or",
        ),
        (
            "sum without skip",
            {},
            {"output": rows, "input_skip_sum": rows},
            "input_skip_sum is given without skip",
        ),
        (
            "empty weight",
            {"weight": rows[0, :8].clone()},
            {"output": rows},
            "axis 0 must be hidden, and hidden is 16",
        ),
    ):
        yield Case(f"refused-{name}", "rms_norm", {**tensors, **more}, expected, error=words)


def no_rows() -> Case:
    """Nothing to do is no error."""
    nothing = torch.zeros(0, 64, dtype=torch.float16)
    weight = torch.ones(64, dtype=torch.float16)
    return Case("no-rows", "rms_norm", {"input": nothing, "weight": weight}, {"output": nothing})


def cases(scale: Scale, seed: int) -> Iterator[Case]:
    """Cases of both operators."""
    setups = {Scale.QUICK: quick_setups, Scale.SMALL: small_setups, Scale.FULL: full_setups}[scale]()
    seen: set[str] = set()
    for number, setup in enumerate(setups):
        if setup.name not in seen:
            seen.add(setup.name)
            yield case_of(setup, seed * 1000 + number)
    if scale is not Scale.QUICK:
        yield no_rows()
        yield from refused()


def companies(seed: int, requests: int) -> Iterator[Company]:
    """A row alone and as one of many."""
    for operator, hidden in itertools.product(("rms_norm", "layer_norm"), (576, 1100, 4104)):
        setup = Setup(operator, requests, hidden, torch.bfloat16, skip=True, sum=True)
        among = case_of(setup, seed)
        place = requests - 1
        tensors = {
            name: value[place:].clone() if name in ("input", "skip") else value
            for name, value in among.tensors.items()
        }
        expected = {name: value[place:] for name, value in among.expected.items()}
        alone = replace(among, name=f"{among.name}-alone", tensors=tensors, expected=expected)
        rows = (torch.tensor([0]), torch.tensor([place]))
        yield Company(among.name, alone, among, dict.fromkeys(expected, rows))
