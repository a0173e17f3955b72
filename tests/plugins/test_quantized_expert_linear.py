"""QuantizedExpertLinear on the CPU against ExpertLinear's definition on what the codes mean."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest
import torch

from calibration.schemes import Scheme, dequantize, quantize
from pipeline.targets.quantized_experts import packed_experts
from plugins.reference.expert_linear import expert_linear
from tests.plugins.attention_case import forced_isa
from tests.plugins.test_quantized_matmul import numbers, session

BLOCK = 32
SCHEMES = {
    "int8": Scheme("int8", "channel"),
    "int8 in blocks": Scheme("int8", "block", BLOCK),
    "int4": Scheme("int4", "block", BLOCK, signed_scales=True),
}
KINDS = [("int8", 0), ("int8 in blocks", 0), ("int4", 0), ("int4", 1)]
"""Of weights, and whether blocks of rows have scales of their own."""


def rounded(rows: np.ndarray, block: int | None) -> np.ndarray:
    """Rows as int8 with a scale of their own means them; or each `block` of theirs."""
    parts = [rows] if block is None else np.split(rows, range(block, rows.shape[1], block), axis=1)
    return np.concatenate([dequantize(quantize(part, Scheme("int8", "token"))) for part in parts], axis=1)


def node(
    weight: np.ndarray, kind: str, blocks: int, threads: int = 2
) -> tuple[ort.InferenceSession, np.ndarray]:
    """A session with one node, and the weight that its codes mean; weight [experts, out, in]."""
    made = [quantize(matrix, SCHEMES[kind]) for matrix in weight]
    scales = np.stack([expert.scales for expert in made])
    bits = SCHEMES[kind].bits
    codes, factors = packed_experts(
        np.stack([expert.codes for expert in made]), scales, SCHEMES[kind].block, bits
    )
    constants = {"weight": codes, "weight_scale": factors}
    running = session(
        "QuantizedExpertLinear",
        {"input": 1, "expert_ids": 6},
        constants,
        threads=threads,
        bits=bits,
        columns=weight.shape[1],
        input_blocks=blocks,
    )
    return running, np.stack([dequantize(expert) for expert in made])


@pytest.mark.parametrize("isa", ["plain", "avx2", "avx512", "avx512_vnni"])
@pytest.mark.parametrize(("kind", "blocks"), KINDS)
@pytest.mark.parametrize(
    ("rows", "inputs", "columns", "experts"),
    [(1, 1, 1, 1), (7, 33, 65, 3), (20, 64, 130, 4), (3, 100, 71, 60), (0, 8, 8, 2)],
)
def test_each_row_is_multiplied_with_its_experts_codes(
    isa: str, kind: str, blocks: int, rows: int, inputs: int, columns: int, experts: int
) -> None:
    weight, given = numbers(experts, columns, inputs), numbers(rows, inputs)
    ids = np.random.default_rng(rows).integers(0, experts, rows).astype(np.int32)
    with forced_isa(isa):
        running, meant = node(weight, kind, blocks)
        (found,) = running.run(None, {"input": given, "expert_ids": ids})
    seen = given if kind == "int8 in blocks" else rounded(given, BLOCK if blocks else None)
    wanted = expert_linear(
        torch.from_numpy(seen), torch.from_numpy(meant), torch.from_numpy(ids), transposed=False
    ).numpy()
    # Scales of blocks are kept with 11 bits.
    near = 6e-4 if SCHEMES[kind].block else 1e-5
    assert np.abs(found - wanted).max(initial=0) <= near * np.abs(wanted).max(initial=1)


@pytest.mark.parametrize(("kind", "blocks"), KINDS)
def test_a_row_has_the_same_bits_alone_and_in_company(kind: str, blocks: int) -> None:
    weight, given = numbers(3, 100, 72), numbers(37, 72)
    ids = np.random.default_rng(1).integers(0, 3, 37).astype(np.int32)
    (together,) = node(weight, kind, blocks)[0].run(None, {"input": given, "expert_ids": ids})
    single, _ = node(weight, kind, blocks, threads=1)
    for row in (0, 5, 36):
        (alone,) = single.run(None, {"input": given[row : row + 1], "expert_ids": ids[row : row + 1]})
        assert np.array_equal(alone.view(np.int32), together[row : row + 1].view(np.int32))


def test_what_does_not_fit_is_refused() -> None:
    running, _ = node(numbers(3, 20, 40), "int8", 0)
    with pytest.raises(Exception, match=r"expert_ids\[1\] is 3; there are 3 experts"):
        running.run(None, {"input": numbers(2, 40), "expert_ids": np.array([0, 3], np.int32)})
    with pytest.raises(Exception, match=r"for 48 inputs, 20 columns and 8 bits; they must be \[experts"):
        running.run(None, {"input": numbers(2, 48), "expert_ids": np.array([0, 2], np.int32)})
    with pytest.raises(Exception, match=r"expert_ids \[3\]; they must be \[rows, in\] and \[rows\]"):
        running.run(None, {"input": numbers(2, 40), "expert_ids": np.array([0, 2, 1], np.int32)})
