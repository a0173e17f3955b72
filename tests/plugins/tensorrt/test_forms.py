"""What plugins say of types, shapes and workspace, and that they call the kernels rightly: on emulated kernels."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import pytest
import torch

from model_repo.runtime.errors import BadInput
from plugins.cuda.case import Outcome, faults
from plugins.cuda.library import Library
from plugins.tensorrt import names
from plugins.tensorrt.form import Extent, PluginForm
from plugins.tensorrt.python_plugin import FORMS
from tests.plugins.tensorrt.calls import Call, calls

PAGED = FORMS[names.PAGED_ATTENTION]
LEAST = ("query", "key_cache", "value_cache", "cumulative_sequence_length", "past_seqlens", "block_table")


def shape_of(call: Call, output: int) -> list[int]:
    """What an output's extents come to for the call's inputs."""

    def size(extent: Extent) -> int:
        base = 1 if extent.tensor is None else call.tensors[extent.tensor].shape[extent.axis]
        return base * extent.factor // extent.divisor

    return [size(extent) for extent in call.form.extents(output)]


@pytest.mark.parametrize("name", FORMS)
def test_each_case_of_the_kernel_comes_out_right(kernels: Library, name: str) -> None:
    count = packed = 0
    for call in calls(kernels, name):
        order, workspace = call.order, call.workspace()
        dtypes, shapes = [t.dtype for t in order], [t.shape for t in order]
        places = len(call.form.inputs)
        assert all(call.form.takes(place, dtypes) for place in range(len(order))), call.case.name
        assert call.form.output_types(dtypes[:places]) == dtypes[places:], call.case.name
        assert [shape_of(call, i) for i in range(len(call.form.outputs))] == [
            list(s) for s in shapes[places:]
        ]
        call.form.enqueue(dtypes, shapes, [t.data_ptr() for t in order], workspace.data_ptr(), 0)
        expected = {key: value for key, value in call.case.expected.items() if key in call.tensors}
        checked = dataclasses.replace(call.case, tensors={}, expected=expected)
        got = {key: call.result(key) for key in expected}
        assert faults(checked, Outcome(0, "", got)) == [], call.case.name
        count += 1
        packed += "key" not in call.form.inputs and name != names.INT4_GEMM
    assert count >= 4
    assert packed or name == names.INT4_GEMM


def test_pools_come_back_as_outputs_in_place(kernels: Library) -> None:
    plain = PAGED(kernels, LEAST, {"num_heads": 4, "kv_num_heads": 2})
    assert plain.outputs == ("output", "key_cache", "value_cache")
    assert plain.extents(0) == [Extent("query", 0), Extent("value_cache", 3, 4)]
    scaled = PAGED(kernels, (*LEAST, "k_token_scale", "v_token_scale"), {})
    assert scaled.outputs == ("output", "key_cache", "value_cache", "k_token_scale", "v_token_scale")


def test_types_follow_the_description(kernels: Library) -> None:
    form = PAGED(kernels, LEAST, {})
    half, bf16, int8, int32 = torch.float16, torch.bfloat16, torch.int8, torch.int32
    rest = [int32, int32, int32]
    assert form.takes(8, [half, int8, int8, *rest, half, int8, int8])
    assert not form.takes(2, [half, int8, half])  # one type of pool
    assert not form.takes(6, [half, int8, int8, *rest, bf16])  # the output has the query's type
    assert not form.takes(0, [torch.float32])
    assert not form.takes(3, [half, int8, int8, torch.int64])
    assert form.output_types([bf16, int8, int8, *rest]) == [bf16, int8, int8]


def test_packed_weights_may_be_called_int8(kernels: Library) -> None:
    form = FORMS[names.INT4_GEMM](kernels, ("x", "weight", "scale"), {"group": 128, "columns": 64})
    assert form.takes(1, [torch.float16, torch.int8])
    assert form.takes(1, [torch.float16, torch.uint8])
    shapes = [(3, 256), (1, 4, 2048), (1, 2, 64), (3, 64)]
    dtypes = [torch.float16, torch.int8, torch.float16, torch.float16]
    assert form.workspace_bytes(dtypes, shapes) == form.workspace_bytes(
        [torch.float16, torch.uint8, *dtypes[2:]], shapes
    )


def test_workspace_is_the_kernels_own_answer(kernels: Library) -> None:
    for call in calls(kernels, names.PAGED_ATTENTION):
        asked = kernels.workspace_bytes("paged_attention", call.tensors, call.case.attributes)
        assert call.workspace().numel() == asked


def test_no_smaller_step_needs_more_workspace(kernels: Library) -> None:
    """Builders ask for the largest shapes of a profile alone."""
    rotary = ("cos_cache", "sin_cache", "slot_mapping", "position_ids")
    form = PAGED(
        kernels, (*LEAST, *rotary), {"num_heads": 4, "kv_num_heads": 2, "do_rotary": 1, "workers": 376}
    )
    half, int32, wide = torch.float16, torch.int32, torch.float32
    dtypes = [half, half, half, int32, int32, int32, wide, wide, int32, int32, half, half, half]

    def needed(tokens: int, batch: int, max_blocks: int, blocks: int) -> int:
        pool, table = (blocks, 16, 2, 64), (64, 32)
        step = [(tokens, 512), pool, pool, (batch + 1,), (batch,), (batch, max_blocks)]
        return form.workspace_bytes(
            dtypes, [*step, table, table, (tokens,), (tokens,), (tokens, 256), pool, pool]
        )

    sizes = list(itertools.product((0, 1, 8, 64, 512), (1, 3, 64), (1, 64, 512), (1, 64, 4096)))
    found = {size: needed(*size) for size in sizes}
    pairs = [(a, b) for a in sizes for b in sizes if all(x <= y for x, y in zip(a, b, strict=True))]
    assert [(a, b) for a, b in pairs if found[a] > found[b]] == []
    assert len(set(found.values())) > 10


@pytest.mark.parametrize(
    ("inputs", "attributes", "words"),
    [
        ((*LEAST, "distance_bias"), {}, "has no input 'distance_bias'; it has query, key"),
        (LEAST[1:], {}, "needs the input 'query'"),
        ((*LEAST, "query"), {}, "input 'query' is named twice"),
        (LEAST, {"heads": 3}, "has no attribute 'heads'; it has num_heads, kv_num_heads"),
    ],
)
def test_what_the_kernel_has_not_is_refused(
    kernels: Library, inputs: Any, attributes: Any, words: str
) -> None:
    with pytest.raises(BadInput, match=f"plugin PagedAttention: .*{words}"):
        PAGED(kernels, inputs, attributes)


def test_flash_attention_needs_its_heads(kernels: Library) -> None:
    form: type[PluginForm] = FORMS[names.FLASH_ATTENTION]
    with pytest.raises(BadInput, match="needs the attribute 'kv_num_heads'"):
        form(kernels, ("query", "cu_seqlens_q", "cu_seqlens_k"), {"num_heads": 2})
    with pytest.raises(BadInput, match="needs the input 'value'"):
        form(kernels, ("query", "key", "cu_seqlens_q", "cu_seqlens_k"), {"num_heads": 2, "kv_num_heads": 2})


def test_what_is_lowered_without_the_kernels_is_what_they_take(kernels: Library) -> None:
    takes = [t.name for t in kernels.describe("paged_attention").tensors if t.role != "output"]
    assert sorted(names.PAGED_ATTENTION_INPUTS) == sorted(takes)
