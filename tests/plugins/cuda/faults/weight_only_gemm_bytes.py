"""Faults that the cases of `weight_only_gemm` with weights of 8 bits must find."""

from __future__ import annotations

from plugins.cuda.case import Case
from tests.plugins.cuda.mutation import Fault

OPERATOR = "weight_only_gemm"
KERNEL = "include/slipway/weight_only_gemm.cuh"
ROWS = "csrc/weight_only_gemm_launch.hpp"

DEFINES = ("SLIPWAY_ONLY_FLOAT16",)
LEFT_OUT = ("weight_only_gemm_int4.cu",)


def chosen(case: Case) -> bool:
    """Whether the case is not of int4 weights."""
    return not case.name.startswith("int4")


FAULTS = [
    Fault(
        "more of x is loaded than there is place",
        KERNEL,
        "if (chunks % kGemmThreads != 0 && number >= chunks) break;",
        "",
    ),
    Fault(
        "bytes exchanged",
        KERNEL,
        "        a[0][half] = out[0], a[0][half + 2] = out[1];\n      }",
        "        a[0][half + 2] = out[0], a[0][half] = out[1];\n      }",
    ),
    Fault(
        "no scales per channel",
        KERNEL,
        "from_float<T>(total * channel_scale + bias);\n    }\n  }\n};",
        "from_float<T>(total + bias);\n    }\n  }\n};",
    ),
    Fault(
        "splits' channels are not scaled",
        KERNEL,
        "static_cast<T*>(p.y)[i] = from_float<T>(total * channel_scale + bias);",
        "static_cast<T*>(p.y)[i] = from_float<T>(total + bias);",
    ),
    Fault("one tile of rows", ROWS, "(p.rows + Form::kRows - 1) / Form::kRows", "1"),
]
