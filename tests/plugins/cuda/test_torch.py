"""The kernels as torch ops: schemas from descriptions, shapes under tracing, and the call through the C interface."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from model_repo.runtime.errors import BadInput
from plugins import torch_cuda
from plugins.cuda.case import relative_error
from plugins.cuda.library import AttributeDescription, Description, Library, TensorDescription
from plugins.cuda.shapes import can_be_made, new_outputs
from plugins.reference import paged_attention as reference
from tests.plugins.attention_case import Shape, make_step
from tests.plugins.test_ops import arguments


@pytest.fixture(name="toy")
def toy_ops(toy_library: Path) -> Iterator[Library]:
    """The toy's ops, for CPU tensors."""
    kernels = Library(toy_library)
    with torch_cuda.registered_for(kernels, "CPU"):
        yield kernels


def tensor(name: str, role: str, kind: str, *shape: str, optional: bool = False) -> TensorDescription:
    return TensorDescription(name, role, optional, False, kind, shape, "")


def test_schemas_follow_the_description() -> None:
    description = Description(
        "op",
        "",
        {"T": ("float16",)},
        (
            tensor("bias", "input", "T", "hidden", optional=True),
            tensor("x", "input", "T", "rows", "hidden"),
            tensor("pool", "inout", "T", "blocks"),
            tensor("y", "output", "T", "rows", "hidden"),
            tensor("lse", "output", "float32", "rows", optional=True),
        ),
        (
            AttributeDescription("epsilon", 1e-5, 0, 1, False, ""),
            AttributeDescription("window", -1, -1, 9, True, ""),
        ),
    )
    assert torch_cuda.in_place_schema(description) == (
        "(*, Tensor x, Tensor(a!) pool, Tensor(b!) y, Tensor? bias=None, Tensor(c!)? lse=None, "
        "float epsilon=1e-05, int window=-1) -> ()"
    )
    assert not can_be_made(description)  # a pool is written in place


def test_outputs_have_the_shapes_that_the_description_says() -> None:
    description = Description(
        "op",
        "",
        {"T": ("float16", "float32"), "O": ("float16", "float8e4m3fn"), "Q": ("int8", "float8e4m3fn")},
        (
            tensor("gate_up", "input", "T", "rows", "2*hidden"),
            tensor("starts", "input", "int32", "batch+1"),
            tensor("y", "output", "T", "rows", "hidden/2"),
            tensor("scale", "output", "float32", "batch", "7"),
            tensor("same", "output", "O", "rows"),
            tensor("codes", "output", "Q", "rows"),
        ),
        (),
    )
    assert can_be_made(description)
    inputs = {"gate_up": torch.zeros(3, 16, dtype=torch.float16), "starts": torch.zeros(5, dtype=torch.int32)}
    made = new_outputs(description, inputs)
    assert {name: (tuple(t.shape), t.dtype) for name, t in made.items()} == {
        "y": ((3, 4), torch.float16),
        "scale": ((4, 7), torch.float32),
        "same": ((3,), torch.float16),
        "codes": ((3,), torch.int8),
    }
    assert (
        torch_cuda.functional_schema(description)
        == "(*, Tensor gate_up, Tensor starts) -> (Tensor, Tensor, Tensor, Tensor)"
    )


def test_calls_reach_the_kernel(toy: Library) -> None:
    values = torch.randn(3, 17).half()
    result = torch.ops.slipway.toy(input=values, factor=3.0)
    assert torch.equal(result, values * 3)
    written = torch.empty_like(values)
    torch.ops.slipway.toy.out(input=values, output=written)
    assert torch.equal(written, values * 2)
    with pytest.raises(BadInput, match="hidden is 13"):
        torch.ops.slipway.toy(input=torch.zeros(2, 13).half())


def test_ops_trace_and_say_what_they_change(toy: Library) -> None:
    values = torch.randn(3, 17).bfloat16()
    torch.library.opcheck(torch.ops.slipway.toy.default, (), {"input": values, "factor": 0.5})
    torch.library.opcheck(
        torch.ops.slipway.toy.out, (), {"input": values, "output": torch.empty_like(values)}
    )


def test_ops_go_with_their_registration(toy_library: Path) -> None:
    kernels = Library(toy_library)
    for _ in range(2):
        with torch_cuda.registered_for(kernels, "CPU"):
            assert torch.ops.slipway.toy(input=torch.ones(1, 4).half()).sum() == 8


def test_library_that_is_not_built_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_cuda, "current_library", lambda: None)
    torch_cuda.library.cache_clear()
    with pytest.raises(BadInput, match="run `make plugins`"):
        torch_cuda.library()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_paged_attention_by_the_kernel_is_the_reference(emulated_library: Path, dtype: torch.dtype) -> None:
    """The functional op that models call, with the kernel in the place of the reference's body."""
    kernels = Library(emulated_library)
    for shape in (
        Shape(heads=4, kv_heads=2, head_dim=32, block_size=16),
        Shape(
            heads=4,
            kv_heads=2,
            head_dim=64,
            value_dim=32,
            block_size=16,
            sinks=True,
            alibi=True,
            softcap=2.0,
            window=6,
        ),
    ):
        given = [
            value.to(dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value
            for value in arguments(make_step(shape, [(7, 1), (0, 5), (20, 3)]))
        ]
        output, keys, values = torch_cuda.paged_attention(kernels, *given)
        wanted = reference.paged_attention(
            *given[:9],  # type: ignore[arg-type]
            head_sink=given[9],  # type: ignore[arg-type]
            alibi_slopes=given[10],  # type: ignore[arg-type]
            distance_bias=given[11],  # type: ignore[arg-type]
            scale=shape.scale,
            softcap=shape.softcap,
            local_window_size=shape.window,
        )
        assert relative_error(output, wanted[0]) < (1e-3 if dtype == torch.float16 else 8e-3)
        assert torch.equal(keys, wanted[1])
        assert torch.equal(values, wanted[2])


def test_distance_bias_is_refused_in_words(emulated_library: Path) -> None:
    given = arguments(make_step(Shape(block_size=16, distances=4), [(7, 1)]))
    with pytest.raises(BadInput, match=r"given distance_bias .* which the CUDA kernel does not take"):
        torch_cuda.paged_attention(Library(emulated_library), *given)


def test_float32_is_refused_in_words(emulated_library: Path) -> None:
    given = arguments(make_step(Shape(block_size=16), [(7, 1)]))
    with pytest.raises(BadInput, match="query is float32; allowed: float16, bfloat16"):
        torch_cuda.paged_attention(Library(emulated_library), *given)
