"""The plugins inside engines that run, where there are a GPU and a package of TensorRT: the kernels' quick cases.

    make plugins TENSORRT_INCLUDE=DIR        # TensorRT's headers
    python -m pytest -m gpu tests/plugins/tensorrt/test_gpu.py

This runs the Python classes. With SLIPWAY_TENSORRT_PLUGINS=FILE, the path that make prints, it runs the C++ ones.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.targets.tensorrt.bindings import PACKAGES, load
from pipeline.targets.tensorrt.plugin_loading import load_plugins
from plugins.cuda.build import current_library
from plugins.cuda.case import Outcome, faults
from plugins.cuda.library import Library
from plugins.tensorrt import names
from plugins.tensorrt.python_plugin import _TYPES, FORMS
from tests.plugins.tensorrt.calls import Call, calls

LIBRARY = os.environ.get("SLIPWAY_TENSORRT_PLUGINS")
"""Path of libslipway_tensorrt.so, to test it; else the Python classes are tested."""


def installed() -> str | None:
    """The target whose package is here: TensorRT itself rather than TensorRT-RTX."""
    return next(
        (name for name, package in PACKAGES.items() if importlib.util.find_spec(package.module)), None
    )


pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device here"),
    pytest.mark.skipif(installed() is None, reason="neither tensorrt nor tensorrt_rtx is installed"),
    pytest.mark.skipif(current_library() is None, reason="the CUDA kernels are not built: make plugins"),
]


@pytest.fixture(scope="module")
def trt() -> Any:
    """The package, with the plugins in its registry."""
    target, kernels = installed(), current_library()
    assert target is not None
    module = load(target, plugins=True)
    load_plugins(module, LIBRARY, None if LIBRARY else str(kernels))
    return module


def fields(trt: Any, call: Call) -> list[Any]:
    """The plugin's attributes; kept by the caller, since TensorRT gets addresses."""
    text = np.frombuffer(",".join(call.form.inputs).encode() + b"\0", np.int8)
    made = [trt.PluginField(names.INPUTS, text, trt.PluginFieldType.CHAR)]
    for name, whole in call.form.attribute_names(call.form.description).items():
        if name in call.form.attributes:
            number = np.array([call.form.attributes[name]], np.int32 if whole else np.float32)
            kind = trt.PluginFieldType.INT32 if whole else trt.PluginFieldType.FLOAT32
            made.append(trt.PluginField(name, number, kind))
    return made


def run(trt: Any, call: Call) -> dict[str, torch.Tensor]:
    """The call in an engine of its own: its outputs, by the kernel's names."""
    types = {dtype: getattr(trt, name) for name, dtype in _TYPES.items()}
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    creator = trt.get_plugin_registry().get_creator(call.form.name, names.VERSION, names.NAMESPACE)
    kept = fields(trt, call)
    plugin = creator.create_plugin("plugin", trt.PluginFieldCollection(kept), trt.TensorRTPhase.BUILD)
    inputs = [
        network.add_input(name, types[call.tensors[name].dtype], tuple(call.tensors[name].shape))
        for name in call.form.inputs
    ]
    layer = network.add_plugin_v3(inputs, [], plugin)
    for place, name in enumerate(call.form.outputs):
        result = layer.get_output(place)
        result.name = f"{name}_out"
        network.mark_output(result)
    config = builder.create_builder_config()
    plan = builder.build_serialized_network(network, config)
    runtime = trt.Runtime(logger)
    engine = runtime.deserialize_cuda_engine(plan)
    context = engine.create_execution_context()
    device = {name: tensor.cuda() for name, tensor in call.tensors.items()}
    for name in call.form.inputs:
        context.set_tensor_address(name, device[name].data_ptr())
    for name in call.form.outputs:  # pools: the input's own memory
        context.set_tensor_address(f"{name}_out", device[name].data_ptr())
    torch.cuda.synchronize()
    assert context.execute_async_v3(torch.cuda.current_stream().cuda_stream)
    torch.cuda.synchronize()
    return {name: device[name].cpu() for name in call.form.outputs}


@pytest.mark.parametrize("name", FORMS)
def test_each_case_of_the_kernel_comes_out_of_an_engine(trt: Any, name: str) -> None:
    library = current_library()
    assert library is not None
    major, minor = torch.cuda.get_device_capability()
    for call in calls(Library(Path(library)), name):
        if call.case.least_compute_capability > 10 * major + minor:
            continue
        outputs = run(trt, call)
        expected = {key: value for key, value in call.case.expected.items() if key in outputs}
        got = {key: outputs[key].reshape(want.shape) for key, want in expected.items()}
        checked = dataclasses.replace(call.case, tensors={}, expected=expected)
        assert faults(checked, Outcome(0, "", got)) == [], call.case.name
