"""The kernels' own cases as calls of plugins: what TensorRT would give them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from plugins.checks import flash_attention, paged_attention, weight_only_gemm
from plugins.cuda.case import Case, Scale
from plugins.cuda.library import Library, aligned_workspace
from plugins.tensorrt import names
from plugins.tensorrt.form import PluginForm
from plugins.tensorrt.python_plugin import FORMS

CPU = torch.device("cpu")
CHECKS = {
    names.PAGED_ATTENTION: paged_attention,
    names.FLASH_ATTENTION: flash_attention,
    names.INT4_GEMM: weight_only_gemm,
}
OUTSIDE = ("log_sum_exp", "row_scale")
"""Outputs that no plugin has."""


@dataclass(frozen=True)
class Call:
    """A plugin and its tensors by the kernel's names, as TensorRT lays them: contiguous, heads within the rows."""

    case: Case
    form: PluginForm
    tensors: dict[str, Tensor]

    @property
    def order(self) -> list[Tensor]:
        """Inputs, then outputs; those in place twice."""
        return [self.tensors[name] for name in (*self.form.inputs, *self.form.outputs)]

    def workspace(self) -> Tensor:
        """As much as the plugin asks for."""
        order = self.order
        return aligned_workspace(
            self.form.workspace_bytes([t.dtype for t in order], [t.shape for t in order]), CPU
        )

    def result(self, name: str) -> Tensor:
        """A tensor, in the shape that the case has it."""
        want = self.case.expected[name]
        return self.tensors[name].reshape(want.shape)


def calls(kernels: Library, name: str) -> Iterator[Call]:
    """The quick cases of a plugin's kernel, without those of what the plugin is not for."""
    for case in CHECKS[name].cases(Scale.QUICK, 1):
        start = {key: value.clone() for key, value in case.start().items() if key not in OUTSIDE}
        if name == names.INT4_GEMM and start["weight"].dtype != torch.uint8:
            continue
        made = FORMS[name]
        description = kernels.describe(made.operator)
        inputs = [t.name for t in description.tensors if t.role != "output" and t.name in start]
        attributes = dict(case.attributes)
        if name == names.INT4_GEMM:
            attributes["columns"] = start["y"].shape[1]
            start |= {key: start[key].view(torch.int8) for key in ("weight", "zero_point") if key in start}
        if name == names.FLASH_ATTENTION:
            attributes |= {"num_heads": start["query"].shape[1], "kv_num_heads": start["key"].shape[1]}
            packed = _packed_rows(start)
            if packed is not None:
                start["query"] = packed
                inputs = [key for key in inputs if key not in ("key", "value")]
                del start["key"], start["value"]
            for key in ("query", "key", "value", "output"):
                if key in start:
                    start[key] = start[key].flatten(1)
        tensors = {key: value.contiguous() for key, value in start.items()}
        yield Call(case, made(kernels, inputs, attributes), tensors)


def _packed_rows(start: dict[str, Tensor]) -> Tensor | None:
    """Query, key and value side by side, where the case has as many rows of each and equal sizes."""
    query, key, value = (start[name] for name in ("query", "key", "value"))
    same = query.shape[0] == key.shape[0] and query.shape[2] == key.shape[2] == value.shape[2]
    if not same or not torch.equal(start["cu_seqlens_q"], start["cu_seqlens_k"]):
        return None
    return torch.cat([query.flatten(1), key.flatten(1), value.flatten(1)], dim=1)
