"""How much a model's outputs suffer when one layer is quantized, layer by layer, on held-out data.

The loss of a decoder is the mean over positions of sum_v p(v) (log p(v) - log q(v)) in nats, p the float model's
next-token distribution, q that with the layer's weight rounded; of other models it is the mean over rows of the squared
difference of the outputs over the squared norm of the row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from model_repo.runtime.contract import LOGITS
from model_repo.runtime.errors import BadInput

from .activations import graph_session, observable
from .allocation import Option
from .batches import Batch
from .linear_layers import LinearLayer, linear_layers
from .report.language import log_probabilities
from .schemes import Quantized, Scheme, dequantize, quantize, scales_shape

Array = npt.NDArray[Any]
Rounder = Callable[[Array, Scheme], Quantized]

SCALE_BYTES = 4
"""Scales are float32 in the graph."""


class Swapping:
    """A graph in one session, whose linear weights can be exchanged for a run, and the float model's outputs."""

    def __init__(self, graph: Path, batches: Iterable[Batch], *, threads: int = 0) -> None:
        """Runs the float model on all batches. Raises BadInput as `observable` does, and without linear layers."""
        model = observable(graph)
        self.layers: dict[str, LinearLayer] = {layer.name: layer for layer in linear_layers(model)}
        if not self.layers:
            raise BadInput(f"{graph} has no linear layers; there is nothing to choose precisions for")
        known = {value.name for value in model.graph.inputs}
        for layer in self.layers.values():
            model.graph.inputs.append(layer.weight)  # an initializer that is an input too may be fed
        self._session: ort.InferenceSession = graph_session(model, graph.parent, threads)
        self._outputs = [value.name or "" for value in model.graph.outputs]
        self._feeds = [
            {name: array for name, array in batch.feeds.items() if name in known} for batch in batches
        ]
        self._wanted = [self._run(feeds, {}) for feeds in self._feeds]

    def loss(self, weights: Mapping[str, npt.NDArray[np.float32]]) -> float:
        """The loss with these weights [out, in] in place of the float ones."""
        given = {
            name: np.ascontiguousarray(array.T if self.layers[name].transposed else array)
            for name, array in weights.items()
        }
        total, rows = 0.0, 0
        for feeds, wanted in zip(self._feeds, self._wanted, strict=True):
            for name, before, after in zip(self._outputs, wanted, self._run(feeds, given), strict=True):
                losses = _divergence(before, after) if name == LOGITS.name else _distance(before, after)
                total += float(losses.sum())
                rows += losses.size
        return total / rows

    def _run(self, feeds: Mapping[str, Array], weights: Mapping[str, Array]) -> list[Array]:
        results: list[Array] = self._session.run(self._outputs, {**feeds, **weights})
        return results


def sensitivities(
    swapping: Swapping,
    schemes: Mapping[str, Scheme | None],
    *,
    rounder: Rounder = quantize,
    advanced: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, list[Option]]:
    """For each layer what each precision costs: bytes, and the loss when this layer alone has it.

    `schemes`: precision to the scheme of its weights; None leaves them in float32. `advanced` is told runs done.
    """
    found: dict[str, list[Option]] = {}
    total = len(swapping.layers) * len(schemes)
    for name, layer in swapping.layers.items():
        weight = layer.read()
        options: list[Option] = []
        for precision, scheme in schemes.items():
            advanced(len(found) * len(schemes) + len(options), total)
            loss = 0.0 if scheme is None else swapping.loss({name: dequantize(rounder(weight, scheme))})
            options.append(Option(precision, weight_bytes(weight.shape, scheme), loss))
        found[name] = options
    advanced(total, total)
    return found


def loss_of(
    swapping: Swapping,
    precisions: Mapping[str, str],
    schemes: Mapping[str, Scheme | None],
    rounder: Rounder = quantize,
) -> float:
    """The loss when every layer has the precision that `precisions` gives it, measured."""
    weights = {}
    for name, precision in precisions.items():
        scheme = schemes[precision]
        if scheme is not None:
            weights[name] = dequantize(rounder(swapping.layers[name].read(), scheme))
    return swapping.loss(weights)


def weight_bytes(shape: tuple[int, ...], scheme: Scheme | None) -> int:
    """Bytes of a weight [out, in] in the graph: codes and scales (and zero points of the codes' width)."""
    size = int(np.prod(shape))
    if scheme is None:
        return 4 * size
    scales = int(np.prod(scales_shape(shape, scheme)))
    zeros = 0 if scheme.symmetric else -(-scales * scheme.bits // 8)
    return -(-size * scheme.bits // 8) + SCALE_BYTES * scales + zeros


def _divergence(before: Array, after: Array) -> npt.NDArray[np.float64]:
    """KL of each row, [rows]."""
    wanted, found = log_probabilities(before), log_probabilities(after)
    rows: npt.NDArray[np.float64] = (np.exp(wanted) * (wanted - found)).sum(axis=-1)
    return rows.ravel()


def _distance(before: Array, after: Array) -> npt.NDArray[np.float64]:
    """Squared difference of each row over its squared norm, [rows]."""
    wide = before.astype(np.float64)
    wide = wide.reshape(-1, wide.shape[-1]) if wide.ndim else wide.reshape(1, 1)
    gap = np.square(after.reshape(wide.shape) - wide).sum(axis=-1)
    ratio: npt.NDArray[np.float64] = gap / np.maximum(np.square(wide).sum(axis=-1), np.finfo(np.float64).tiny)
    return ratio
