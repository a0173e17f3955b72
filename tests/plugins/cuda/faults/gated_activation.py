"""Faults that the cases of `gated_activation` and `activation` must find; those of rows.cuh are with the norms."""

from __future__ import annotations

from tests.plugins.cuda.mutation import Fault

KERNEL = "include/slipway/activations.cuh"
LAUNCHER = "csrc/activations.cu"

DEFINES = ("SLIPWAY_ONLY_FLOAT16",)

FAULTS = [
    Fault(
        "gate and up exchanged",
        KERNEL,
        "x[i] = activated(kind, gated ? a : a + b);\n      if (gated) x[i] *= b;",
        "x[i] = activated(kind, gated ? b : a + b);\n      if (gated) x[i] *= a;",
    ),
    Fault("up is not multiplied", KERNEL, "      if (gated) x[i] *= b;\n", ""),
    Fault("up is added to the gate", KERNEL, "gated ? a : a + b", "a + b"),
    Fault(
        "bias after the function",
        KERNEL,
        "x[i] = activated(kind, gated ? a : a + b);",
        "x[i] = activated(kind, a) + (gated ? 0.f : b);",
    ),
    Fault(
        "up is half a row off",
        KERNEL,
        "p.gated ? begin + p.columns : p.bias",
        "p.gated ? begin + p.columns / 2 : p.bias",
    ),
    Fault("rows of the output's stride", KERNEL, "row * p.columns * (p.gated ? 2 : 1)", "row * p.columns"),
    Fault(
        "plain rows of twice the stride", KERNEL, "row * p.columns * (p.gated ? 2 : 1)", "row * p.columns * 2"
    ),
    Fault(
        "the bias of the first chunk",
        KERNEL,
        "read_chunk(second + int64_t(chunk) * kChunk,",
        "read_chunk(second + (gated ? int64_t(chunk) * kChunk : 0),",
    ),
    Fault("the sigmoid's sign", KERNEL, "__expf(-t)", "__expf(t)"),
    Fault("tanh's argument without its factor 2", KERNEL, "1.5957691f", "0.7978846f"),
    Fault("the square for the cube", KERNEL, "0.044715f * x * x * x", "0.044715f * x * x"),
    Fault("erf of x", KERNEL, "erff(x * 0.70710678f)", "erff(x)"),
    Fault("gelu without its half", KERNEL, "return 0.5f * x * (1.f + erff", "return x * (1.f + erff"),
    Fault("tanh for silu", KERNEL, "kind == Activation::kSilu ? x :", "kind == Activation::kGeluErf ? x :"),
    Fault("always silu", LAUNCHER, 'p.kind = Activation(a.integer("activation"));', ""),
    Fault("no bias", LAUNCHER, 'if (!gated) p.bias = a.data<const T>("bias");', ""),
    Fault("never gated", LAUNCHER, "p.gated = gated;", "p.gated = false;"),
    Fault(
        "long rows in chunks when ragged",
        KERNEL,
        "kForm != RowForm::kReread || in_chunks(p.columns)",
        "p.columns > 0",
    ),
    Fault("the cubic term", KERNEL, "0.044715f", "0.144715f"),
]
