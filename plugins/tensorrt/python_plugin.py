"""The plugins as Python classes, for development: TensorRT's parser and builder take them without a compiled library.

`register(trt, kernels)` makes the classes for one of the packages (`tensorrt`, `tensorrt_rtx`), whose interfaces are
the same, and puts a creator for each plugin into its registry. Engines made so run wherever the same creators are
registered, or the C++ plugins of the same names.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from model_repo.runtime.errors import BadInput
from plugins.cuda.library import Library

from . import device, names
from .flash_attention import FlashAttentionForm
from .form import Extent, PluginForm
from .int4_gemm import Int4GemmForm
from .paged_attention import PagedAttentionForm

FORMS: Mapping[str, type[PluginForm]] = {
    form.name: form for form in (PagedAttentionForm, FlashAttentionForm, Int4GemmForm)
}
"""All plugins, by name."""

_TYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "int8": torch.int8,
    "uint8": torch.uint8,
    "int32": torch.int32,
    "int64": torch.int64,
    "bool": torch.bool,
    "fp8": torch.float8_e4m3fn,
}
"""TensorRT's types by its names for them."""

_registered: dict[str, list[Any]] = {}


def register(trt: Any, kernels: Library) -> list[str]:
    """Puts a creator for each plugin into the registry of `trt`, once a process. Gives the plugins' names.

    The kernels are those that shapes and workspace are asked of, and that run; a plugin whose kernel they lack is left
    out. Raises BadInput when the registry has
    plugins of these names already, from a library.
    """
    creators = _registered.setdefault(trt.__name__, [])
    if not creators:
        registry = trt.get_plugin_registry()
        for form in FORMS.values():
            if form.operator not in kernels.info["operators"]:
                continue
            creator = _creator_class(trt, kernels, form)()
            if not registry.register_creator(creator, names.NAMESPACE):
                raise BadInput(
                    f"a plugin {names.NAMESPACE}::{form.name} of version {names.VERSION} is registered already; load "
                    "either the library of plugins or the Python ones"
                )
            creators.append(creator)
    return list(FORMS)


def _creator_class(trt: Any, kernels: Library, form: type[PluginForm]) -> Any:
    plugin_class = _plugin_class(trt)
    kinds = form.attribute_names(kernels.describe(form.operator))

    class Creator(trt.IPluginCreatorV3One):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IPluginCreatorV3One.__init__(self)
            self.name = form.name
            self.plugin_version = names.VERSION
            self.plugin_namespace = names.NAMESPACE
            empty = np.array([])
            self.kept = [
                trt.PluginField(names.INPUTS, empty, trt.PluginFieldType.CHAR),
                trt.PluginField(names.STATE, empty, trt.PluginFieldType.INT32),
            ]
            for name, whole in kinds.items():
                kind = trt.PluginFieldType.INT32 if whole else trt.PluginFieldType.FLOAT32
                self.kept.append(trt.PluginField(name, empty, kind))
            self.field_names = trt.PluginFieldCollection(self.kept)

        def create_plugin(self, name: str, field_collection: Any, phase: Any) -> Any:
            given = {field.name: np.atleast_1d(np.array(field.data)) for field in field_collection}
            made = _from_fields(form, kernels, name, given)
            return plugin_class(made, runs=phase == trt.TensorRTPhase.RUNTIME)

    return Creator


def _from_fields(
    form: type[PluginForm], kernels: Library, node: str, given: Mapping[str, np.ndarray[Any, Any]]
) -> PluginForm:
    """The plugin that a node's attributes, or an engine's state, ask for. Raises BadInput for others."""
    state = int(given[names.STATE][0]) if names.STATE in given else names.STATE_VERSION
    if state != names.STATE_VERSION:
        raise BadInput(
            f"plugin {form.name} of {node!r} has state of version {state}; this Slipway reads {names.STATE_VERSION}: "
            "build the engine again"
        )
    if names.INPUTS not in given:
        raise BadInput(
            f"plugin {form.name} of {node!r} has no attribute {names.INPUTS!r}, the names of its inputs"
        )
    inputs = bytes(given[names.INPUTS].astype(np.uint8)).rstrip(b"\0").decode()
    own = {names.INPUTS, names.STATE, names.PLUGIN_VERSION, names.PLUGIN_NAMESPACE}
    attributes = {name: float(value[0]) for name, value in given.items() if name not in own}
    return form(kernels, inputs.split(","), attributes)


