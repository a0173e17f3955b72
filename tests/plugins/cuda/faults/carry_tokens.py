"""Faults that the cases of `carry_tokens` must find."""

from __future__ import annotations

from tests.plugins.cuda.mutation import Fault

KERNEL = "include/slipway/carry_tokens.cuh"
LAUNCHER = "csrc/carry_tokens.cu"

FAULTS = [
    Fault("a negative row is read", KERNEL, "if (row < 0 || row >= p.rows) return;", "if (row >= p.rows) return;"),
    Fault("a row beyond the last", KERNEL, "if (row < 0 || row >= p.rows) return;", "if (row < 0) return;"),
    Fault("the last row stays", KERNEL, "row >= p.rows) return", "row >= p.rows - 1) return"),
    Fault("row 0 stays", KERNEL, "if (row < 0 ||", "if (row <= 0 ||"),
    Fault("no token is a token", KERNEL, "token < 0 ? 0 : token", "token"),
    Fault("threads beyond the tokens", KERNEL, "  if (t >= p.tokens) return;\n", ""),
    Fault("every block does the first one's work", KERNEL, "int(blockIdx.x) * kCarryTokensThreads + ", ""),
    Fault("the last block is left out", LAUNCHER, "(p.tokens + kCarryTokensThreads - 1) /", "p.tokens /"),
    Fault("rows in the order of places", KERNEL, "p.sampled[row]", "p.sampled[t < p.rows ? t : row]"),
]  # fmt: skip
