"""GPUs by name: the memory that comes with each, for plans made before one is at hand."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass

from model_repo.runtime.errors import BadInput

GIB = 2**30

GPU_GIB: Mapping[str, int] = {
    "a10": 24,
    "a30": 24,
    "a100-40": 40,
    "a100-80": 80,
    "l4": 24,
    "l40s": 48,
    "h100": 80,
    "h100-nvl": 94,
    "h200": 141,
    "b200": 180,
    "rtx3090": 24,
    "rtx4090": 24,
    "rtx5090": 32,
    "rtx6000-ada": 48,
    "rtx-pro-6000": 96,
}
"""GiB of memory by NVIDIA's data sheets, of chips that the kernels are compiled for (compute capability 8.0 and up)."""

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(GiB|GB|MiB)?", re.IGNORECASE)
_UNIT_BYTES = {"gib": GIB, "gb": 10**9, "mib": 2**20}


@dataclass(frozen=True)
class Gpu:
    """A device to plan for: what it was called, and the bytes of its memory."""

    name: str
    bytes: int


def gpu(text: str) -> Gpu:
    """A GPU by name (`h100`, `RTX 4090`) or by size (`24GiB`, `80 GB`, `24`: GiB). Raises BadInput."""
    name = re.sub(r"[\s_]+", "-", text.strip().lower())
    for known in (name, name.replace("rtx-", "rtx", 1), name.removeprefix("nvidia-")):
        if known in GPU_GIB:
            return Gpu(known, GPU_GIB[known] * GIB)
    size = _SIZE.fullmatch(text.strip())
    if size is not None and float(size[1]) > 0:
        return Gpu(text.strip(), int(float(size[1]) * _UNIT_BYTES[(size[2] or "GiB").lower()]))
    near = difflib.get_close_matches(name, GPU_GIB, n=1)
    raise BadInput(
        f"unknown GPU {text!r}{f'; did you mean {near[0]}?' if near else ''}; give a size such as 24GiB, or one of "
        f"{', '.join(GPU_GIB)}"
    )
