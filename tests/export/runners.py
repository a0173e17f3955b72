"""Ways to execute a packed step: the torch wrapper, and the exported graph in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import torch

from model_repo.runtime import contract
from pipeline.export.packed import PackedDecoder
from tests.export.packed_requests import Arrays, Step
from tests.export.standard_attention import with_standard_attention


def serialized(model: ir.Model) -> onnx.ModelProto:
    """The graph with its weights inside."""
    return ir.serde.serialize_model(model)


def session(model: onnx.ModelProto, options: onnxruntime.SessionOptions | None = None) -> Any:
    """An ONNX Runtime session on one thread."""
    options = options or onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    providers = ["CPUExecutionProvider"]
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=providers)


def session_step(running: Any) -> Step:
    """A step that runs a session with all of its outputs."""
    names = [output.name for output in running.get_outputs()]

    def step(feed: Arrays) -> Arrays:
        return dict(zip(names, running.run(names, dict(feed)), strict=True))

    return step


def standard_step(model: ir.Model, *, causal: bool = True) -> Step:
    """The exported graph, attention in standard operators."""
    return session_step(session(with_standard_attention(serialized(model), causal=causal)))


def eager_step(wrapper: PackedDecoder, kv: Sequence[contract.KVSpec]) -> Step:
    """The torch wrapper, attention by the operator's reference body."""
    pool_names = [spec.name for spec in contract.decoder_inputs(kv)][len(contract.STEP_INPUTS) :]
    outputs = [contract.LOGITS.name]
    for layer in range(len(kv)):
        outputs += [contract.key_cache_out(layer), contract.value_cache_out(layer)]

    @torch.no_grad()
    def step(feed: Arrays) -> Arrays:
        tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in feed.items()}
        inputs = [tensors[spec.name] for spec in contract.STEP_INPUTS]
        results = wrapper(*inputs, [tensors[name] for name in pool_names])
        return {name: result.numpy() for name, result in zip(outputs, results, strict=True)}

    return step
