"""PagedAttention with pools of codes, against the float32 reference on the numbers that the codes stand for."""

from __future__ import annotations

import pytest
import torch

from tests.plugins.attention_case import ISA_NUMBERS, Shape, Step, expected, forced_isa, make_step, run

SEQUENCES = [(37, 1), (0, 23), (5, 1), (0, 1), (70, 9), (140, 1), (3, 40)]
SHAPES = {
    "plain": Shape(pool="int8"),
    "rotary, packed": Shape(pool="int8", head_dim=64, rotary_dim=64, packed=True),
    "odd, window": Shape(
        pool="int8", heads=5, kv_heads=1, head_dim=20, value_dim=12, block_size=7, rotary_dim=10, window=9
    ),
    "softcap, alibi, sinks": Shape(pool="int8", head_dim=48, softcap=5.0, alibi=True, sinks=True),
}


def case(shape: Shape) -> tuple[Step, torch.Tensor, torch.Tensor]:
    """A step on random codes, with scales that differ by head, and the two scales."""
    step = make_step(shape, SEQUENCES, seed=4)
    scales = [torch.linspace(0.02, 0.04, shape.kv_heads) * factor for factor in (1.0, 1.3)]
    pools = {}
    for name in ("key_cache", "value_cache"):
        generator = torch.Generator().manual_seed(len(name))
        pools[name] = torch.randint(-127, 128, step.inputs[name].shape, generator=generator, dtype=torch.int8)
    return step.with_inputs(**pools, k_scale=scales[0], v_scale=scales[1]), scales[0], scales[1]


@pytest.mark.parametrize("isa", ISA_NUMBERS)
@pytest.mark.parametrize("name", SHAPES)
def test_codes_are_written_and_read_as_the_numbers_they_stand_for(isa: str, name: str) -> None:
    step, key_scale, value_scale = case(SHAPES[name])
    with forced_isa(isa):
        found = run(step)
    floats = {k: v for k, v in step.inputs.items() if k not in ("k_scale", "v_scale")}
    before = {
        "key_cache": step.inputs["key_cache"] * key_scale[:, None],
        "value_cache": step.inputs["value_cache"] * value_scale[:, None],
    }
    plain = Step(Shape(**{**vars(step.shape), "pool": "float32"}), floats)
    # The new rows: the reference's own, rounded; rotary may differ by a rounding where a code changes.
    _, keys, values = expected(plain.with_inputs(**before))
    for codes, numbers, scale in (
        (found.key_cache, keys, key_scale),
        (found.value_cache, values, value_scale),
    ):
        wanted = (numbers / scale[:, None]).round().clamp(-127, 127)
        assert int((codes - wanted).abs().max()) <= 1
        assert float((codes != wanted).float().mean()) < 1e-3
    # The output: attention over what the written codes stand for.
    after = {
        "key_cache": found.key_cache * key_scale[:, None],
        "value_cache": found.value_cache * value_scale[:, None],
    }
    output, _, _ = expected(
        plain.with_inputs(**after, slot_mapping=torch.full_like(floats["slot_mapping"], -1))
    )
    torch.testing.assert_close(found.output, output, rtol=2e-5, atol=2e-5)


def test_beyond_the_scale_codes_saturate() -> None:
    step, _, _ = case(SHAPES["plain"])
    step.inputs["key"][0, :2] = torch.tensor([1e6, -1e6])
    found = run(step)
    slot = int(step.inputs["slot_mapping"][0])
    size = step.shape.block_size
    assert found.key_cache[slot // size, slot % size, 0, :2].tolist() == [127, -127]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"k_scale": None}, "int8 pools need k_scale and v_scale"),
        ({"k_scale": torch.ones(5)}, r"k_scale has shape \[5\]; \[2\] is needed"),
        ({"v_scale": torch.tensor([1.0, 0.0])}, "v_scale of head 1 is not above zero"),
    ],
)
def test_scales_that_do_not_fit_are_refused(change: dict[str, torch.Tensor | None], words: str) -> None:
    step, _, _ = case(SHAPES["plain"])
    inputs = {name: value for name, value in {**step.inputs, **change}.items() if value is not None}
    with pytest.raises(Exception, match=words):
        run(Step(step.shape, inputs))


def test_scales_without_codes_are_refused() -> None:
    step = make_step(Shape(), SEQUENCES)
    with pytest.raises(Exception, match="go with int8 pools, and these are not"):
        run(step.with_inputs(k_scale=torch.ones(2), v_scale=torch.ones(2)))
