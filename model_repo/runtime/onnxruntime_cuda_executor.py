"""Steps on ONNX Runtime's CUDA provider: pools and a step's inputs lie on the GPU, a step's inputs in one copy.

The graph's attention writes to its pools in place, so they are bound as inputs and never move. Logits are copied to the
host by ONNX Runtime as the step ends. The device is a parameter, so that all of this is tested on the CPU provider.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from .attention_metadata import METADATA_INPUT, attention_metadata
from .contract import (
    KV_DTYPE_BYTES,
    LOGITS,
    STEP_INPUTS,
    EngineSpec,
    Int32Array,
    StepTensors,
    key_cache,
    value_cache,
)
from .errors import BadInput
from .executor import BucketRule

MAX_BINDINGS = 64
"""Shapes whose buffers are kept: decode steps of a steady load come back to the same few."""

CUDA = "CUDAExecutionProvider"
ONNX_TYPES: Mapping[str, int] = {
    "float32": 1,
    "int8": 3,
    "int32": 6,
    "float16": 10,
    "bfloat16": 16,
    "fp8": 17,
}
"""Numbers of the standard (TensorProto.DataType); NumPy knows not all of these types."""


@dataclass
class _Binding:
    """Buffers of one shape. `staged` holds all inputs, `views` are its parts by name; `on_device` is its copy."""

    io: Any
    staged: Int32Array
    views: dict[str, Int32Array]
    on_device: Any


def cuda_session(graph: Path, *, device: str = "cuda", options: Any = None) -> ort.InferenceSession:
    """A session on a GPU, which optimizes the graph for it; `device` cpu: the same on the CPU provider.

    Raises BadInput where the provider is missing or does not load, and when ONNX Runtime refuses the graph.
    """
    options = options or ort.SessionOptions()
    options.log_severity_level = 3
    provider = CUDA if device == "cuda" else "CPUExecutionProvider"
    if provider not in ort.get_available_providers():
        raise BadInput(
            f"{graph} takes ONNX Runtime's CUDA provider, which the installed package onnxruntime {ort.__version__} "
            "does not have; on a machine with an NVIDIA GPU: pip uninstall onnxruntime; pip install onnxruntime-gpu"
        )
    try:
        session = ort.InferenceSession(str(graph), options, providers=[provider])
    except Exception as error:  # ONNX Runtime's errors share no base
        raise BadInput(f"ONNX Runtime does not load {graph}: {error}; build the engine again") from error
    if provider not in session.get_providers():
        raise BadInput(
            f"ONNX Runtime's CUDA provider does not load here: it needs a GPU of compute capability 8.0 or newer, its "
            f"driver, CUDA 13 and cuDNN (pip install onnxruntime-gpu[cuda,cudnn]); {graph} is for it"
        )
    return session


class OnnxRuntimeCudaExecutor:
    """An engine of target onnxruntime-cuda. `num_blocks` sizes the pools, which are zeroed."""

    def __init__(
        self, session: ort.InferenceSession, spec: EngineSpec, num_blocks: int, device: str = "cuda"
    ) -> None:
        self._session, self._spec, self._device = session, spec, device
        self._graph_inputs = {value.name for value in session.get_inputs()}
        self._logits = np.empty((spec.decoder_limits.max_batch, spec.vocab_size), np.float32)
        self._metadata = np.zeros(3, np.int32)
        self._bindings: OrderedDict[tuple[int, ...], _Binding] = OrderedDict()
        self._pools = self._allocated(num_blocks)

    @property
    def bucket_rule(self) -> BucketRule:
        """The operator takes no rows of padding."""
        return BucketRule()

    def run(self, step: StepTensors) -> npt.NDArray[np.float32]:
        """See `Executor.run`."""
        shape = (
            len(step.input_ids),
            len(step.past_lens),
            step.block_table.shape[1],
            len(step.logits_indices),
        )
        binding = self._bindings.get(shape)
        if binding is None:
            binding = self._bind(step, shape)
        else:
            self._bindings.move_to_end(shape)
        for name, view in binding.views.items():
            view[...] = getattr(step, name)
        self._metadata[...] = attention_metadata(step)
        binding.on_device.update_inplace(binding.staged)
        self._session.run_with_iobinding(binding.io)
        return self._logits[: len(step.logits_indices)]

    def encode(self, source: npt.NDArray[Any], block_ids: Sequence[int]) -> None:
        """Never asked for: engines of this target have no encoder."""
        raise BadInput("an engine of target onnxruntime-cuda has no encoder")

    def _allocated(self, num_blocks: int) -> dict[str, tuple[int, tuple[int, ...], Any]]:
        """Pools by input: their type's number, shape, and memory on the device.

        Raises BadInput where they do not fit, in ONNX Runtime's words.
        """
        pools: dict[str, tuple[int, tuple[int, ...], Any]] = {}
        block_size = self._spec.decoder_limits.block_size
        for layer, kv in enumerate(self._spec.kv):
            for name, size in ((key_cache(layer), kv.key_dim), (value_cache(layer), kv.value_dim)):
                shape = (num_blocks, block_size, kv.kv_heads, size)
                zeros = np.zeros(int(np.prod(shape)) * KV_DTYPE_BYTES[kv.dtype], np.uint8)
                try:
                    memory = ort.OrtValue.ortvalue_from_numpy(zeros, self._device, 0)
                except Exception as error:  # ONNX Runtime's errors share no base
                    total = num_blocks * block_size * self._spec.kv_bytes_per_token
                    raise BadInput(
                        f"{num_blocks} blocks take {total} bytes of the GPU's memory, which it does not give "
                        f"({error}); load the engine with a smaller num_blocks, or build with --kv-cache-bytes"
                    ) from error
                pools[name] = (ONNX_TYPES[kv.dtype], shape, memory)
        return pools

    def _bind(self, step: StepTensors, shape: tuple[int, ...]) -> _Binding:
        io = self._session.io_binding()
        shapes = {
            spec.name: getattr(step, spec.name).shape
            for spec in STEP_INPUTS
            if spec.name in self._graph_inputs
        }
        sizes = {name: int(np.prod(size)) for name, size in shapes.items()}
        staged = np.zeros(sum(sizes.values()), np.int32)
        on_device = ort.OrtValue.ortvalue_from_numpy(staged, self._device, 0)
        views, start = {}, 0
        for name, size in shapes.items():
            views[name] = staged[start : start + sizes[name]].reshape(size)
            io.bind_input(name, self._device, 0, np.int32, size, on_device.data_ptr() + 4 * start)
            start += sizes[name]
        for name, (number, size, memory) in self._pools.items():
            io.bind_input(name, self._device, 0, number, size, memory.data_ptr())
        if METADATA_INPUT.name in self._graph_inputs:
            io.bind_input(
                METADATA_INPUT.name, "cpu", 0, np.int32, self._metadata.shape, self._metadata.ctypes.data
            )
        rows = (shape[-1], self._spec.vocab_size)
        io.bind_output(LOGITS.name, "cpu", 0, np.float32, rows, self._logits.ctypes.data)
        binding = _Binding(io, staged, views, on_device)
        self._bindings[shape] = binding
        if len(self._bindings) > MAX_BINDINGS:
            self._bindings.popitem(last=False)
        return binding
