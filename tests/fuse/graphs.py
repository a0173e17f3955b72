"""Small graphs for the rules' tests, and an executor that shares no code with what is tested."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import torch
from onnx import numpy_helper, parser, shape_inference
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from pipeline.fuse.rule import Rule, RuleReport
from pipeline.fuse.weights import Origin, write_origin
from pipeline.targets import get_target
from plugins.cpu.build import registered
from plugins.reference import packed_texts
from plugins.reference.elementwise import (
    bias_gelu,
    geglu,
    skip_layer_normalization,
    skip_rms_normalization,
    swiglu,
)
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
    own = [SkipRMSNormalization, SwiGLU, SkipLayerNormalization, BiasGelu, GeGLU, PagedAttention]
    own += [PackedLayout, PackedAttention, PackedPool, EmbedLayerNormalization]
    evaluator = ReferenceEvaluator(proto, new_ops=own)
    return dict(zip(names, evaluator.run(None, inputs), strict=True))


def run_on_cpu(model: ir.Model, **inputs: np.ndarray) -> dict[str, np.ndarray]:
    """Outputs by name, from ONNX Runtime with the CPU operators; `model` is lowered for it in place."""
    get_target("onnxruntime").lower(model, "encoder")
    ir.external_data.load_to_model(model)
    names = [value.name or "" for value in model.graph.outputs]
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    registered(options)
    session = ort.InferenceSession(
        ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return dict(zip(names, session.run(None, inputs), strict=True))


def assert_fuses(
    rules: Sequence[Rule],
    model: ir.Model,
    wanted: dict[str, int],
    tolerance: float = 2e-6,
    **inputs: np.ndarray,
) -> list[RuleReport]:
    """The rules leave the operators `wanted` and the same numbers, in onnx's evaluator and in ONNX Runtime."""
    before = run(model, **inputs)
    reports = [rule.apply(model) for rule in rules]
    assert operators(model) == wanted
    assert_same(before, run(model, **inputs), tolerance)
    assert_same(before, run_on_cpu(model, **inputs), 5 * tolerance)
    return reports


def assert_left_alone(rule: Rule, model: ir.Model, reason: str | None) -> None:
    """The rule changes no operator; its one near miss gives the reason (None: it is no near miss)."""
    before = operators(model)
    report = rule.apply(model)
    assert report.matched == 0
    assert operators(model) == before
    if reason is None:
        assert report.near_misses == ()
    else:
        (miss,) = report.near_misses
        assert reason in miss.reason


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


class PackedLayout(OpRun):
    """`plugins.reference` as an operator of onnx's evaluator."""

    op_domain = DOMAIN

    def _run(self, mask: Any, **_: Any) -> tuple[np.ndarray, ...]:
        return tuple(result.numpy() for result in packed_texts.packed_layout(torch.tensor(mask)))


class PackedAttention(OpRun):
    """`plugins.reference` as an operator of onnx's evaluator; of packed query, key and value alone."""

    op_domain = DOMAIN

    def _run(
        self, rows: Any, key: Any, value: Any, cu_seqlens: Any, *others: Any, **_: Any
    ) -> tuple[np.ndarray]:
        assert key is None
        assert value is None
        assert not others
        q, k, v = torch.tensor(rows).unflatten(1, (3, self.num_heads, -1)).unbind(1)
        scale, left, right = self.scale, self.left_window, self.right_window
        output = packed_texts.packed_attention(
            q, k, v, torch.tensor(cu_seqlens), scale=scale, left=left, right=right
        )
        return (output.flatten(1).numpy(),)


class PackedPool(OpRun):
    """`plugins.reference` as an operator of onnx's evaluator."""

    op_domain = DOMAIN

    def _run(self, rows: Any, cu_seqlens: Any, **_: Any) -> tuple[np.ndarray]:
        return (packed_texts.packed_pool(torch.tensor(rows), torch.tensor(cu_seqlens), self.kind).numpy(),)


class EmbedLayerNormalization(OpRun):
    """`plugins.reference` as an operator of onnx's evaluator."""

    op_domain = DOMAIN

    def _run(self, *inputs: Any, **_: Any) -> tuple[np.ndarray, ...]:
        given = [None if array is None else torch.tensor(array) for array in inputs]
        ids, table, second_ids, second_table, weight, bias, *third = [*given, None][: max(6, len(given))]
        lookups = [(ids.long(), table), (second_ids.long(), second_table)]
        if third and third[0] is not None:
            lookups.append((third[0].long(), third[1]))
        results = packed_texts.embed_layer_normalization(lookups, weight, bias, self.epsilon)
        return tuple(result.numpy() for result in results)[: len(self.onnx_node.output)]


class SwiGLU(OpRun):
    """`plugins.reference` as an operator of onnx's evaluator."""

    op_domain = DOMAIN

    def _run(self, gate_up: Any, **_: Any) -> tuple[np.ndarray]:
        return (swiglu(torch.tensor(gate_up)).numpy(),)


class SkipLayerNormalization(OpRun):
    """`plugins.reference` as an operator of onnx's evaluator."""

    op_domain = DOMAIN

    def _run(
        self, first: Any, skip: Any, weight: Any, bias: Any = None, input_bias: Any = None, **_: Any
    ) -> tuple[np.ndarray, ...]:
        given = [None if x is None else torch.tensor(x) for x in (first, skip, weight, bias, input_bias)]
        results = skip_layer_normalization(*given, self.epsilon)  # type: ignore[arg-type]
        return tuple(result.numpy() for result in results)[: len(self.onnx_node.output)]


class BiasGelu(OpRun):
    """`plugins.reference` as an operator of onnx's evaluator."""

    op_domain = DOMAIN

    def _run(self, x: Any, bias: Any, **_: Any) -> tuple[np.ndarray]:
        return (bias_gelu(torch.tensor(x), torch.tensor(bias), bool(self.tanh)).numpy(),)


class GeGLU(OpRun):
    """`plugins.reference` as an operator of onnx's evaluator."""

    op_domain = DOMAIN

    def _run(self, gate_up: Any, **_: Any) -> tuple[np.ndarray]:
        return (geglu(torch.tensor(gate_up), bool(self.tanh)).numpy(),)


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
