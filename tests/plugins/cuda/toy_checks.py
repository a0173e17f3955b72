"""Cases of the operator `toy` (toy.cu), right ones, refused ones, and on request wrong ones."""

from __future__ import annotations

import os
from collections.abc import Iterator

import torch

from plugins.cuda.case import Case, Scale
from plugins.cuda.company import Company


def product(name: str, rows: int, hidden: int, seed: int, **attributes: float) -> Case:
    values = torch.randn(rows, hidden, generator=torch.Generator().manual_seed(seed)).half()
    return Case(name, "toy", {"input": values}, {"output": values * 2}, attributes, tolerance=1e-3)


def cases(scale: Scale, seed: int) -> Iterator[Case]:
    """TOY_FAULT names what is wrong: a result, an overrun, or a process that ends."""
    fault = os.environ.get("TOY_FAULT", "")
    yield product("odd", 3, 17, seed)
    if fault == "result":
        wrong = product("wrong", 2, 8, seed)
        yield Case("wrong", "toy", wrong.tensors, {"output": wrong.expected["output"] + 1}, tolerance=1e-3)
    if fault == "overrun":
        yield product("overrun", 2, 8, seed, overrun=3)
    if fault == "end":
        yield product("end", 2, 8, seed)
        os._exit(9)
    values = torch.zeros(2, 13, dtype=torch.float16)
    yield Case("refused", "toy", {"input": values}, {"output": values}, error="hidden is 13")
    if scale is Scale.FULL:
        yield product("with a workspace", 5, 64, seed, workspace=1000)


def companies(seed: int, requests: int) -> Iterator[Company]:
    """Row 1 alone and as the last of `requests`; TOY_FAULT=company: compared with another row."""
    among = product("among", requests, 24, seed)
    rows = slice(requests - 1, requests)
    alone = Case(
        "alone",
        "toy",
        {"input": among.tensors["input"][rows].clone()},
        {"output": among.expected["output"][rows]},
    )
    place = 0 if os.environ.get("TOY_FAULT") == "company" else requests - 1
    yield Company("one row", alone, among, {"output": (torch.tensor([0]), torch.tensor([place]))})
