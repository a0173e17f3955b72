"""PagedAttention with pools of codes, against the float32 reference on the numbers that the codes stand for."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from plugins.reference.kv_write import MOST
from tests.plugins.attention_case import (
    ISA_NUMBERS,
    POOL_TYPES,
    Shape,
    Step,
    expected,
    forced_isa,
    make_step,
    run,
)

SEQUENCES = [(37, 1), (0, 23), (5, 1), (0, 1), (70, 9), (140, 1), (3, 40)]
POOLS = ("int8", "float8e4m3fn")
SHAPES = {
    "plain": Shape(),
    "rotary, packed": Shape(head_dim=64, rotary_dim=64, packed=True),
    "odd, window": Shape(
        heads=5, kv_heads=1, head_dim=20, value_dim=12, block_size=7, rotary_dim=10, window=9
    ),
    "softcap, alibi, sinks": Shape(head_dim=48, softcap=5.0, alibi=True, sinks=True),
}


def case(pool: str, name: str = "plain") -> tuple[Step, torch.Tensor, torch.Tensor]:
    """A step on random codes, with scales that differ by head, and the two scales."""
    shape = Shape(**{**vars(SHAPES[name]), "pool": pool})
    step = make_step(shape, SEQUENCES, seed=4)
    dtype = POOL_TYPES[pool][1]
    scales = [torch.linspace(2.5, 5.1, shape.kv_heads) / MOST[dtype] * factor for factor in (1.0, 1.3)]
    pools = {}
    for name in ("key_cache", "value_cache"):
        generator = torch.Generator().manual_seed(len(name))
        codes = torch.rand(step.inputs[name].shape, generator=generator) * 2 - 1
        pools[name] = rounded(codes * MOST[dtype], dtype)
    return step.with_inputs(**pools, k_scale=scales[0], v_scale=scales[1]), scales[0], scales[1]


def rounded(numbers: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    bounded = numbers.clamp(-MOST[dtype], MOST[dtype])
    return (bounded.round() if dtype == torch.int8 else bounded).to(dtype)


@pytest.mark.parametrize("isa", ISA_NUMBERS)
@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("pool", POOLS)
def test_codes_are_written_and_read_as_the_numbers_they_stand_for(isa: str, name: str, pool: str) -> None:
    step, key_scale, value_scale = case(pool, name)
    with forced_isa(isa):
        found = run(step)
    floats = {k: v for k, v in step.inputs.items() if k not in ("k_scale", "v_scale")}
    before = {
        "key_cache": step.inputs["key_cache"].float() * key_scale[:, None],
        "value_cache": step.inputs["value_cache"].float() * value_scale[:, None],
    }
    plain = Step(Shape(**{**vars(step.shape), "pool": "float32"}), floats)
    # The new rows: the reference's own, rounded; rotary may differ by a rounding where a code changes.
    _, keys, values = expected(plain.with_inputs(**before))
    for codes, numbers, scale in (
        (found.key_cache, keys, key_scale),
        (found.value_cache, values, value_scale),
    ):
        wanted = rounded(numbers / scale[:, None], codes.dtype)
        assert int((ordered(codes) - ordered(wanted)).abs().max()) <= 1
        assert float((ordered(codes) != ordered(wanted)).float().mean()) < 1e-3
    # The output: attention over what the written codes stand for.
    after = {
        "key_cache": found.key_cache.float() * key_scale[:, None],
        "value_cache": found.value_cache.float() * value_scale[:, None],
    }
    output, _, _ = expected(
        plain.with_inputs(**after, slot_mapping=torch.full_like(floats["slot_mapping"], -1))
    )
    torch.testing.assert_close(found.output, output, rtol=2e-5, atol=2e-5)


def ordered(codes: torch.Tensor) -> torch.Tensor:
    """Integers in the order of what the codes stand for, neighbours differing by one; both zeros of E4M3 are 0."""
    if codes.dtype == torch.int8:
        return codes.int()
    bits = codes.view(torch.uint8).int()
    return torch.where(bits < 128, bits, 128 - bits)


@pytest.mark.parametrize("isa", ISA_NUMBERS)
def test_every_number_is_rounded_to_e4m3_as_torch_rounds_it(isa: str) -> None:
    """Halves between neighbours, one float beside them, subnormal codes, what is beyond the range, infinity, NaN."""
    codes = torch.arange(127, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    halves = ((codes[1:] + codes[:-1]) / 2).numpy()
    beside = [np.nextafter(halves, np.float32(end)) for end in (0, 1e9)]
    more = [464.0, 465.0, 1e30, np.inf, 1e-30, np.nan]
    numbers = torch.from_numpy(np.concatenate([codes.numpy(), halves, *beside, more]).astype(np.float32))
    numbers = torch.cat([numbers, -numbers])
    shape = Shape(heads=1, kv_heads=1, head_dim=32, pool="float8e4m3fn")
    rows = -(-len(numbers) // 32)
    step = make_step(shape, [(0, rows)])
    key = torch.nn.functional.pad(numbers, (0, rows * 32 - len(numbers))).reshape(rows, 32)
    with forced_isa(isa):
        found = run(step.with_inputs(key=key, value=key, k_scale=torch.ones(1), v_scale=torch.ones(1)))
    written = found.value_cache.view(torch.uint8).flatten(0, 1)[step.inputs["slot_mapping"].long(), 0]
    wanted = rounded(key, torch.float8_e4m3fn)
    assert torch.equal(written, wanted.view(torch.uint8))


@pytest.mark.parametrize("isa", ISA_NUMBERS)
@pytest.mark.parametrize("new", [1, 2])
def test_every_code_of_e4m3_is_read_as_torch_reads_it(isa: str, new: int) -> None:
    """A sequence whose key 0 has all of the weight gives value 0, for one new token (decode) and for two."""
    shape = Shape(heads=1, kv_heads=1, head_dim=16, value_dim=256, pool="float8e4m3fn")
    step = make_step(shape, [(1, new)])
    slot = int(step.inputs["block_table"][0, 0]) * shape.block_size
    keys, values = (step.inputs[name].flatten(0, 1).clone() for name in ("key_cache", "value_cache"))
    keys.view(torch.uint8)[slot] = torch.full((1, 16), 0x7E, dtype=torch.uint8)
    values.view(torch.uint8)[slot, 0] = torch.arange(256, dtype=torch.uint8)
    changed = step.with_inputs(
        key_cache=keys.view_as(step.inputs["key_cache"]),
        value_cache=values.view_as(step.inputs["value_cache"]),
        query=torch.ones(new, 16),
        key=-torch.ones(new, 16),
        value=torch.zeros(new, 256),
        k_scale=torch.ones(1),
        v_scale=torch.ones(1),
    )
    with forced_isa(isa):
        found = run(changed)
    wanted = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    for row in found.output:
        torch.testing.assert_close(row, wanted, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("pool", POOLS)
def test_beyond_the_scale_codes_saturate(pool: str) -> None:
    step, _, _ = case(pool)
    step.inputs["key"][0, :2] = torch.tensor([1e6, -1e6])
    found = run(step)
    slot = int(step.inputs["slot_mapping"][0])
    size, most = step.shape.block_size, MOST[POOL_TYPES[pool][1]]
    assert found.key_cache[slot // size, slot % size, 0, :2].tolist() == [most, -most]


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"k_scale": None}, "pools of int8 and float8e4m3fn need k_scale and v_scale"),
        ({"k_scale": torch.ones(5)}, r"k_scale has shape \[5\]; \[2\] is needed"),
        ({"v_scale": torch.tensor([1.0, 0.0])}, "v_scale of head 1 is not above zero"),
    ],
)
def test_scales_that_do_not_fit_are_refused(
    pool: str, change: dict[str, torch.Tensor | None], words: str
) -> None:
    step, _, _ = case(pool)
    inputs = {name: value for name, value in {**step.inputs, **change}.items() if value is not None}
    with pytest.raises(Exception, match=words):
        run(Step(step.shape, inputs))


def test_scales_without_codes_are_refused() -> None:
    step = make_step(Shape(), SEQUENCES)
    with pytest.raises(Exception, match="go with pools of int8 and float8e4m3fn, and these are not"):
        run(step.with_inputs(k_scale=torch.ones(2), v_scale=torch.ones(2)))
