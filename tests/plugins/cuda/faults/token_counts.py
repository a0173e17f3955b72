"""Faults that the cases of `token_counts` must find."""

from __future__ import annotations

from tests.plugins.cuda.mutation import Fault

KERNEL = "include/slipway/token_counts.cuh"

FAULTS = [
    Fault("no barrier after the row is cleared", KERNEL, "  __syncthreads();\n", ""),
    Fault("the row is added to", KERNEL, "row[i] = 0;", "row[i] = row[i];"),
    Fault("the last token of the prompt was chosen", KERNEL, "if (i < chosen) next", "if (i < chosen - 1) next"),
    Fault("additions are lost", KERNEL, "} while (after != before);", "} while (false);"),
    Fault("the flag is a count", KERNEL, "next |= 0x8000;", "next |= 1;"),
    Fault("slot -1 is a slot", KERNEL, "if (slot < 0 || slot >= p.slots) return;", "if (slot >= p.slots) return;"),
    Fault("a slot beyond the table", KERNEL, "if (slot < 0 || slot >= p.slots) return;", "if (slot < 0) return;"),
    Fault("tokens beyond the vocabulary", KERNEL, "token < 0 || token >= p.vocab", "token < 0"),
    Fault("token -1", KERNEL, "token < 0 || token >= p.vocab", "token >= p.vocab"),
    Fault("tokens of the next request", KERNEL, "end = p.cu_tokens[request + 1]", "end = p.cu_tokens[request + 1] + 1"),
]  # fmt: skip
