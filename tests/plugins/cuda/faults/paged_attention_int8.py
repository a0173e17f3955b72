"""Faults in what `paged_attention` does with 8-bit pools."""

from __future__ import annotations

import torch

from plugins.cuda.case import Case
from tests.plugins.cuda.mutation import Fault

from .paged_attention import DEFINES as DEFINES
from .paged_attention import KERNEL, LAUNCHER, LOADER, POOL, ROWS

OPERATOR = "paged_attention"
LEFT_OUT = tuple(
    f"paged_attention_{name}.cu" for name in ("fp16", "fp16_fp8", "bf16", "bf16_int8", "bf16_fp8")
)


def chosen(case: Case) -> bool:
    """Pools of int8 and queries of float16."""
    return case.tensors["key_cache"].dtype == torch.int8


FAULTS = [
    Fault("columns of neighbours exchanged", POOL, "0x3120", "0x3210"),
    Fault("query in the order of 16-bit keys", POOL, "(k8Bit ? 4 * t : 2 * t)", "(2 * t)"),
    Fault("output in the order of 16-bit values", POOL, "k8Bit ? 4 * t + 2 * i + block :", "false ? 0 :"),
    Fault("keys of the first chunk", POOL, "step * 4 / kKeySteps + lane / 8", "lane / 8 % 2"),
    Fault(
        "values as wide as keys",
        LOADER,
        "head_row, column, p_.value_dim, valid",
        "head_row, column, p_.key_dim, valid",
    ),
    Fault(
        "the first 8 bytes twice",
        LOADER,
        "from + (inside ? column + half : 0)",
        "from + (inside ? column : 0)",
    ),
    Fault(
        "key scales for values",
        LOADER,
        "from = of_keys ? p_.key_scale : p_.value_scale",
        "from = p_.key_scale",
    ),
    Fault(
        "scales of the first head",
        LOADER,
        "from + slot * p_.limits.kv_heads + kv_head_, valid",
        "from + slot * p_.limits.kv_heads, valid",
    ),
    Fault(
        "scales of the block before",
        LOADER,
        "of_keys = thread < kKeys;\n      const auto [slot, valid] = source(r);",
        "of_keys = thread < kKeys;\n      const auto [slot, valid] = source(max(r - 16, 0));",
    ),
    Fault(
        "every second key's scale",
        KERNEL,
        "s[n][0] *= scale[0], s[n][1] *= scale[1]",
        "s[n][0] *= scale[0], s[n][1] *= scale[0]",
    ),
    Fault(
        "probabilities moved up and not down",
        ROWS,
        "if (p.token_scales) return 1.f / kProbabilityLift;",
        "if (p.token_scales) return 1.f;",
    ),
    Fault(
        "one key scale for all heads",
        LAUNCHER,
        'p.key_scale_stride = scale_stride(a, "k_scale"), '
        'p.value_scale_stride = scale_stride(a, "v_scale");\n  p.cu_seqlens',
        "p.key_scale_stride = 0, p.value_scale_stride = 0;\n  p.cu_seqlens",
    ),
    Fault("no value scale", ROWS, "p.value_scale == nullptr ? 1.f :", "true ? 1.f :"),
]
