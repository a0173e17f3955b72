"""Small graphs for the rules' tests, and an executor that shares no code with what is tested."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
from onnx import numpy_helper, parser, shape_inference
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from pipeline.fuse.weights import Origin, write_origin
from plugins.reference.elementwise import skip_rms_normalization, swiglu
from plugins.reference.paged_attention import PagedAttentionNode
from plugins.schemas import DOMAIN, PAGED_ATTENTION


def graph(text: str, opset: int = 24, **weights: np.ndarray) -> ir.Model:
    """A model of onnx's text form, whose inputs named in `weights` become constants of an origin of their own.

    Weights are named `<name>`, their parameter `model.<name>`; constants of fewer than 8 elements have none.
    """
    head = f'<ir_version: 11, opset_import: ["" : {opset}, "{DOMAIN}" : 1]>\n'
    proto = parser.parse_model(head + text)
    for name, array in weights.items():
        (place,) = (i for i, value in enumerate(proto.graph.input) if value.name == name)
        del proto.graph.input[place]
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
    model = ir.from_proto(shape_inference.infer_shapes(proto, data_prop=True))
    for name, array in weights.items():
        if array.size >= 8:
            write_origin(model.graph.initializers[name], [Origin(f"model.{name}", None, transposed=False)])
    return model


def run(model: ir.Model, **inputs: np.ndarray) -> dict[str, np.ndarray]:
    """Outputs by name, from onnx's reference implementation and the float32 references of `plugins`."""
    ir.external_data.load_to_model(model)
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto)
    names = [value.name or "" for value in model.graph.outputs]
    evaluator = ReferenceEvaluator(proto, new_ops=[SkipRMSNormalization, SwiGLU, PagedAttention])
    return dict(zip(names, evaluator.run(None, inputs), strict=True))


def operators(model: ir.Model) -> Counter[str]:
    """How many nodes of each operator there are."""
    return Counter(node.op_type for node in model.graph)


def assert_same(before: dict[str, np.ndarray], after: dict[str, np.ndarray], tolerance: float = 2e-6) -> None:
    """The same outputs with the same numbers, up to `tolerance` of the largest."""
    assert list(before) == list(after)
    for name, expected in before.items():
        assert expected.shape == after[name].shape
        np.testing.assert_allclose(
            after[name],
            expected,
            rtol=0,
            atol=tolerance * max(1.0, float(np.abs(expected).max())),
            err_msg=name,
        )


def random(*shape: int, seed: int = 0) -> np.ndarray:
    """Standard normal float32 numbers."""
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


class SkipRMSNormalization(OpRun):
    """`plugins.reference` as an operator of onnx's evaluator."""

    op_domain = DOMAIN

    def _run(self, first: Any, skip: Any, weight: Any, **_: Any) -> tuple[np.ndarray, ...]:
        results = skip_rms_normalization(*map(torch.tensor, (first, skip, weight)), self.epsilon)
        return tuple(result.numpy() for result in results)[: len(self.onnx_node.output)]


class SwiGLU(OpRun):
    """`plugins.reference` as an operator of onnx's evaluator."""

    op_domain = DOMAIN

    def _run(self, gate_up: Any, **_: Any) -> tuple[np.ndarray]:
        return (swiglu(torch.tensor(gate_up)).numpy(),)


class PagedAttention(OpRun):
    """`plugins.reference` as an operator of onnx's evaluator."""

    op_domain = DOMAIN

    def _run(self, *arrays: Any, **_: Any) -> tuple[np.ndarray, ...]:
        names = (parameter.name for parameter in PAGED_ATTENTION.inputs)
        given = {
            name: torch.tensor(array) for name, array in zip(names, arrays, strict=False) if array is not None
        }
        attributes = {
            attribute.name: getattr(self, attribute.name, attribute.default)
            for attribute in PAGED_ATTENTION.attributes
        }
        results = PagedAttentionNode(**attributes)(given)
        return tuple(result.numpy() for result in results)[: len(self.onnx_node.output)]
