"""ONNX Runtime's own quantizers on a decoder's fused graph: dynamic, static and weight-only, for `bench.quantizers`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import onnx
import onnx_ir as ir
import onnxruntime as ort
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType
from onnxruntime.quantization import quantize_dynamic as ort_dynamic
from onnxruntime.quantization import quantize_static as ort_static
from onnxruntime.quantization.matmul_nbits_quantizer import (
    DefaultWeightOnlyQuantConfig,
    HQQWeightOnlyQuantConfig,
    MatMulNBitsQuantizer,
)

from calibration.activations import observable
from calibration.batches import Batch
from calibration.linear_layers import linear_layers
from plugins.cpu.build import registered

Make = Callable[[Path, Path, Iterable[Batch]], Path]
PRODUCTS = ["MatMul", "Gather"]
BLOCK = 32


def plain_graph(fused: Path, path: Path) -> Path:
    """The fused graph in one file, its head a MatMul with a weight of its own: ONNX Runtime's quantizers take those."""
    model = observable(fused)
    for layer in linear_layers(model):
        if layer.node.op_type != "Gemm" or layer.transposed or layer.bias is not None:
            continue
        weight = ir.Value(
            name=f"{layer.name}.turned",
            type=layer.weight.type,
            const_value=ir.tensor(layer.read().T.copy(), name=f"{layer.name}.turned"),
        )
        model.graph.register_initializer(weight)
        product = ir.node("MatMul", [layer.inputs, weight], name=f"{layer.node.name}.product")
        model.graph.insert_before(layer.node, product)
        out = layer.node.outputs[0]
        product.outputs[0].type, product.outputs[0].shape = out.type, out.shape
        out.replace_all_uses_with(product.outputs[0], replace_graph_outputs=True)
        name, out.name = out.name, None
        product.outputs[0].name = name
        model.graph.remove(layer.node, safe=True)
    ir.external_data.load_to_model(model)
    ir.save(model, path)
    return path


class Reader(CalibrationDataReader):  # type: ignore[misc]  # ONNX Runtime's package has no types
    """Batches, as the calibrators ask for them."""

    def __init__(self, batches: Iterable[Batch], names: set[str]) -> None:
        self._feeds: Iterator[dict[str, Any]] = (
            {name: array for name, array in batch.feeds.items() if name in names} for batch in batches
        )

    def get_next(self) -> dict[str, Any] | None:
        """The next batch's inputs; None after the last."""
        return next(self._feeds, None)


def dynamic(graph: Path, path: Path, batches: Iterable[Batch]) -> Path:
    """A scale a call for activations, one an output for weights."""
    ort_dynamic(graph, path, op_types_to_quantize=PRODUCTS, per_channel=True, weight_type=QuantType.QInt8)
    return path


def static(method: CalibrationMethod, activations: QuantType) -> Make:
    """QuantizeLinear and DequantizeLinear with calibrated scales; inputs of other operators stay in floats."""

    def make(graph: Path, path: Path, batches: Iterable[Batch]) -> Path:
        inputs = {value.name for value in onnx.load(graph, load_external_data=False).graph.input}
        plain = ort.SessionOptions

        def options() -> ort.SessionOptions:
            made = plain()
            registered(made)
            return made

        with mock.patch.object(ort, "SessionOptions", options):  # the calibrator opens its own session
            ort_static(
                graph,
                path,
                Reader(batches, inputs),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=PRODUCTS,
                per_channel=True,
                activation_type=activations,
                weight_type=QuantType.QInt8,
                calibrate_method=method,
                extra_options={
                    "ActivationSymmetric": activations == QuantType.QInt8,
                    "QDQOpTypePerChannelSupportToAxis": {},
                },
            )
        return path

    return make


def weight_only(config: Any) -> Make:
    """MatMulNBits and GatherBlockQuantized, 4 bit."""

    def make(graph: Path, path: Path, batches: Iterable[Batch]) -> Path:
        quantizer = MatMulNBitsQuantizer(onnx.load(graph), algo_config=config)
        quantizer.process()
        quantizer.model.save_model_to_file(str(path))
        return path

    return make


QUANTIZERS: Mapping[str, Mapping[str, Make]] = {
    "int8": {
        "dynamic": dynamic,
        "static, min-max": static(CalibrationMethod.MinMax, QuantType.QInt8),
        "static, min-max, asymmetric": static(CalibrationMethod.MinMax, QuantType.QUInt8),
    },
    "int4-32": {
        "nearest": weight_only(
            DefaultWeightOnlyQuantConfig(BLOCK, is_symmetric=True, op_types_to_quantize=tuple(PRODUCTS))
        ),
        "nearest, asymmetric": weight_only(
            DefaultWeightOnlyQuantConfig(BLOCK, is_symmetric=False, op_types_to_quantize=tuple(PRODUCTS))
        ),
        "hqq, table in floats": weight_only(
            HQQWeightOnlyQuantConfig(BLOCK, op_types_to_quantize=("MatMul",))
        ),
    },
}
"""Scheme -> row -> what makes the graph."""
