"""onnx's own backend node tests, sent down our road one by one: fusion, lowering, compiled engine, numbers.

A node test is a graph of one node with inputs and expected outputs (https://onnx.ai/onnx/api/backend.html).
"""

from __future__ import annotations

import functools
import re
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx
import onnx.checker
import onnx.shape_inference
import onnx_ir as ir
import onnxruntime
from onnx.backend.test.case import node as onnx_node_tests
from onnx.backend.test.case.node import collect_testcases
from onnx.backend.test.case.test_case import TestCase
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, RuntimeException

from model_repo.runtime.errors import BadInput
from pipeline.fuse import fuse
from pipeline.graph import save_graph
from pipeline.recipe import FuseRecipe, TargetRecipe
from pipeline.targets import get_target
from plugins.cpu.build import registered

EMITTED = (
    "Abs", "Add", "And", "ArgMax", "Attention", "AveragePool", "BatchNormalization", "Cast", "Clip", "Concat",
    "Constant", "ConstantOfShape", "Conv", "Cos", "CumSum", "Div", "Einsum", "Equal", "Erf", "Exp", "Expand",
    "Flatten", "Gather", "GatherElements", "GatherND", "Gelu", "Gemm", "GlobalAveragePool", "Greater",
    "GreaterOrEqual", "GroupNormalization", "Identity", "InstanceNormalization", "IsNaN", "LayerNormalization",
    "Less", "LessOrEqual", "Log", "LogSoftmax", "MatMul", "Max", "MaxPool", "Min", "Mod", "Mul", "Neg", "Not",
    "OneHot", "Or", "Pad", "Pow", "RMSNormalization", "Range", "Reciprocal", "ReduceL2", "ReduceMax", "ReduceMean",
    "ReduceSum", "Relu", "Reshape", "Resize", "RotaryEmbedding", "ScatterElements", "ScatterND", "Shape", "Sigmoid",
    "Sin", "Slice", "Softmax", "Softplus", "Split", "Sqrt", "Squeeze", "Sub", "Swish", "Tanh", "TensorScatter",
    "Tile", "TopK", "Transpose", "Trilu", "Unsqueeze", "Where",
)  # fmt: skip
"""Standard operators that exported, fused or lowered graphs may hold."""

OPSET = 24
"""What Slipway exports. Node tests of an opset that is not released yet run as this one where onnx takes them."""
RELEASED = 26

HALF_STEP = 2.0**-9
"""More than the relative distance of neighbouring float16: onnx's vectors were rounded once, at another place."""

REFUSALS: Mapping[str, str] = {
    r"No Op registered for|Unrecognized attribute|is not allowed|expects|not in \[": "newer than opset 26",
    r"has unsupported type|fmod attribute must be": "newer than opset 26",
    r"Could not find an implementation|Failed to find kernel": "a type without a kernel in ONNX Runtime's CPU part",
    r"bound to different types|Type Error": "a type without a kernel in ONNX Runtime's CPU part",
}
"""What onnx's checker or ONNX Runtime says, as a pattern, and what that means."""

NO_ARRAYS = frozenset((
    onnx.TensorProto.BFLOAT16, onnx.TensorProto.FLOAT8E4M3FN, onnx.TensorProto.FLOAT8E4M3FNUZ,
    onnx.TensorProto.FLOAT8E5M2, onnx.TensorProto.FLOAT8E5M2FNUZ, onnx.TensorProto.FLOAT8E8M0,
    onnx.TensorProto.FLOAT4E2M1, onnx.TensorProto.UINT4, onnx.TensorProto.INT4, onnx.TensorProto.UINT2,
    onnx.TensorProto.INT2, onnx.TensorProto.STRING, onnx.TensorProto.COMPLEX64, onnx.TensorProto.COMPLEX128,
))  # fmt: skip
"""Types that numpy does not have: no input or output of an engine has one."""

DEVIATIONS: Mapping[str, str] = {
    "test_attention_4d_with_past_and_present_qk_matmul_bias_3d_mask_causal": "the raw scores of masked keys, a "
    "debugging output, are the most negative number instead of -inf",
    "test_attention_4d_with_past_and_present_qk_matmul_bias_4d_mask_causal": "the raw scores of masked keys, a "
    "debugging output, are the most negative number instead of -inf",
    "test_attention_4d_diff_heads_mask4d_padded_kv": "ONNX Runtime wants a mask of all keys beside key lengths",
    "test_reduce_max_empty_set_bool": "ONNX Runtime has no maximum of no booleans",
    "test_resize_downsample_scales_linear_align_corners": "ONNX Runtime takes the other reading of align_corners "
    "with given scales",
    "test_resize_downsample_scales_cubic_align_corners": "ONNX Runtime takes the other reading of align_corners "
    "with given scales",
}
"""Node tests that ONNX Runtime's own kernels answer otherwise, with what is different."""


