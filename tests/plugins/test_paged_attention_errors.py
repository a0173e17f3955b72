"""What the CPU operator refuses, and in which words; a refused call writes nothing."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument

from tests.plugins.attention_case import Shape, Step, make_step, run

I32 = torch.int32


def changed(name: str, index: tuple[int, ...], value: int) -> Callable[[Step], Step]:
    def change(step: Step) -> Step:
        tensor = step.inputs[name].clone()
        tensor[index] = value
        return step.with_inputs(**{name: tensor})

    return change


def replaced(name: str, tensor: torch.Tensor) -> Callable[[Step], Step]:
    return lambda step: step.with_inputs(**{name: tensor})


def dropped(name: str) -> Callable[[Step], Step]:
    return lambda step: Step(step.shape, {n: x for n, x in step.inputs.items() if n != name})


BAD_STEPS = {
    "block beyond the pools": (changed("block_table", (0, 1), 99), r"block_table\[0, 1\] is 99.*blocks 0 to"),
    "block missing": (changed("block_table", (0, 1), -1), r"block_table\[0, 1\] is -1"),
    "slot beyond the pools": (
        changed("slot_mapping", (2,), 10_000),
        r"slot_mapping\[2\] is 10000; slots are 0 to",
    ),
    "slot below -1": (changed("slot_mapping", (0,), -2), r"slot_mapping\[0\] is -2"),
    "position beyond the tables": (
        changed("position_ids", (1,), 4096),
        r"position_ids\[1\] is 4096.*0 to 4095",
    ),
    "position below zero": (changed("position_ids", (1,), -1), r"position_ids\[1\] is -1"),
    "negative past": (changed("past_seqlens", (0,), -1), r"past_seqlens of sequence 0 is -1"),
    "too long": (changed("past_seqlens", (0,), 500), r"sequence 0 has 501 tokens; its 4 columns.*hold 64"),
    "overflowing past": (changed("past_seqlens", (0,), 2**31 - 1), r"sequence 0 has 2147483648 tokens"),
    "lengths decrease": (changed("cumulative_sequence_length", (1,), 9), r"of sequence 0 goes from 0 to 9"),
    "lengths start late": (
        changed("cumulative_sequence_length", (0,), 1),
        r"starts with 1; it must start with 0",
    ),
    "lengths too short": (
        replaced("cumulative_sequence_length", torch.tensor([0, 1], dtype=I32)),
        r"\[3\] is needed",
    ),
    "slots too few": (
        replaced("slot_mapping", torch.zeros(2, dtype=I32)),
        r"slot_mapping has shape \[2\]; \[6\]",
    ),
    "query too narrow": (
        replaced("query", torch.zeros(6, 10)),
        r"query has shape \[6, 10\]; \[6, 192\] is needed",
    ),
    "key without value": (dropped("value"), r"key and value must both be given"),
    "no positions": (dropped("position_ids"), r"cos_cache, sin_cache and position_ids are needed"),
    "tables too wide": (
        lambda step: step.with_inputs(cos_cache=torch.ones(64, 17), sin_cache=torch.ones(64, 17)),
        r"cos_cache has 17 columns; at most head_dim / 2 = 16",
    ),
    "value pool of other blocks": (
        replaced("value_cache", torch.zeros(2, 16, 2, 32)),
        r"value_cache has shape",
    ),
    "norm weight": (
        lambda step: step.with_inputs(q_norm_weight=torch.ones(32)),
        r"q_norm_weight is not supported on CPU yet",
    ),
    "sinks of wrong length": (
        replaced("head_sink", torch.zeros(5)),
        r"head_sink has shape \[5\]; \[6\] is needed",
    ),
}


@pytest.mark.parametrize("case", BAD_STEPS)
def test_bad_step_is_refused_in_words(case: str) -> None:
    change, words = BAD_STEPS[case]
    step = make_step(Shape(rotary_dim=32), [(40, 1), (0, 5)])
    with pytest.raises((InvalidArgument, RuntimeError), match=words):
        run(change(step))


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        (Shape(heads=5, kv_heads=2), "num_heads is 5 and kv_num_heads is 2"),
        (Shape(window=0), "local_window_size is 0"),
        (Shape(head_dim=1040), "head size of keys is 1040"),
        (Shape(value_dim=16, packed=True), "packed query, key and value need one head size"),
    ],
)
def test_bad_attributes_are_refused_in_words(shape: Shape, words: str) -> None:
    with pytest.raises((InvalidArgument, RuntimeError), match=words):
        run(make_step(shape, [(3, 1)]))