def _plugin_class(trt: Any) -> Any:
    types = {getattr(trt, name): dtype for name, dtype in _TYPES.items()}
    numbers = {dtype: kind for kind, dtype in types.items()}

    class Plugin(
        trt.IPluginV3,  # type: ignore[misc]
        trt.IPluginV3OneCore,  # type: ignore[misc]
        trt.IPluginV3OneBuildV2,  # type: ignore[misc]
        trt.IPluginV3OneRuntime,  # type: ignore[misc]
    ):
        """`runs`: whether it belongs to an engine. The builder's own calls find any content in the buffers, lengths
        and block numbers too (NVIDIA/TensorRT#2552), so a plugin of the build phase leaves them alone."""

        def __init__(self, form: PluginForm, runs: bool) -> None:
            for base in Plugin.__bases__:
                base.__init__(self)
            self.form = form
            self.runs = runs
            self.num_outputs = len(form.outputs)
            self.plugin_name = form.name
            self.plugin_version = names.VERSION
            self.plugin_namespace = names.NAMESPACE
            self.timing_cache_id = ""

        def clone(self) -> Any:
            return Plugin(copy.copy(self.form), self.runs)

        def get_capability_interface(self, type: Any) -> Any:  # noqa: A002 (TensorRT's name)
            return self

        def get_output_data_types(self, input_types: Sequence[Any]) -> list[Any]:
            return [numbers[dtype] for dtype in self.form.output_types([types[kind] for kind in input_types])]

        def get_output_shapes(
            self, inputs: Sequence[Any], shape_inputs: Sequence[Any], expr_builder: Any
        ) -> Any:
            place = {name: at for at, name in enumerate(self.form.inputs)}

            def size(extent: Extent) -> Any:
                factor = expr_builder.constant(extent.factor)
                if extent.tensor is None:
                    return factor
                value = inputs[place[extent.tensor]][extent.axis]
                if extent.factor != 1:
                    value = expr_builder.operation(trt.DimensionOperation.PROD, value, factor)
                if extent.divisor != 1:
                    divisor = expr_builder.constant(extent.divisor)
                    value = expr_builder.operation(trt.DimensionOperation.FLOOR_DIV, value, divisor)
                return value

            return [
                trt.DimsExprs([size(extent) for extent in self.form.extents(output)])
                for output in range(len(self.form.outputs))
            ]

        def supports_format_combination(self, pos: int, in_out: Sequence[Any], num_inputs: int) -> bool:
            if num_inputs != len(self.form.inputs) or in_out[pos].desc.format != trt.TensorFormat.LINEAR:
                return False
            dtypes = [types.get(tensor.desc.type) for tensor in in_out[: pos + 1]]
            return None not in dtypes and self.form.takes(
                pos, [dtype for dtype in dtypes if dtype is not None]
            )

        def configure_plugin(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
            self.get_workspace_size(inputs, outputs)  # asks the kernel whether it takes such tensors

        def get_workspace_size(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
            tensors = [*inputs, *outputs]
            return self.form.workspace_bytes(
                [types[tensor.desc.type] for tensor in tensors], [tuple(tensor.max) for tensor in tensors]
            )

        def get_valid_tactics(self) -> list[int]:
            return []

        def set_tactic(self, tactic: int) -> None:
            """There is one."""

        def get_aliased_input(self, output_index: int) -> int:
            """None is declared: the builder would keep a copy of each pool. Engines bind both to one address."""
            return -1

        def get_fields_to_serialize(self) -> Any:
            kinds = self.form.attribute_names(self.form.description)
            inputs = np.frombuffer(",".join(self.form.inputs).encode() + b"\0", np.int8)
            given = [
                (names.STATE, np.array([names.STATE_VERSION], np.int32), trt.PluginFieldType.INT32),
                (names.INPUTS, inputs, trt.PluginFieldType.CHAR),
            ]
            for name, value in self.form.attributes.items():
                dtype, kind = (np.int32, "INT32") if kinds[name] else (np.float32, "FLOAT32")
                given.append((name, np.array([value], dtype), getattr(trt.PluginFieldType, kind)))
            # Kept here: the collection holds addresses, and keeps neither fields nor their arrays alive.
            self.kept = [trt.PluginField(*field) for field in given]
            return trt.PluginFieldCollection(self.kept)

        def on_shape_change(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
            """Grid and workspace follow from the shapes of each call."""

        def attach_to_context(self, context: Any) -> Any:
            return self.clone()

        def enqueue(
            self,
            input_desc: Sequence[Any],
            output_desc: Sequence[Any],
            inputs: Sequence[int],
            outputs: Sequence[int],
            workspace: int,
            stream: int,
        ) -> None:
            if not self.runs:
                return
            described = [*input_desc, *output_desc]
            dtypes = [types[tensor.type] for tensor in described]
            shapes = [tuple(tensor.dims) for tensor in described]
            for name in self.form.in_place:
                source, at = self.form.inputs.index(name), self.form.outputs.index(name)
                if inputs[source] != outputs[at]:
                    count = math.prod(shapes[source]) * dtypes[source].itemsize
                    device.copy(outputs[at], inputs[source], count, stream)
            self.form.enqueue(dtypes, shapes, [*inputs, *outputs], workspace, stream)

    return Plugin
