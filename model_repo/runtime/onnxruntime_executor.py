"""Steps on ONNX Runtime: pools bound once and written in place, inputs and logits bound once per shape."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from .contract import (
    CROSS,
    LOGITS,
    ROWS_ALONE,
    CrossStepTensors,
    EmbedStepTensors,
    EngineSpec,
    KVSpec,
    StepTensors,
    key_cache,
    value_cache,
)
from .cross_attention import cross_key, cross_value
from .errors import BadInput
from .executor import BucketRule
from .huge_pages import collapse
from .prompt_embeds import EMBED_INDEX, PROMPT_EMBEDS
from .resident_weights import WEIGHTS, ResidentWeights

MAX_BINDINGS = 64
"""Shapes whose buffers are kept. Decode steps of a steady load come back to the same few."""

LARGE_BYTES = 64 << 20
"""Weights from this size on are put on large pages; smaller ones live in the processor's caches anyway."""

SLOWER = ["SkipLayerNormFusion", "BiasGeluFusion"]
"""Fusions of ONNX Runtime 1.31 left out: on a CPU their kernels are scalar loops. MiniLM takes 10% less time
with the nodes that they would replace."""

POOL_DTYPES: dict[str, Any] = {
    "float32": np.float32,
    "float16": np.float16,
    "int8": np.int8,
    "fp8": np.uint8,
}
"""Elements of a pool's memory; numpy has no float8, whose zero is the byte 0."""

NUMBERED = {"bfloat16": 16, "fp8": 17, "float8_e4m3fn": 17}
"""Types that ONNX Runtime takes by their number in the standard only (onnx.TensorProto.DataType)."""


@dataclass
class _Binding:
    """Buffers of one shape: the arrays that the bound OrtValues look at."""

    io: Any
    inputs: dict[str, npt.NDArray[Any]]
    logits: npt.NDArray[np.float32]
    keep: list[Any]  # OrtValues, which must live as long as the binding


def session(
    graph: Path,
    plugin: Path | None,
    threads: int,
    *,
    convolutions: bool = False,
    weights: ResidentWeights | None = None,
) -> ort.InferenceSession:
    """A CPU session on a graph that was optimized when it was compiled. `threads` 0 means all cores.

    `convolutions`: they get the blocked layout (NCHWc) of this machine's instructions as the graph is loaded, since a
    compiled graph is for any machine. `weights`: used instead of the files; they must outlive the session. Raises
    BadInput when ONNX Runtime refuses the graph or the operator library.
    """
    options = ort.SessionOptions()
    levels = ort.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_LAYOUT if convolutions else levels.ORT_DISABLE_ALL
    options.add_session_config_entry("session.disable_quant_qdq", "1")  # as when it was compiled
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.enable_mem_pattern = False  # patterns are kept for every shape, and steps have many
    options.log_severity_level = 3
    if weights is not None:
        weights.give_to(options)
    try:
        if plugin is not None:
            options.register_custom_ops_library(str(plugin))
        return ort.InferenceSession(
            str(graph), options, providers=["CPUExecutionProvider"], disabled_optimizers=SLOWER
        )
    except Exception as error:  # ONNX Runtime's errors share no base
        raise BadInput(f"ONNX Runtime does not load {graph}: {error}; build the engine again") from error