class Outcome(NamedTuple):
    """What became of one node test."""

    case: str
    result: Literal["equal", "refused", "different"]
    reason: str = ""


@functools.cache
def cases() -> Mapping[str, Sequence[TestCase]]:
    """Node tests of each emitted operator. Making all of onnx's takes about 15 s."""
    with warnings.catch_warnings():  # some compute infinities on purpose
        warnings.simplefilter("ignore")
        collect_testcases(None)
    return {operator: made_so_far(operator) for operator in EMITTED}


def made_so_far(operator: str) -> list[TestCase]:
    """Graphs that hold nodes of the operator alone (as written, not expanded), of onnx's modules imported by now."""
    return [
        case
        for case in onnx_node_tests._NodeTestCases
        if case.model
        and {node.op_type for node in case.model.graph.node} == {operator}
        and not case.name.endswith("_expanded")
    ]


def outcome(case: TestCase) -> Outcome:
    """Sends the case down the road. Raises what is neither equal nor refused for a known reason."""
    unusual = _unusual(case.model)
    if unusual:
        return Outcome(case.name, "refused", unusual)
    with tempfile.TemporaryDirectory() as folder:
        try:
            engine = _engine(_released(case.model), Path(folder))
        except (BadInput, onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
            return Outcome(case.name, "refused", _reason(case.name, str(error)))
        for inputs, outputs in case.data_sets:
            try:
                _compare(case, engine, inputs, outputs)
            except (AssertionError, Fail, RuntimeException) as error:
                if case.name in DEVIATIONS:
                    return Outcome(case.name, "different", DEVIATIONS[case.name])
                return Outcome(case.name, "refused", _reason(case.name, str(error)))
    return Outcome(case.name, "equal")


def _unusual(model: onnx.ModelProto) -> str:
    """What no engine's inputs and outputs are, if the case has it."""
    for value in (*model.graph.input, *model.graph.output):
        kind = value.type.WhichOneof("value")
        if kind != "tensor_type":
            return "sequences and optionals"
        if value.type.tensor_type.elem_type in NO_ARRAYS:
            return "a type that numpy does not have"
    for node in model.graph.node:
        if any(a.name == "to" and a.i in NO_ARRAYS for a in node.attribute):
            return "a type that numpy does not have"
    return ""


def _released(model: onnx.ModelProto) -> onnx.ModelProto:
    """The case as opset 24 if its own opset is not released. Raises onnx's ValidationError if 24 lacks it."""
    versions = {entry.domain: entry for entry in model.opset_import}
    if versions[""].version <= RELEASED:
        return model
    older = onnx.ModelProto()
    older.CopyFrom(model)
    older.opset_import[0].version = OPSET
    onnx.checker.check_model(older, full_check=True)
    return older


def _engine(model: onnx.ModelProto, folder: Path) -> onnxruntime.InferenceSession:
    graph = ir.from_proto(model)
    target = get_target("onnxruntime")
    fuse(graph, FuseRecipe(), max_length=None)
    target.lower(graph, "encoder")
    target.compile(save_graph(graph, folder / "lower.onnx").graph, folder / "engine.onnx", TargetRecipe())
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    registered(options)
    return onnxruntime.InferenceSession(folder / "engine.onnx", options, providers=["CPUExecutionProvider"])


def _reason(name: str, message: str) -> str:
    for pattern, reason in REFUSALS.items():
        if re.search(pattern, message):
            return reason
    raise AssertionError(f"{name} is refused for a reason that is not listed: {message}")


def _compare(
    case: TestCase, engine: onnxruntime.InferenceSession, inputs: Sequence[Any], outputs: Sequence[Any]
) -> None:
    """Shapes, dtypes and numbers within the case's own tolerance, and at least to the neighbouring float16."""
    taken = {value.name for value in engine.get_inputs()}
    names = [value.name for value in case.model.graph.input]
    feeds = {name: array(given) for name, given in zip(names, inputs, strict=True) if name in taken}
    wanted = {value.name: array(given) for value, given in zip(case.model.graph.output, outputs, strict=True)}
    found = dict(zip((value.name for value in engine.get_outputs()), engine.run(None, feeds), strict=True))
    assert list(found) == list(wanted)
    for name, expected in wanted.items():
        assert (found[name].shape, found[name].dtype) == (expected.shape, expected.dtype), name
        relative = max(case.rtol, HALF_STEP) if expected.dtype == np.float16 else case.rtol
        np.testing.assert_allclose(found[name], expected, rtol=relative, atol=case.atol)


def array(value: Any) -> npt.NDArray[Any]:
    return onnx.numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else np.asarray(value)
