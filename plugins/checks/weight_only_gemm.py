"""Cases of `weight_only_gemm`: formats, groups, row tiles, ragged k and n, split k."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from plugins.cuda.case import Case, Scale
from plugins.cuda.company import Company
from plugins.reference.weight_only_gemm import weight_only_gemm
from plugins.weight_layout import PackedWeight, pack

from ._rows import TOLERANCE, dtype_name

KINDS = ("int4", "int4-zero", "int8", "e4m3")


@dataclass(frozen=True)
class Setup:
    """One call. group: 0 for scales per channel."""

    kind: str = "int4"  # one of KINDS
    group: int = 64
    rows: int = 3
    k: int = 256
    n: int = 128
    dtype: torch.dtype = torch.float16
    bias: bool = False

    @property
    def name(self) -> str:
        """All that tells it from others."""
        words = [self.kind, f"group={self.group}", f"{self.rows}x{self.k}x{self.n}", dtype_name(self.dtype)]
        return "-".join(words + ["bias"] * self.bias)


def random_weight(setup: Setup, generator: torch.Generator) -> PackedWeight:
    """Every code occurs; scales differ from group to group and from column to column."""
    shape = (setup.k, setup.n)
    scales = 0.5 + torch.rand(-(-setup.k // (setup.group or setup.k)), setup.n, generator=generator)
    if setup.kind == "e4m3":
        codes = torch.randint(0, 256, shape, generator=generator).to(torch.uint8)
        codes[(codes & 0x7F) == 0x7F] = 0
        large = (codes & 0x7F) > 0x50  # so few that they do not hide the others
        codes[large & (torch.rand(shape, generator=generator) < 0.9)] &= 0x8F
        return pack(codes.view(torch.float8_e4m3fn), channel_scale=scales[0])
    if setup.kind == "int8":
        codes = torch.randint(-128, 128, shape, generator=generator).to(torch.int8)
        if setup.group == 0:
            return pack(codes, channel_scale=scales[0] / 64)
        return pack(codes, group=setup.group, scale=(scales / 64).to(setup.dtype))
    codes = torch.randint(0, 16, shape, generator=generator).to(torch.uint8)
    zero = torch.randint(0, 16, scales.shape, generator=generator).to(torch.uint8)
    return pack(
        codes,
        group=setup.group,
        scale=(scales / 8).to(setup.dtype),
        zero_point=zero if setup.kind == "int4-zero" else None,
    )


def case_of(setup: Setup, seed: int) -> Case:
    """Inputs drawn from the seed."""
    generator = torch.Generator().manual_seed(seed)
    weight = random_weight(setup, generator)
    x = torch.randn(setup.rows, setup.k, generator=generator).to(setup.dtype)
    bias: Tensor | None = None
    tensors = {"x": x, **weight.tensors()}
    if setup.bias:
        bias = tensors["bias"] = (10 * torch.randn(setup.n, generator=generator)).to(setup.dtype)
    expected = {"y": weight_only_gemm(x, weight, bias).to(setup.dtype)}
    attributes = {"group": float(setup.group)}
    tolerance = TOLERANCE[setup.dtype]
    return Case(setup.name, "weight_only_gemm", tensors, expected, attributes, tolerance)


def quick_setups() -> Iterator[Setup]:
    """Each format, each tile of rows, more stages than the pipeline has, a split k; few calls, all float16."""
    base = Setup()
    yield replace(
        base, rows=3, k=1344, n=64, bias=True
    )  # six stages, the last one ragged; half a block of columns
    yield replace(base, rows=5, k=2240, n=136, group=128, bias=True)  # two splits
    yield replace(base, rows=17, k=328, n=100, group=32, kind="int4-zero")  # the last slab has one group
    yield replace(base, rows=11, k=328, n=128, group=128, kind="int4-zero")
    yield replace(base, rows=9, k=712, n=72, group=32, kind="int8", bias=True)
    yield replace(base, rows=2, k=1040, n=128, group=0, kind="int8", bias=True)
    yield replace(base, rows=33, k=136, n=64, group=0, kind="e4m3", bias=True)


def small_setups() -> Iterator[Setup]:
    """The quick ones; all formats with all groups, types and rows."""
    yield from quick_setups()
    rows = itertools.cycle((1, 3, 16, 17, 33, 64))
    sizes = itertools.cycle(((64, 64), (264, 136), (512, 192), (1096, 64)))
    for kind in KINDS:
        groups = {"int8": (0, 32, 64, 128), "e4m3": (0,)}.get(kind, (32, 64, 128))
        for group, dtype in itertools.product(groups, (torch.float16, torch.bfloat16)):
            k, n = next(sizes)
            yield Setup(kind, group, next(rows), k, n, dtype, bias=k % 3 == 0)


def full_setups() -> Iterator[Setup]:
    """Those of a GPU: the same and the shapes of models."""
    yield from small_setups()
    shapes = ((4096, 14336), (14336, 4096), (4096, 4096), (2048, 11008), (576, 1536), (4104, 328))
    for (k, n), rows, (kind, group) in itertools.product(
        shapes,
        (1, 8, 16, 33, 64),
        (("int4", 128), ("int4-zero", 32), ("int8", 0), ("e4m3", 0)),
    ):
        yield Setup(kind, group, rows, k, n, torch.bfloat16 if rows == 8 else torch.float16, bias=rows == 16)


def refused() -> Iterator[Case]:
    """Calls that must be refused, beyond what the description says."""
    good = case_of(Setup(k=128, n=64, group=64), 1)
    channels = case_of(Setup("int8", 0, k=128, n=64), 1)
    x, weight, scale = good.tensors["x"], good.tensors["weight"], good.tensors["scale"]
    grouped = {"group": 64.0}
    for name, case, more, attributes, words in (
        ("k", good, {"x": x[:, :124].clone()}, grouped, "k is 124; it must be a multiple of 8"),
        ("slabs", good, {"weight": weight[:, :1].clone()}, grouped, "weight has 1 slabs of 64; k is 128,"),
        ("columns", good, {"weight": torch.cat([weight] * 2), "scale": torch.cat([scale] * 2)}, grouped,
         "weight has 2 blocks of 64 columns; n is 64, which needs 1"),
        ("group", good, {}, {"group": 96.0}, "group is 96; allowed are 0, 32, 64 and 128"),
        ("no group", good, {}, {"group": 0.0}, "int4 weights have groups"),
        ("groups", good, {}, {"group": 32.0}, "scale has 2 groups; k is 128, which needs 4"),
        ("no scale", channels, {}, grouped, "group is 64, but scale is absent"),
        ("both scales", good, {"channel_scale": torch.ones(64)}, grouped, "but channel_scale is given"),
        ("zero of int8", channels, {"zero_point": torch.zeros(1, 2, 64, dtype=torch.uint8)}, {"group": 0.0},
         "zero_point is given; it is for int4 weights"),
        ("e4m3 groups", channels, {"weight": channels.tensors["weight"].view(torch.float8_e4m3fn)}, grouped,
         "float8e4m3fn weights have scales per channel"),
        ("unit", good, {"weight": weight[:, :, :1024].clone()}, grouped, "axis 2 must be 2048"),
    ):  # fmt: skip
        tensors = {**case.tensors, **more}
        yield Case(f"refused-{name}", case.operator, tensors, case.expected, attributes, error=words)


def cases(scale: Scale, seed: int) -> Iterator[Case]:
    """Cases of the operator."""
    setups = {Scale.QUICK: quick_setups, Scale.SMALL: small_setups, Scale.FULL: full_setups}[scale]()
    seen: set[str] = set()
    for number, setup in enumerate(setups):
        if setup.name not in seen:
            seen.add(setup.name)
            yield case_of(setup, seed * 1000 + number)
    if scale is not Scale.QUICK:
        yield case_of(Setup(rows=0), seed)
        yield from refused()


def companies(seed: int, requests: int) -> Iterator[Company]:
    """A row alone and as one of many: other tiles of rows, the same sums."""
    for kind, group, k, n in (("int4", 128, 2240, 192), ("int4-zero", 32, 520, 64), ("int8", 0, 1040, 64)):
        among = case_of(Setup(kind, group, requests, k, n, torch.bfloat16), seed)
        place = requests - 1
        alone = replace(
            among,
            name=f"{among.name}-alone",
            tensors={**among.tensors, "x": among.tensors["x"][place:].clone()},
            expected={"y": among.expected["y"][place:]},
        )
        yield Company(among.name, alone, among, {"y": (torch.tensor([0]), torch.tensor([place]))})
