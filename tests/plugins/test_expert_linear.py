"""ExpertLinear on CPU against its definition, row by row."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor

import plugins.expert_ops  # noqa: F401  registers torch.ops.slipway.expert_linear
from plugins.cpu.build import registered
from plugins.reference.expert_linear import expert_linear
from plugins.schemas import DOMAIN, VERSION
from tests.plugins.attention_case import forced_isa


def run_node(
    rows: Tensor, weight: Tensor, expert_ids: Tensor, *, transposed: bool, threads: int = 2
) -> Tensor:
    names = ["input", "weight", "expert_ids"]
    types = [TensorProto.FLOAT, TensorProto.FLOAT, TensorProto.INT32]
    node = helper.make_node("ExpertLinear", names, ["output"], domain=DOMAIN, transposed=int(transposed))
    graph = helper.make_graph(
        [node],
        "one_node",
        [helper.make_tensor_value_info(n, t, None) for n, t in zip(names, types, strict=True)],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, None)],
    )
    opsets = [helper.make_opsetid("", 24), helper.make_opsetid(DOMAIN, VERSION)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=11)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    registered(options)
    running = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    feed = {"input": rows.numpy(), "weight": weight.numpy(), "expert_ids": expert_ids.numpy()}
    return torch.from_numpy(running.run(None, feed)[0])


def case(rows: int, in_size: int, out: int, experts: int, transposed: bool) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(rows + in_size)
    shape = (experts, in_size, out) if transposed else (experts, out, in_size)
    return (
        torch.randn(rows, in_size),
        torch.randn(shape),
        torch.randint(0, experts, (rows,), dtype=torch.int32),
    )


@pytest.mark.parametrize("isa", ["plain", "avx2", "avx512"])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(
    ("rows", "in_size", "out", "experts"),
    [(1, 1, 1, 1), (7, 33, 65, 3), (20, 64, 130, 4), (3, 100, 71, 60), (0, 8, 8, 2)],
)
def test_each_row_is_multiplied_with_its_experts_matrix(
    isa: str, transposed: bool, rows: int, in_size: int, out: int, experts: int
) -> None:
    given = case(rows, in_size, out, experts, transposed)
    wanted = expert_linear(*given, transposed=transposed)
    with forced_isa(isa):
        found = run_node(*given, transposed=transposed)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5 * in_size**0.5)
    in_torch = torch.ops.slipway.expert_linear(*given, transposed)
    torch.testing.assert_close(in_torch, wanted, rtol=1e-5, atol=1e-5 * in_size**0.5)


@pytest.mark.parametrize("transposed", [False, True])
def test_a_row_has_the_same_bits_alone_and_in_company(transposed: bool) -> None:
    rows, weight, expert_ids = case(37, 72, 100, 3, transposed)
    together = run_node(rows, weight, expert_ids, transposed=transposed)
    for row in (0, 5, 36):
        alone = run_node(
            rows[row : row + 1], weight, expert_ids[row : row + 1], transposed=transposed, threads=1
        )
        assert torch.equal(together[row : row + 1], alone)


def test_an_expert_that_is_not_there_is_refused() -> None:
    rows, weight, _ = case(2, 8, 8, 3, False)
    with pytest.raises(Exception, match=r"expert_ids\[1\] is 3; there are 3 experts"):
        run_node(rows, weight, torch.tensor([0, 3], dtype=torch.int32), transposed=False)


def test_shapes_that_do_not_fit_are_refused() -> None:
    rows, weight, expert_ids = case(2, 8, 9, 3, False)
    with pytest.raises(
        Exception, match=r"weight \[3, 9, 8\].* they must be \[rows, in\], \[experts, in, out\]"
    ):
        run_node(rows, weight, expert_ids, transposed=True)


def test_what_no_row_asks_for_is_not_read() -> None:
    """Cost follows the chosen experts; an expert that nobody chose may hold anything."""
    rows, weight, _ = case(5, 16, 24, 4, False)
    expert_ids = torch.tensor([2, 0, 2, 0, 0], dtype=torch.int32)
    weight[1] = weight[3] = float("nan")
    found = run_node(rows, weight, expert_ids, transposed=False)
    assert bool(np.isfinite(found.numpy()).all())
