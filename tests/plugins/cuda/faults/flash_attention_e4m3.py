"""Faults in what `flash_attention` does for E4M3 alone."""

from __future__ import annotations

import torch

from plugins.cuda.case import Case
from tests.plugins.cuda.mutation import Fault

KERNEL = "include/slipway/flash_attention.cuh"
MMA = "include/slipway/attention_mma.cuh"

OPERATOR = "flash_attention"
COMPUTE_CAPABILITY = 89
DEFINES = ("SLIPWAY_MAX_HEAD_SIZE=64", "SLIPWAY_ONLY_FLOAT16")
LEFT_OUT = ("flash_attention_half.cu",)
FAULTS = [
    Fault("values not scaled", KERNEL, "end.inverse * value_scale", "end.inverse"),
    Fault(
        "E4M3: even columns for odd ones",
        MMA,
        "__byte_perm(v[2], v[3], 0x7531)",
        "__byte_perm(v[2], v[3], 0x6420)",
    ),
    Fault(
        "E4M3: columns not interleaved",
        KERNEL,
        "{pack<Out>(x0, y0), pack<Out>(x1, y1)}",
        "{pack<Out>(x0, x1), pack<Out>(y0, y1)}",
    ),
    Fault("queries not scaled", KERNEL, "scale *= p.query_scale[head];", ";"),
    Fault("keys scaled as another head", KERNEL, "p.key_scale[kv_head]", "p.key_scale[0] * 2.f"),
    Fault(
        "probabilities not of the same keys as values",
        MMA,
        "pack_e4m3(x[h], x[h + 1], y[h], y[h + 1])",
        "pack_e4m3(x[h], y[h], x[h + 1], y[h + 1])",
    ),
]


def chosen(case: Case) -> bool:
    """The E4M3 case."""
    return case.tensors["query"].dtype == torch.float8_e4m3fn
