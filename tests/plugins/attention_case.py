"""Random steps of packed attention, run by the CPU operator and by the reference."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper

from plugins.cpu.build import library_path, registered
from plugins.reference.paged_attention import PagedAttentionNode
from plugins.reference.rotary import rotary_tables
from plugins.schemas import DOMAIN, PAGED_ATTENTION, VERSION

Array = npt.NDArray[Any]

ISA_NUMBERS = {"plain": 1, "avx2": 2, "avx512": 3, "avx512_vnni": 4}
POOL_TYPES = {
    "float32": (TensorProto.FLOAT, torch.float32),
    "float16": (TensorProto.FLOAT16, torch.float16),
    "bfloat16": (TensorProto.BFLOAT16, torch.bfloat16),
    "int8": (TensorProto.INT8, torch.int8),
    "float8e4m3fn": (TensorProto.FLOAT8E4M3FN, torch.float8_e4m3fn),
}
ONNX_TYPES = {"float32": TensorProto.FLOAT, "int32": TensorProto.INT32}


@contextmanager
def forced_isa(name: str) -> Iterator[None]:
    """Runs the kernels of one instruction set; skips the test where the processor lacks it."""
    library = ctypes.CDLL(str(library_path()))
    library.slipway_cpu_isa.restype = ctypes.c_char_p
    if not library.slipway_cpu_force_isa(ISA_NUMBERS[name]):
        pytest.skip(f"this processor (or this build) has no {name} kernels")
    try:
        assert library.slipway_cpu_isa().decode() == name
        yield
    finally:
        library.slipway_cpu_force_isa(0)


@dataclass(frozen=True)
class Shape:
    """A layer's sizes and attributes; the defaults are the plainest attention."""

    heads: int = 6
    kv_heads: int = 2
    head_dim: int = 32
    value_dim: int | None = None  # None: as head_dim
    block_size: int = 16
    pool: str = "float32"
    packed: bool = False
    rotary_dim: int = 0
    interleaved: bool = False
    sinks: bool = False
    alibi: bool = False
    distances: int = 0  # columns of the distance bias; 0: none
    softcap: float = 0.0
    window: int = -1
    scale: float = 0.0

    @property
    def values(self) -> int:
        return self.head_dim if self.value_dim is None else self.value_dim

    @property
    def attributes(self) -> dict[str, int | float]:
        return {
            "num_heads": self.heads,
            "kv_num_heads": self.kv_heads,
            "scale": self.scale,
            "softcap": self.softcap,
            "do_rotary": int(self.rotary_dim > 0),
            "rotary_interleaved": int(self.interleaved),
            "local_window_size": self.window,
        }


@dataclass(frozen=True)
class Step:
    """One call: inputs by schema name as torch tensors (pools included, in the pool's type)."""

    shape: Shape
    inputs: dict[str, torch.Tensor]

    def with_inputs(self, **changes: torch.Tensor) -> Step:
        return replace(self, inputs={**self.inputs, **changes})

    @property
    def live_tokens(self) -> int:
        return int(self.inputs["cumulative_sequence_length"][-1])