class OnnxRuntimeExecutor:
    """An engine on the CPU. `num_blocks` sizes the pools; their bytes are touched only as blocks are used."""

    def __init__(self, folder: Path, spec: EngineSpec, num_blocks: int, threads: int) -> None:
        plugin = folder / spec.plugin if spec.plugin else None
        large = sum(path.stat().st_size for path in (folder / WEIGHTS).glob("*")) >= LARGE_BYTES
        self._rows_alone = ROWS_ALONE in spec.features
        self._weights = ResidentWeights.read(folder) if large and self._rows_alone else None
        self._session = session(folder / spec.graph, plugin, threads, weights=self._weights)
        self._encoder = session(folder / spec.encoder.graph, plugin, threads) if spec.encoder else None
        self._spec = spec
        # One buffer for all shapes: logits are used up before the next step, and so are images' rows.
        self._logits = np.empty((spec.decoder_limits.max_batch, spec.vocab_size), np.float32)
        embed_size = spec.image_encoder.hidden_size if spec.image_encoder else 0
        self._embeds = np.empty((spec.decoder_limits.token_budget, embed_size), np.float32)
        self._bindings: OrderedDict[tuple[int, ...], _Binding] = OrderedDict()
        self._pools: dict[str, Any] = {}
        self._pool_arrays: dict[str, npt.NDArray[Any]] = {}
        block_size = spec.decoder_limits.block_size
        for layer, kv in enumerate(spec.kv):
            if kv.dtype not in POOL_DTYPES:
                raise BadInput(
                    f"pools of {kv.dtype} are not run by this target; it has {', '.join(POOL_DTYPES)}"
                )
            for name, size in ((key_cache(layer), kv.key_dim), (value_cache(layer), kv.value_dim)):
                blocks = spec.decoder_limits.num_cross_blocks if kv.group == CROSS else num_blocks
                pool = np.zeros((blocks, block_size, kv.kv_heads, size), POOL_DTYPES[kv.dtype])
                self._pool_arrays[name] = pool
                self._pools[name] = pool_value(pool, kv.dtype)
        self._graph_inputs = {value.name for value in self._session.get_inputs()}
        if large:
            collapse()

    @property
    def bucket_rule(self) -> BucketRule:
        """Two rows at least, except where no product is MLAS's: it computes a single row by another routine, with
        other rounding."""
        return BucketRule(min_tokens=1 if self._rows_alone else 2)

    def run(self, step: StepTensors) -> npt.NDArray[np.float32]:
        """See `Executor.run`."""
        selected = len(step.logits_indices)
        shape = (
            len(step.input_ids),
            len(step.past_lens),
            step.block_table.shape[1],
            selected,
            step.block_table_1.shape[1] if isinstance(step, CrossStepTensors) else 0,
            len(step.prompt_embeds) if isinstance(step, EmbedStepTensors) else 0,
        )
        binding = self._bindings.get(shape)
        if binding is None:
            binding = self._bind(shape)
        else:
            self._bindings.move_to_end(shape)
        for name, buffer in binding.inputs.items():
            buffer[...] = getattr(step, name)
        self._session.run_with_iobinding(binding.io)
        return binding.logits

    def encode(self, source: npt.NDArray[Any], block_ids: Sequence[int]) -> None:
        """See `Executor.encode`."""
        assert self._encoder is not None, "asked for only where there is an encoder"
        assert self._spec.encoder is not None
        outputs = [value.name for value in self._encoder.get_outputs()]
        results = self._encoder.run(outputs, {self._spec.encoder.input.name: source})
        found = dict(zip(outputs, results, strict=True))
        for layer, kv in enumerate(self._spec.kv):
            if kv.group != CROSS:
                continue
            for pool, rows in (
                (key_cache(layer), cross_key(layer)),
                (value_cache(layer), cross_value(layer)),
            ):
                _write_rows(self._pool_arrays[pool], block_ids, found[rows][0])

    def _bind(self, shape: tuple[int, ...]) -> _Binding:
        tokens, batch, max_blocks, selected, max_cross_blocks, embed_rows = shape
        shapes: dict[str, tuple[int, ...]] = {
            "input_ids": (tokens,),
            "position_ids": (tokens,),
            "cu_seqlens": (batch + 1,),
            "past_lens": (batch,),
            "block_table": (batch, max_blocks),
            "slot_mapping": (tokens,),
            "logits_indices": (selected,),
            "cu_seqlens_1": (tokens + 1,),
            "past_lens_1": (tokens,),
            "block_table_1": (tokens, max_cross_blocks),
            "slot_mapping_1": (tokens,),
            EMBED_INDEX: (tokens,),
        }
        io = self._session.io_binding()
        inputs: dict[str, npt.NDArray[Any]] = {
            name: np.zeros(size, np.int32) for name, size in shapes.items() if name in self._graph_inputs
        }
        if PROMPT_EMBEDS in self._graph_inputs:
            inputs[PROMPT_EMBEDS] = self._embeds[:embed_rows]
        logits = self._logits[:selected]
        keep = []
        for name, array in inputs.items():
            value = ort.OrtValue.ortvalue_from_numpy(array)
            io.bind_ortvalue_input(name, value)
            keep.append(value)
        for name, value in self._pools.items():
            io.bind_ortvalue_input(name, value)
        output = ort.OrtValue.ortvalue_from_numpy(logits)
        io.bind_ortvalue_output(LOGITS.name, output)
        keep.append(output)
        binding = _Binding(io, inputs, logits, keep)
        self._bindings[shape] = binding
        if len(self._bindings) > MAX_BINDINGS:
            self._bindings.popitem(last=False)
        return binding


def pool_value(pool: npt.NDArray[Any], dtype: str) -> Any:
    """An OrtValue on a pool's own memory. dtype: of KV_DTYPE_BYTES, or numpy's name of it; bytes may stand for it."""
    number = NUMBERED.get(dtype)
    if number is None:
        return ort.OrtValue.ortvalue_from_numpy(pool)
    raw = pool.view(np.uint8 if pool.itemsize == 1 else np.uint16)
    return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(raw, number)


def pool_values(kv: Sequence[KVSpec], pools: Mapping[str, npt.NDArray[Any]]) -> dict[str, Any]:
    """`pool_value` of all pools, by input name."""
    types = {name(layer): spec.dtype for layer, spec in enumerate(kv) for name in (key_cache, value_cache)}
    return {name: pool_value(pool, types[name]) for name, pool in pools.items()}


def _write_rows(pool: npt.NDArray[Any], block_ids: Sequence[int], rows: npt.NDArray[Any]) -> None:
    """`rows` [positions, kv_heads, size] into the blocks of `pool` [num_blocks, block_size, kv_heads, size]."""
    size = pool.shape[1]
    for place, block in enumerate(block_ids):
        part = rows[place * size : (place + 1) * size]
        pool[block, : len(part)] = part
