"""Bias correction of convolutions: their biases take up what rounding of weights shifts in the mean of each channel.

The formula is in `calibration/algorithms/bias_correction.py`; means of what convolutions read are those of the float
model on calibration data. Padding counts as the mean, as in the paper.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from calibration.activations import collect
from calibration.algorithms.bias_correction import corrected_bias
from calibration.batches import Batch
from calibration.linear_layers import is_weight
from calibration.schemes import dequantize, quantize

from .convolutions import Convolution, convolutions
from .nodes import constant
from .precisions import LayerSchemes

Means = Mapping[str, npt.NDArray[np.float64]]


def channel_means(
    graph: Path, names: Sequence[str], batches: Iterable[Batch], *, threads: int = 0
) -> dict[str, npt.NDArray[np.float64]]:
    """The mean of each channel (axis 1) of the tensors `names`, over all batches and places. Raises BadInput."""
    sums: dict[str, Any] = dict.fromkeys(names, 0.0)
    counts = dict.fromkeys(names, 0)
    for found in collect(graph, names, batches, threads=threads):
        for name, array in found.items():
            others = tuple(axis for axis in range(array.ndim) if axis != 1)
            sums[name] = sums[name] + array.sum(axis=others, dtype=np.float64)
            counts[name] += array.size // array.shape[1]
    return {name: sums[name] / counts[name] for name in names}


def correct_biases(model: ir.Model, schemes: Mapping[str, LayerSchemes], means: Means) -> list[str]:
    """Corrects the bias of each convolution that `schemes` names, in place, before its weight is rounded; one without
    gets one. Gives the weights' names. Biases that are computed, or that others read, are left alone."""
    done = []
    for layer in convolutions(model):
        wanted = schemes.get(layer.name)
        if wanted is None or wanted.weight is None:
            continue
        bias = layer.node.inputs[2] if len(layer.node.inputs) > 2 else None
        if bias is not None and not (is_weight(bias) and len(bias.uses()) == 1):
            continue
        weight = layer.read()
        before = np.zeros(len(weight), np.float32)
        if bias is not None:
            assert bias.const_value is not None
            before = bias.const_value.numpy().astype(np.float32)
        rounded = dequantize(quantize(weight, wanted.weight))
        numbers = _corrected(layer, weight, rounded, before, means[layer.inputs.name or ""])
        made = constant(model.graph, f"{layer.name}.corrected_bias", numbers, ir.DataType.FLOAT, bias)
        layer.node.resize_inputs(3)
        layer.node.replace_input_with(2, made)
        done.append(layer.name)
    return done


def _corrected(
    layer: Convolution,
    weight: npt.NDArray[np.float32],
    rounded: npt.NDArray[np.float32],
    bias: npt.NDArray[np.float32],
    mean: npt.NDArray[np.float64],
) -> npt.NDArray[np.float32]:
    """The bias [out], group by group: each reads channels of its own."""
    groups = layer.node.attributes.get_int("group", 1)
    places = int(np.prod(weight.shape[2:]))
    parts = zip(*(np.split(array, groups) for array in (weight, rounded, bias, mean)), strict=True)
    return np.concatenate(
        [
            corrected_bias(
                part.reshape(len(part), -1),
                codes.reshape(len(part), -1),
                own,
                np.repeat(expected, places),
            )
            for part, codes, own, expected in parts
        ]
    )
