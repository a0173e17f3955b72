"""Codes and scales of a quantized checkpoint, put together for the graph's weights, unchanged.

A weight of the fused graph is made of slices of parameters (its origins), such as packed query, key and value; its
codes are theirs one after the other. What was computed into a weight on the way (`folded`) makes it another one than
the checkpoint's: that is refused, as is whatever does not mean the very numbers that the graph holds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from calibration.checkpoints.reading import QuantizedCheckpoint
from calibration.linear_layers import LinearLayer
from calibration.schemes import Quantized, Scheme, dequantize
from model_repo.runtime.errors import BadInput
from pipeline.fuse.weights import Origin, read_origin

Array = npt.NDArray[Any]

_NEAR = 1e-5
"""Of the largest number of a weight: what float32 may differ by."""


def imported(
    layers: Sequence[LinearLayer], checkpoint: Mapping[str, Quantized], formats: frozenset[str]
) -> dict[str, Quantized]:
    """The quantized weight of each layer that the checkpoint has quantized whole, by the weight's name.

    `formats`: of weights, that the recipe's precision computes with. Raises BadInput for another format, for slices
    of different schemes, and for weights that are no longer the checkpoint's.
    """
    found = {}
    for layer in layers:
        origins = read_origin(layer.weight)
        if not origins or not all(origin.parameter in checkpoint for origin in origins):
            continue
        joined = _joined([_slice(checkpoint[origin.parameter], origin) for origin in origins], layer.name)
        if joined.scheme.format not in formats:
            raise BadInput(
                f"the checkpoint's weight {layer.name} is {joined.scheme}; the recipe's precision takes "
                f"{' or '.join(sorted(formats))}"
            )
        weight = layer.read()
        meant = dequantize(joined) if joined.codes.shape == weight.shape else None
        if meant is None or not np.allclose(meant, weight, rtol=0, atol=_NEAR * float(np.abs(weight).max())):
            folded = sorted({name for origin in origins for name in origin.folded})
            because = f": {', '.join(folded)} was computed into it" if folded else ""
            raise BadInput(
                f"{layer.name} is not what the checkpoint holds{because}; build it from that checkpoint, or quantize "
                "the float model"
            )
        found[layer.name] = joined
    if not found:
        raise BadInput(
            "the algorithm 'checkpoint' takes codes from a quantized checkpoint, and none of the graph's weights comes "
            "from one; choose another algorithm"
        )
    return found


def input_scales(layers: Sequence[LinearLayer], checkpoint: QuantizedCheckpoint) -> dict[str, float]:
    """Fixed scales of activations that the checkpoint brings, by the name of the tensor that `layers` multiply.

    Weights that read one tensor may have scales of their own (query, key and value); the largest covers what each of
    them covers. A tensor that some weight has no scale for is left out. Raises BadInput for a scale that is no positive
    number.
    """
    found: dict[str, float] = {}
    lacking: set[str] = set()
    for layer in layers:
        name = layer.inputs.name or ""
        for origin in read_origin(layer.weight):
            scale = checkpoint.input_scale(origin.parameter)
            if scale is None:
                lacking.add(name)
                continue
            if not 0 < scale < math.inf:
                raise BadInput(
                    f"the checkpoint's input_scale of {origin.parameter} is {scale}; it must be finite and above zero"
                )
            found[name] = max(scale, found.get(name, 0.0))
    return {name: scale for name, scale in found.items() if name not in lacking}


def _slice(whole: Quantized, origin: Origin) -> Quantized:
    """The rows of a parameter that the slice holds; a scale of the tensor becomes one of each row."""
    rows = slice(*(origin.rows or (0, len(whole.codes))))
    scales, zeros, scheme = whole.scales, whole.zero_points, whole.scheme
    if scheme.granularity == "tensor":
        scales = np.full(len(whole.codes), scales, np.float32)
        zeros = None if zeros is None else np.full(len(whole.codes), zeros, np.int32)
        scheme = Scheme(scheme.format, "channel", symmetric=scheme.symmetric)
    return replace(
        whole,
        codes=whole.codes[rows],
        scales=scales[rows],
        zero_points=None if zeros is None else zeros[rows],
        scheme=scheme,
        axis=0 if scheme.granularity == "channel" else 1,
    )


def _joined(parts: Sequence[Quantized], name: str) -> Quantized:
    """Slices one after the other. Raises BadInput unless they have one format and granularity."""
    first = parts[0]
    kinds = {
        (part.scheme.format, part.scheme.granularity, part.scheme.block, part.tensor_scale) for part in parts
    }
    if len(kinds) > 1:
        raise BadInput(
            f"{name} is made of weights that the checkpoint quantizes in different ways; disable its fusion"
        )
    zeros = None
    if any(part.zero_points is not None for part in parts):
        zeros = np.concatenate([_zeros(part) for part in parts])
    return replace(
        first,
        codes=np.concatenate([part.codes for part in parts]),
        scales=np.concatenate([part.scales for part in parts]),
        zero_points=zeros,
        scheme=replace(first.scheme, symmetric=zeros is None),
    )


def _zeros(part: Quantized) -> npt.NDArray[np.int32]:
    return np.zeros(part.scales.shape, np.int32) if part.zero_points is None else part.zero_points
