"""Cases of `gated_activation` and `activation`: functions, row lengths of every form, dtypes, quantization."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from plugins.cuda.case import Case, Scale
from plugins.reference.activations import Activation, activation, gated_activation
from plugins.reference.rows import quantize

from ._rows import SCALE_TOLERANCE, TOLERANCE, decided, dtype_name, scale_of
from .rms_norm import HIDDEN, KEPT, MANY_ROWS, ROWS

UNCERTAINTY = 5e-6
"""Of a result, relative: the kernel's exp is the fast one."""


@dataclass(frozen=True)
class Setup:
    """One call. out: None for the input's dtype. own_scale: of a quantized output, a scale for each row."""

    operator: str = "gated_activation"
    kind: Activation = Activation.SILU
    rows: int = 3
    columns: int = 64
    dtype: torch.dtype = torch.float16
    bias: bool = False
    out: torch.dtype | None = None
    own_scale: bool = False

    @property
    def name(self) -> str:
        """All that tells it from others."""
        words = [self.operator, self.kind.name.lower(), f"{self.rows}x{self.columns}", dtype_name(self.dtype)]
        words += [word for word in ("bias", "own_scale") if getattr(self, word)]
        return "-".join(words + ([dtype_name(self.out)] if self.out else []))


def result_of(setup: Setup, tensors: dict[str, Tensor]) -> Tensor:
    """The reference's results, float32."""
    if setup.operator == "gated_activation":
        return gated_activation(tensors["gate_up"], setup.kind)
    return activation(tensors["input"], tensors.get("bias"), setup.kind)


def case_of(setup: Setup, seed: int) -> Case:
    """Draws inputs, far ones among them; what would give a result between two codes is made to give 0."""
    generator = torch.Generator().manual_seed(seed)
    gated = setup.operator == "gated_activation"
    values = 2 * torch.randn(setup.rows, setup.columns * (1 + gated), generator=generator)
    values[torch.rand(values.shape, generator=generator) < 0.02] *= 40
    if setup.rows > 1:
        values[1] *= 0.01
    rows = values.to(setup.dtype)
    tensors = {"gate_up" if gated else "input": rows}
    if setup.bias:
        tensors["bias"] = torch.randn(setup.columns, generator=generator).to(setup.dtype)
    result = result_of(setup, tensors)
    tolerances: dict[str, float] = {}
    if setup.out is None:
        expected = {"output": result.to(setup.dtype)}
        tolerances["output"] = TOLERANCE[setup.dtype]
    else:
        scale = scale_of(result, setup.out, setup.own_scale)
        zero = -tensors["bias"] if setup.bias else torch.zeros(setup.columns, dtype=setup.dtype)
        bad = ~decided(result, scale, setup.out, UNCERTAINTY)
        rows[:, : setup.columns] = torch.where(bad, zero, rows[:, : setup.columns])
        result = result_of(setup, tensors)
        expected = {"output": quantize(result, scale, setup.out)}
        if setup.own_scale:
            expected["row_scale"] = scale
            tolerances["row_scale"] = 2 * SCALE_TOLERANCE
        else:
            tensors["scale"] = scale
    attributes = {"activation": float(setup.kind)}
    return Case(setup.name, setup.operator, tensors, expected, attributes, tolerances=tolerances)


def quick_setups() -> Iterator[Setup]:
    """Few and short, all float16, yet each form of the kernel with each function and kind of result."""
    base = Setup()
    for kind in Activation:
        yield replace(base, kind=kind, rows=17, columns=72)
    for setup in (
        replace(base, columns=100, out=torch.int8, own_scale=True),
        replace(base, rows=14, columns=1032, out=torch.float8_e4m3fn, own_scale=True),
        replace(base, rows=2, columns=1100, kind=Activation.GELU_TANH),
        replace(base, rows=MANY_ROWS, columns=8, out=torch.int8),
        replace(base, rows=1, columns=KEPT + 8, out=torch.int8),
    ):
        yield setup
        yield replace(setup, operator="activation", bias=setup.columns != 8)


def small_setups() -> Iterator[Setup]:
    """The quick ones; all rows and lengths; all dtypes with all outputs."""
    yield from quick_setups()
    yield Setup(rows=1, columns=KEPT + 8, dtype=torch.bfloat16)
    yield Setup(rows=2, columns=1100, dtype=torch.float32, kind=Activation.GELU_ERF)
    both = itertools.cycle(("gated_activation", "activation"))
    types = itertools.cycle((torch.float16, torch.bfloat16, torch.float32))
    for (rows, columns), kind in zip(
        itertools.product(ROWS, HIDDEN), itertools.cycle(Activation), strict=False
    ):
        if rows * columns <= 20000:
            yield Setup(next(both), kind, rows, columns, next(types))
    outs = (torch.int8, torch.float8_e4m3fn)
    for dtype, out, own, columns in itertools.product(TOLERANCE, outs, (False, True), (72, 100, 1160)):
        yield Setup("gated_activation", Activation.SILU, 5, columns, dtype, out=out, own_scale=own)
        yield Setup("activation", Activation.GELU_ERF, 5, columns, dtype, True, out, own)


def full_setups() -> Iterator[Setup]:
    """Those of a GPU: the same and long rows, many of them."""
    yield from small_setups()
    for dtype, kind, rows, columns in itertools.product(
        TOLERANCE, Activation, (1, 33, 4097), (688, 11008, 14336, KEPT, KEPT + 16)
    ):
        yield Setup("gated_activation", kind, rows, columns, dtype)
    for out, own in itertools.product((torch.int8, torch.float8_e4m3fn), (False, True)):
        yield Setup("gated_activation", Activation.SILU, 513, 14336, torch.bfloat16, out=out, own_scale=own)


def refused() -> Iterator[Case]:
    """Calls that must be refused, beyond what the description says."""
    rows = torch.zeros(2, 16, dtype=torch.float16)
    output, codes = rows[:, :8].clone(), torch.zeros(2, 8, dtype=torch.int8)
    for name, tensors, expected, attributes, words in (
        ("no scale", {"gate_up": rows}, {"output": codes}, {}, "neither scale nor row_scale is given"),
        (
            "function",
            {"gate_up": rows},
            {"output": output},
            {"activation": 3.0},
            "activation is 3; allowed are 0 to 2",
        ),
        (
            "odd row",
            {"gate_up": rows[:, :15].clone()},
            {"output": output},
            {},
            "axis 1 must be 2*intermediate",
        ),
    ):
        yield Case(f"refused-{name}", "gated_activation", tensors, expected, attributes, error=words)


def cases(scale: Scale, seed: int) -> Iterator[Case]:
    """Cases of both operators."""
    setups = {Scale.QUICK: quick_setups, Scale.SMALL: small_setups, Scale.FULL: full_setups}[scale]()
    seen: set[str] = set()
    for number, setup in enumerate(setups):
        if setup.name not in seen:
            seen.add(setup.name)
            yield case_of(setup, seed * 1000 + number)
    if scale is not Scale.QUICK:
        yield from refused()
