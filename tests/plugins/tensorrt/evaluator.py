"""Runs graphs that hold plugin nodes: standard operators by onnx's reference evaluator, plugins by emulated kernels."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from plugins.cuda.library import Library, aligned_workspace
from plugins.tensorrt import names
from plugins.tensorrt.python_plugin import FORMS
from tests.export.packed_requests import Arrays, Step

CPU = torch.device("cpu")


def plugin_step(model: ir.Model, kernels: Library) -> Step:
    """A step of the packed contract. Pools, which drivers keep in float32, are taken in the graph's own types."""
    evaluator = ReferenceEvaluator(ir.to_proto(model), new_ops=plugin_operators(kernels))
    types = {value.name: value.dtype.numpy() for value in model.graph.inputs if value.dtype is not None}

    def step(feed: Arrays) -> Arrays:
        given = {name: np.asarray(array).astype(types[name]) for name, array in feed.items()}
        return dict(zip(evaluator.output_names, evaluator.run(None, given), strict=True))

    return step


def plugin_operators(kernels: Library) -> list[type[OpRun]]:
    """All plugins as operators."""
    return [_operator(kernels, name) for name in FORMS]


def _operator(kernels: Library, name: str) -> type[OpRun]:
    """The plugin as an operator: it gets only what the node says, as TensorRT would hand it on."""
    made = FORMS[name]

    class Plugin(OpRun):
        op_domain = names.DOMAIN

        def _run(self, *arrays: np.ndarray, **_: Any) -> tuple[np.ndarray, ...]:
            given = {a.name: onnx.helper.get_attribute_value(a) for a in self.onnx_node.attribute}
            assert given.pop(names.PLUGIN_VERSION) == names.VERSION.encode()
            assert given.pop(names.PLUGIN_NAMESPACE) == names.NAMESPACE.encode()
            form = made(kernels, given.pop(names.INPUTS).decode().split(","), given)
            inputs = [_tensor(array) for array in arrays]
            kinds = form.output_types([tensor.dtype for tensor in inputs])
            by_name = dict(zip(form.inputs, inputs, strict=True))
            outputs = []
            for place, name in enumerate(form.outputs):
                if name in form.in_place:
                    outputs.append(by_name[name])
                    continue
                shape = [
                    (by_name[e.tensor].shape[e.axis] if e.tensor else 1) * e.factor // e.divisor
                    for e in form.extents(place)
                ]
                outputs.append(torch.full(shape, torch.nan, dtype=kinds[place]))
            order = [*inputs, *outputs]
            dtypes, shapes = [t.dtype for t in order], [t.shape for t in order]
            workspace = aligned_workspace(form.workspace_bytes(dtypes, shapes), CPU)
            form.enqueue(dtypes, shapes, [t.data_ptr() for t in order], workspace.data_ptr(), 0)
            return tuple(_array(t, arrays[0].dtype if t is outputs[0] else None) for t in outputs)

    return type(name, (Plugin,), {"op_domain": names.DOMAIN})


def _tensor(array: np.ndarray) -> torch.Tensor:
    """A copy in memory of torch's own, which is aligned as the kernels want it."""
    return torch.from_numpy(np.array(array)).clone()


def _array(tensor: torch.Tensor, dtype: np.dtype[Any] | None) -> np.ndarray:
    array = tensor.numpy()
    return array if dtype is None else array.astype(dtype)
