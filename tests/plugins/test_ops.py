"""The torch operator: schema, shapes under tracing, and its body."""

from __future__ import annotations

import torch

import plugins.ops  # noqa: F401  (registers the operator)
from tests.plugins.attention_case import Shape, Step, expected, make_step


def arguments(step: Step) -> tuple[torch.Tensor | float | int | None, ...]:
    shape, inputs = step.shape, step.inputs
    return (
        inputs["query"].view(-1, shape.heads, shape.head_dim),
        inputs["key"].view(-1, shape.kv_heads, shape.head_dim),
        inputs["value"].view(-1, shape.kv_heads, shape.values),
        torch.nan_to_num(inputs["key_cache"]),
        torch.nan_to_num(inputs["value_cache"]),
        inputs["cumulative_sequence_length"],
        inputs["past_seqlens"],
        inputs["block_table"],
        inputs["slot_mapping"],
        inputs.get("head_sink"),
        inputs.get("alibi_slopes"),
        inputs.get("distance_bias"),
        shape.scale,
        shape.softcap,
        shape.window,
    )


def test_operator_is_functional_and_traces() -> None:
    """torch's own checks: no input changed or aliased, fake shapes as the real ones, autograd registration."""
    for shape in (
        Shape(),
        Shape(value_dim=12, sinks=True, alibi=True, softcap=2.0, window=6),
        Shape(distances=3),
    ):
        given = arguments(make_step(shape, [(7, 1), (0, 5)]))
        torch.library.opcheck(torch.ops.slipway.paged_attention.default, given)


def test_body_is_the_reference() -> None:
    step = make_step(Shape(value_dim=12), [(7, 1), (0, 5)])
    output, keys, values = torch.ops.slipway.paged_attention(*arguments(step))
    wanted = expected(step)
    torch.testing.assert_close(output.flatten(1), wanted[0])
    assert torch.equal(keys, wanted[1])
    assert torch.equal(values, wanted[2])
