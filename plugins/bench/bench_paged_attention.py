"""Times `slipway::PagedAttention` on CPU against torch's scaled_dot_product_attention.

    python -m plugins.bench.bench_paged_attention [--threads 2] [--rounds 20] [--isa avx512] [--output FILE.json]

The baseline gets an easier task on the same numbers: keys and values lie contiguous per sequence, nothing is
written, nothing is turned, and sequences of equal length share one batched call. Operator and baseline run in
alternation; the smallest time of all rounds counts. GB/s are bytes of cached keys and values read once, over
that time; GFLOP/s the two products over the visible keys.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import platform
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch
from onnx import TensorProto, helper

from plugins.cpu.build import library_path, registered
from plugins.reference.rotary import rotary_tables
from plugins.schemas import DOMAIN, PAGED_ATTENTION, VERSION

BLOCK_SIZE = 16
MAX_POSITIONS = 8192
ISA_NUMBERS = {"plain": 1, "avx2": 2, "avx512": 3}


@dataclass(frozen=True)
class Layer:
    """Attention sizes of one layer of a real model."""

    model: str
    heads: int
    kv_heads: int
    head_dim: int


LAYERS = (
    Layer("SmolLM2-135M", 9, 3, 64),
    Layer("Llama-3.2-1B", 32, 8, 64),
    Layer("Llama-3.1-8B", 32, 8, 128),
)

STEPS: dict[str, list[tuple[int, int]]] = {
    "decode, 1 x 128": [(127, 1)],
    "decode, 16 x 180": [(179, 1)] * 16,
    "decode, 1 long, 15 short": [(3999, 1), *[(20, 1)] * 15],
    "prefill 512": [(0, 512)],
    "chunk of 128 after 900": [(900, 128)],
    "15 decode and a chunk of 64": [*[(180, 1)] * 15, (100, 64)],
}
"""(tokens in the cache, new tokens) of each sequence of a step."""


@dataclass(frozen=True)
class Measurement:
    """One layer and step: microseconds of a call, and what that means. `ratio`: baseline over operator."""

    model: str
    step: str
    microseconds: float
    baseline_microseconds: float
    gigabytes_per_second: float
    gigaflops: float
    ratio: float


def one_node_session(layer: Layer, threads: int) -> ort.InferenceSession:
    """A session of one node: packed query, key and value, half-turned rotary embedding."""
    present = {
        "query": (TensorProto.FLOAT, 2),
        "key_cache": (TensorProto.FLOAT, 4),
        "value_cache": (TensorProto.FLOAT, 4),
        "cumulative_sequence_length": (TensorProto.INT32, 1),
        "past_seqlens": (TensorProto.INT32, 1),
        "block_table": (TensorProto.INT32, 2),
        "cos_cache": (TensorProto.FLOAT, 2),
        "sin_cache": (TensorProto.FLOAT, 2),
        "slot_mapping": (TensorProto.INT32, 1),
        "position_ids": (TensorProto.INT32, 1),
    }
    node = helper.make_node(
        PAGED_ATTENTION.name,
        [p.name if p.name in present else "" for p in PAGED_ATTENTION.inputs],
        ["output"],
        domain=DOMAIN,
        num_heads=layer.heads,
        kv_num_heads=layer.kv_heads,
        do_rotary=1,
    )
    inputs = [
        helper.make_tensor_value_info(name, kind, [f"{name}_{axis}" for axis in range(rank)])
        for name, (kind, rank) in present.items()
    ]
    outputs = [helper.make_tensor_value_info("output", TensorProto.FLOAT, None)]
    opsets = [helper.make_opsetid("", 24), helper.make_opsetid(DOMAIN, VERSION)]
    graph = helper.make_graph([node], "attention", inputs, outputs)
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=opsets, ir_version=11)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    registered(options)
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def step_arrays(layer: Layer, sequences: Sequence[tuple[int, int]]) -> dict[str, np.ndarray]:
    """Inputs of a step with random numbers, blocks in random order."""
    random = np.random.default_rng(0)
    blocks = [-(-(past + new) // BLOCK_SIZE) for past, new in sequences]
    order = random.permutation(sum(blocks)).astype(np.int32)
    table = np.full((len(sequences), max(blocks)), -1, np.int32)
    slots: list[int] = []
    positions: list[int] = []
    for row, (past, new) in enumerate(sequences):
        table[row, : blocks[row]], order = order[: blocks[row]], order[blocks[row] :]
        for position in range(past, past + new):
            slots.append(int(table[row, position // BLOCK_SIZE]) * BLOCK_SIZE + position % BLOCK_SIZE)
            positions.append(position)
    cos, sin = rotary_tables(MAX_POSITIONS, layer.head_dim)
    pool = (sum(blocks), BLOCK_SIZE, layer.kv_heads, layer.head_dim)
    width = (layer.heads + 2 * layer.kv_heads) * layer.head_dim
    return {
        "query": random.standard_normal((len(slots), width), dtype=np.float32),
        "key_cache": random.standard_normal(pool, dtype=np.float32),
        "value_cache": random.standard_normal(pool, dtype=np.float32),
        "cumulative_sequence_length": np.cumsum([0, *(new for _, new in sequences)]).astype(np.int32),
        "past_seqlens": np.array([past for past, _ in sequences], np.int32),
        "block_table": table,
        "cos_cache": cos.numpy(),
        "sin_cache": sin.numpy(),
        "slot_mapping": np.array(slots, np.int32),
        "position_ids": np.array(positions, np.int32),
    }


def operator_call(session: ort.InferenceSession, arrays: dict[str, np.ndarray]) -> Callable[[], None]:
    """A call of the operator on inputs bound once."""
    binding = session.io_binding()
    values = {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in arrays.items()}
    for name, value in values.items():
        binding.bind_ortvalue_input(name, value)
    binding.bind_output("output")

    def call(keep_alive: object = (arrays, values)) -> None:
        session.run_with_iobinding(binding)

    return call


def baseline_call(layer: Layer, sequences: Sequence[tuple[int, int]]) -> Callable[[], None]:
    """The same attention by torch: one call for all sequences with the same lengths."""
    calls = []
    for (past, new), count in Counter(sequences).items():
        query = torch.randn(count, layer.heads, new, layer.head_dim)
        key = torch.randn(count, layer.kv_heads, past + new, layer.head_dim)
        value = torch.randn(count, layer.kv_heads, past + new, layer.head_dim)
        mask = None
        if past > 0 and new > 1:
            mask = torch.arange(past + new)[None, :] <= torch.arange(past, past + new)[:, None]
        calls.append((query, key, value, mask, mask is None and new > 1))

    def call() -> None:
        for query, key, value, mask, is_causal in calls:
            torch.nn.functional.scaled_dot_product_attention(
                query, key, value, attn_mask=mask, is_causal=is_causal, enable_gqa=True
            )

    return call


def measure(layer: Layer, name: str, session: ort.InferenceSession, rounds: int) -> Measurement:
    """Times one step of one layer, operator and baseline in turn."""
    sequences = STEPS[name]
    calls = (operator_call(session, step_arrays(layer, sequences)), baseline_call(layer, sequences))
    best = [float("inf"), float("inf")]
    for _ in range(rounds):
        for index, call in enumerate(calls):
            call()
            started = time.perf_counter()
            call()
            best[index] = min(best[index], time.perf_counter() - started)
    cached_tokens = sum(past + new for past, new in sequences)
    visible_keys = sum(new * past + new * (new + 1) // 2 for past, new in sequences)
    return Measurement(
        model=layer.model,
        step=name,
        microseconds=round(best[0] * 1e6, 1),
        baseline_microseconds=round(best[1] * 1e6, 1),
        gigabytes_per_second=round(
            cached_tokens * layer.kv_heads * layer.head_dim * 2 * 4 / best[0] / 1e9, 2
        ),
        gigaflops=round(visible_keys * layer.heads * layer.head_dim * 4 / best[0] / 1e9, 2),
        ratio=round(best[1] / best[0], 2),
    )


def processor_name() -> str:
    """The processor as Linux names it."""
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def main() -> None:
    """Prints a table; writes JSON where asked to."""
    parser = argparse.ArgumentParser(
        prog="python -m plugins.bench.bench_paged_attention", description=__doc__
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--isa", choices=ISA_NUMBERS, help="instruction set; default: the best here")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    library = ctypes.CDLL(str(library_path()))
    library.slipway_cpu_isa.restype = ctypes.c_char_p
    if arguments.isa and not library.slipway_cpu_force_isa(ISA_NUMBERS[arguments.isa]):
        parser.error(f"this processor has no {arguments.isa}")
    torch.set_num_threads(arguments.threads)
    isa = library.slipway_cpu_isa().decode()
    print(f"{processor_name()}, {arguments.threads} threads, {isa}, float32 pools, blocks of {BLOCK_SIZE}")
    print("baseline: torch scaled_dot_product_attention on contiguous keys and values\n")
    print(
        f"{'model':14s} {'step':28s} {'us':>9s} {'GB/s':>7s} {'GFLOP/s':>8s} {'torch us':>9s} {'ratio':>6s}"
    )
    results = []
    for layer in LAYERS:
        session = one_node_session(layer, arguments.threads)
        for name in STEPS:
            m = measure(layer, name, session, arguments.rounds)
            results.append(m)
            print(
                f"{m.model:14s} {m.step:28s} {m.microseconds:9.1f} {m.gigabytes_per_second:7.2f} "
                f"{m.gigaflops:8.2f} {m.baseline_microseconds:9.1f} {m.ratio:6.2f}"
            )
    if arguments.output:
        record = {
            "processor": processor_name(),
            "threads": arguments.threads,
            "isa": isa,
            "versions": {"torch": torch.__version__, "onnxruntime": ort.__version__},
            "results": [asdict(m) for m in results],
        }
        arguments.output.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