def make_step(
    shape: Shape,
    sequences: Sequence[tuple[int, int]],
    seed: int = 0,
    padding: int = 0,
    spare_blocks: int = 3,
    max_positions: int = 4096,
) -> Step:
    """A step of sequences given as (tokens in the cache, new tokens), in shuffled blocks.

    Everything that no sequence may read holds NaN: the cache rows of spare blocks and those behind a
    sequence's end, and the padding rows. Blocks before a window are -1 in the table, as behind the end.
    """
    random = torch.Generator().manual_seed(seed)
    size = shape.block_size
    lengths = [past + new for past, new in sequences]
    blocks_of = [-(-length // size) for length in lengths]
    num_blocks = sum(blocks_of) + spare_blocks
    order = torch.randperm(num_blocks, generator=random).tolist()
    keys = torch.full((num_blocks, size, shape.kv_heads, shape.head_dim), torch.nan)
    values = torch.full((num_blocks, size, shape.kv_heads, shape.values), torch.nan)
    table = torch.full((len(sequences), max([*blocks_of, 1]) + 1), -1, dtype=torch.int32)
    slots: list[int] = []
    positions: list[int] = []
    for row, (past, new) in enumerate(sequences):
        mine = [order.pop() for _ in range(blocks_of[row])]
        table[row, : len(mine)] = torch.tensor(mine, dtype=torch.int32)
        all_slots = [mine[p // size] * size + p % size for p in range(past + new)]
        for pool in (keys, values):
            rows = pool.view(num_blocks * size, *pool.shape[2:])
            rows[all_slots[:past]] = torch.randn(past, *pool.shape[2:], generator=random)
        if shape.window > 0 and new > 0:
            table[row, : max(0, past + 1 - shape.window) // size] = -1
        slots += all_slots[past:]
        positions += range(past, past + new)
    tokens = len(slots) + padding

    def rows_of(columns: int) -> torch.Tensor:
        rows = torch.randn(tokens, columns, generator=random)
        rows[len(slots) :] = torch.nan
        return rows

    query, key, value = (
        rows_of(shape.heads * shape.head_dim),
        rows_of(shape.kv_heads * shape.head_dim),
        rows_of(shape.kv_heads * shape.values),
    )
    new_lengths = torch.tensor([0, *(new for _, new in sequences)])
    pool_dtype = POOL_TYPES[shape.pool][1]
    inputs = {
        "query": torch.cat([query, key, value], dim=1) if shape.packed else query,
        "key_cache": keys.to(pool_dtype),
        "value_cache": values.to(pool_dtype),
        "cumulative_sequence_length": new_lengths.cumsum(0).to(torch.int32),
        "past_seqlens": torch.tensor([past for past, _ in sequences], dtype=torch.int32),
        "block_table": table,
        "slot_mapping": torch.tensor(slots + [-1] * padding, dtype=torch.int32),
    }
    if not shape.packed:
        inputs |= {"key": key, "value": value}
    if shape.rotary_dim:
        cos, sin = rotary_tables(max_positions, shape.rotary_dim)
        positions_ids = torch.tensor(positions + [-7] * padding, dtype=torch.int32)
        inputs |= {"cos_cache": cos, "sin_cache": sin, "position_ids": positions_ids}
    if shape.sinks:
        inputs["head_sink"] = torch.randn(shape.heads, generator=random) * 2
    if shape.alibi:
        inputs["alibi_slopes"] = torch.rand(shape.heads, generator=random) * 0.2
    if shape.distances:
        inputs["distance_bias"] = torch.randn(shape.heads, shape.distances, generator=random)
    return Step(shape, inputs)


def expected(step: Step) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The reference's output and pools.

    It gathers whole sequences and masks afterwards, so what it hides must be finite: NaN becomes 0, and blocks
    that a window has passed (-1 in the table) become block 0.
    """
    hidden = {name: torch.nan_to_num(step.inputs[name]) for name in ("key_cache", "value_cache")}
    table = step.inputs["block_table"].clamp(min=0)
    node = PagedAttentionNode(**step.shape.attributes)  # type: ignore[arg-type]
    return node({**step.inputs, **hidden, "block_table": table})


@dataclass
class GuardedPool:
    """A pool as numpy memory with a guard before and behind it."""

    GUARD = 4096
    tensor: torch.Tensor
    memory: Array = field(init=False)

    def __post_init__(self) -> None:
        raw = self.tensor.contiguous().view(torch.uint8).numpy().reshape(-1)
        self.memory = np.full(raw.size + 2 * self.GUARD, 0xA5, dtype=np.uint8)
        self.memory[self.GUARD : -self.GUARD] = raw

    @property
    def array(self) -> Array:
        inside = self.memory[self.GUARD : -self.GUARD]
        numpy_type = {torch.float32: np.float32, torch.int8: np.int8, torch.float8_e4m3fn: np.uint8}.get(
            self.tensor.dtype, np.uint16
        )
        return inside.view(numpy_type).reshape(self.tensor.shape)

    def check_guards(self) -> None:
        assert (self.memory[: self.GUARD] == 0xA5).all(), "something was written before the pool"
        assert (self.memory[-self.GUARD :] == 0xA5).all(), "something was written behind the pool"

    def read(self) -> torch.Tensor:
        return torch.from_numpy(self.array.copy()).view(self.tensor.dtype)


def node_model(shape: Shape, present: frozenset[str], outputs: int) -> onnx.ModelProto:
    """A model of one node with the inputs named in `present`; the pools are outputs too if `outputs` is 3."""
    pool_type = POOL_TYPES[shape.pool][0]
    types = {
        "T": TensorProto.FLOAT,
        "TCache": pool_type,
        "Int": TensorProto.INT32,
        "Scale": TensorProto.FLOAT,
    }
    ranks = {"key_cache": 4, "value_cache": 4, "query": 2, "key": 2, "value": 2, "block_table": 2}
    ranks |= {"cos_cache": 2, "sin_cache": 2, "distance_bias": 2}
    inputs = [p for p in PAGED_ATTENTION.inputs if p.name in present]
    node = helper.make_node(
        "PagedAttention",
        [p.name if p.name in present else "" for p in PAGED_ATTENTION.inputs],
        [p.name for p in PAGED_ATTENTION.outputs[:outputs]],
        domain=DOMAIN,
        **shape.attributes,
    )
    graph = helper.make_graph(
        [node],
        "attention",
        [
            helper.make_tensor_value_info(
                p.name, types[p.type], [f"{p.name}_{axis}" for axis in range(ranks.get(p.name, 1))]
            )
            for p in inputs
        ],
        [
            helper.make_tensor_value_info(p.name, types[p.type], None)
            for p in PAGED_ATTENTION.outputs[:outputs]
        ],
    )
    opsets = [helper.make_opsetid("", 24), helper.make_opsetid(DOMAIN, VERSION)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=11)


@cache
def session(shape: Shape, present: frozenset[str], outputs: int, threads: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    registered(options)
    model = node_model(shape, present, outputs).SerializeToString()
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


@dataclass(frozen=True)
class Result:
    output: torch.Tensor
    key_cache: torch.Tensor
    value_cache: torch.Tensor


def run(step: Step, threads: int = 2) -> Result:
    """Runs the CPU operator, writing through its pools, and checks the guards around them."""
    running = session(step.shape, frozenset(step.inputs), 1, threads)
    binding = running.io_binding()
    pools = {name: GuardedPool(step.inputs[name]) for name in ("key_cache", "value_cache")}
    kept: list[Any] = []
    for name, tensor in step.inputs.items():
        if name in pools:
            array, onnx_type = pools[name].array, POOL_TYPES[step.shape.pool][0]
        else:
            array = np.ascontiguousarray(tensor.numpy())
            onnx_type = ONNX_TYPES[array.dtype.name]
        value = ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array, onnx_type)
        kept.append((array, value))
        binding.bind_ortvalue_input(name, value)
    binding.bind_output("output")
    running.run_with_iobinding(binding)
    for pool in pools.values():
        pool.check_guards()
    output = torch.from_numpy(binding.get_outputs()[0].numpy().copy())
    return Result(output, pools["key_cache"].read(), pools["value_cache"].read())


def check(step: Step, threads: int = 2, tolerance: float | None = None) -> Result:
    """Runs the operator and compares output and pools with the reference."""
    result = run(step, threads)
    output, keys, values = expected(step)
    torch.testing.assert_close(result.output, output, rtol=1e-5, atol=tolerance or 2e-5)
    check_pool(step, step.inputs["key_cache"], result.key_cache, keys)
    check_pool(step, step.inputs["value_cache"], result.value_cache, values)
    return result


def check_pool(step: Step, before: torch.Tensor, after: torch.Tensor, reference: torch.Tensor) -> None:
    """Named slots hold the new rows; every other bit of the pool is as it was."""
    slots = step.inputs["slot_mapping"][: step.live_tokens].long()
    slots = slots[slots >= 0]
    flat_after, flat_before, flat_reference = (x.flatten(0, 1) for x in (after, before, reference))
    # Rotary is computed here and there in float32, in another order: the last bit may differ.
    rounding = {"float32": 1e-6, "float16": 2e-3, "bfloat16": 1.6e-2}[step.shape.pool]
    torch.testing.assert_close(
        flat_after[slots].float(), flat_reference[slots].float(), rtol=rounding, atol=rounding / 2
    )
    others = torch.ones(flat_after.shape[0], dtype=torch.bool)
    others[slots] = False
    integer = torch.int32 if after.dtype == torch.float32 else torch.int16
    assert torch.equal(flat_after[others].view(integer), flat_before[others].view(integer))
