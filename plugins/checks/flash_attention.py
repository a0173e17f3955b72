"""Cases of `flash_attention`: lengths, head sizes, masks alone and together, strides, padding, E4M3."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from plugins.cuda.case import Case, Scale
from plugins.cuda.company import Company

from ._flash_attention import E4M3, E4M3_CAPABILITY, Setup, case_of, company_of


def setups(scale: Scale) -> Iterator[Setup]:
    """The calls of a scale; the quick ones need one dtype and one head size of the kernel, and E4M3."""
    if scale is Scale.QUICK:
        yield Setup((1, 0, 54, 17), (3, 20, 40, 17), heads=4, kv_heads=2, causal=True, padding=3, sink=True)
        yield Setup((131,), heads=1, causal=True, window_left=40)
        yield Setup(
            (33, 20), (54, 41), heads=4, kv_heads=2, head_dim=40, value_dim=56, softcap=2.0, alibi=True
        )
        yield Setup((40, 9), (70, 17), window_right=9, window_left=20, bias="bhq")
        yield Setup((20, 19), packed=True, heads=2, dtype=E4M3)
        return
    if scale is Scale.SMALL:
        yield from small()
        return
    yield from small()
    yield from full()


def small() -> Iterator[Setup]:
    """Odd lengths, each feature alone and several together, each compiled head size, padded sizes."""
    half, brain = torch.float16, torch.bfloat16
    uneven = Setup((1, 17, 54), (1, 17, 54))
    yield replace(uneven, padding=5)
    yield replace(uneven, causal=True, dtype=brain)
    yield Setup((17, 1), (97, 130), causal=True, heads=3)
    yield Setup((54,), (17,), causal=True, heads=1)  # the first 37 rows see nothing
    yield Setup((54,), (17,), causal=True, heads=1, sink=True, padding=2)
    yield Setup((0, 5, 0, 3), (4, 0, 0, 2), padding=1)
    yield Setup((130,), heads=1, causal=True)
    yield Setup((97,), (161,), heads=1, causal=True, window_left=33)
    yield Setup((70,), heads=1, window_left=5, window_right=4, dtype=brain)  # local attention of encoders
    yield Setup((40,), (60,), heads=1, window_right=7)
    yield Setup(
        (30,), (65,), window_left=0, heads=1, window_right=0, sink=True
    )  # nothing visible but the sink
    yield Setup((30,), (65,), softcap=1.5)
    yield Setup((30, 9), (65, 70), alibi=True)
    yield Setup((30,), (65,), scale=0.4, log_sum_exp=False)
    yield Setup((30, 9), (65, 17), sink=True, sink_dtype=half)
    yield Setup((30, 9), (65, 17), bias="bhq")
    yield Setup((30, 9), (65, 17), bias="hq", bias_dtype=brain, dtype=brain, causal=True)
    yield Setup((30, 9), (65, 17), bias="b")
    yield Setup(
        (20, 33), (65, 50), heads=4, kv_heads=2, causal=True, softcap=2.0, alibi=True, bias="h", sink=True
    )
    yield Setup((54, 3), packed=True, heads=4, kv_heads=2, causal=True, padding=4)
    yield Setup((20,), (33,), head_dim=128, kv_heads=2, dtype=brain, causal=True)
    yield Setup((20,), (40,), head_dim=256, heads=1)
    yield Setup((9,), (40,), head_dim=16, heads=1, causal=True)
    yield Setup((9,), (40,), head_dim=72, value_dim=40, heads=1)
    yield Setup((9,), (20,), head_dim=80, heads=1, packed=False, window_left=9, causal=True)
    yield Setup((9,), packed=True, head_dim=96, value_dim=104, heads=1)
    yield Setup((9,), (20,), head_dim=192, value_dim=128, heads=1)
    yield Setup((40, 1), (70, 33), dtype=E4M3, heads=2)
    yield Setup(
        (20,), (70,), dtype=E4M3, heads=2, output=brain, causal=True, softcap=0.7, scale=0.6, sink=True
    )
    yield Setup((9,), (40,), dtype=E4M3, head_dim=112, value_dim=80, heads=1, bias="hq", bias_dtype=half)
    yield Setup((9,), dtype=E4M3, head_dim=144, value_dim=256, heads=1, packed=True)


def full() -> Iterator[Setup]:
    """What only a GPU has the time for."""
    half, brain = torch.float16, torch.bfloat16
    lengths = (1, 17, 54, 97, 512, 1023, 4097)
    for head_dim in (64, 128, 256):
        for dtype in (half, brain):
            yield Setup(lengths, head_dim=head_dim, dtype=dtype, causal=True, padding=100)
            base = Setup(lengths[:-1], heads=4, kv_heads=2, head_dim=head_dim, dtype=dtype)
            yield replace(base, causal=True, window_left=300, packed=True)
        together = replace(base, dtype=half)
        yield together
        yield replace(together, softcap=2.0, alibi=True, sink=True, causal=True)
        yield replace(together, queries=(54, 512), bias="bhq", bias_dtype=half)
        yield replace(together, window_left=65, window_right=64)
        yield Setup((1, 100, 1, 0), (32768, 5000, 1, 700), heads=8, head_dim=head_dim, causal=True)
        e4m3 = replace(together, dtype=E4M3)
        yield replace(e4m3, causal=True, padding=7)
        yield replace(e4m3, output=brain, packed=True)
        yield replace(e4m3, window_left=300, causal=True, output=brain)
        yield replace(e4m3, softcap=2.0, alibi=True, sink=True, causal=True)
        yield replace(e4m3, queries=(54, 512), bias="bhq", bias_dtype=half)
        yield replace(e4m3, queries=(1, 100, 1, 0), keys=(32768, 5000, 1, 700), causal=True)
    many = tuple((37 * i * i + 11 * i) % 300 for i in range(256))
    yield Setup(many, heads=4, causal=True, head_dim=128, dtype=brain)
    yield Setup(many[:64], many[64:128], heads=4, causal=True, sink=True)
    yield Setup((700, 65), head_dim=72, value_dim=104, heads=2, kv_heads=2)
    yield Setup((700, 65), head_dim=192, value_dim=128, heads=2, kv_heads=2, causal=True)


def cases(scale: Scale, seed: int) -> Iterator[Case]:
    """All right calls of a scale, on a full one also in the form for every chip, and calls that must be refused."""
    for number, setup in enumerate(setups(scale)):
        case = case_of(setup, seed * 1000 + number)
        yield case
        if scale is Scale.FULL:
            yield replace(case, name=f"{case.name} form=1", attributes={**case.attributes, "form": 1})
    if scale is not Scale.QUICK:
        yield from refused()


def refused() -> Iterator[Case]:
    """Calls with something wrong, and words of the message."""
    good = case_of(Setup((3, 4), heads=4, kv_heads=2), seed=0)

    def bad(
        error: str,
        tensors: Mapping[str, Tensor] | None = None,
        output: Tensor | None = None,
        **attributes: float,
    ) -> Case:
        expected = {**good.expected, **({} if output is None else {"output": output})}
        given = {**good.attributes, **attributes}
        return replace(
            good,
            name=f"refused: {error}",
            tensors={**good.tensors, **(tensors or {})},
            expected=expected,
            attributes=given,
            error=error,
        )

    def with_size(size: int, dtype: torch.dtype = torch.float16) -> dict[str, Tensor]:
        rows = {name: torch.zeros(7, heads, size).to(dtype) for name, heads in (("query", 4), ("key", 2))}
        return {**rows, "value": rows["key"].clone()}

    query, key, offsets_q = (good.tensors[name] for name in ("query", "key", "cu_seqlens_q"))
    yield bad("query is float32; allowed: float16, bfloat16, float8e4m3fn", {"query": query.float()})
    yield bad("they must be the same", {"key": key.bfloat16()})
    yield bad("output is bfloat16; it must be float16 as query", output=torch.zeros(7, 4, 64).bfloat16())
    yield bad("head size 12; it must be a multiple of 8", with_size(12), torch.zeros(7, 4, 12).half())
    yield bad(
        "head size 264; it must be a multiple of 8, at most 256",
        with_size(264),
        torch.zeros(7, 4, 264).half(),
    )
    yield replace(
        bad("head size 24; it must be a multiple of 16", with_size(24, E4M3), torch.zeros(7, 4, 24).half()),
        least_compute_capability=E4M3_CAPABILITY,
    )
    wide = torch.zeros(7, 4, 68, dtype=torch.float16)
    yield bad("query has stride 68 on axis 1; it must be a multiple of 8", {"query": wide[:, :, :64]})
    yield bad("query has stride 68 on axis 2; it must be 1", {"query": wide.transpose(1, 2)[:, :64]})
    yield bad("4 heads and 3 kv_heads", {name: torch.zeros(7, 3, 64).half() for name in ("key", "value")})
    yield bad("cu_seqlens_q is int64; allowed: int32", {"cu_seqlens_q": offsets_q.long()})
    yield bad(
        "cu_seqlens_k is [3]; axis 0 must be batch+1, and batch is 1",
        {"cu_seqlens_q": offsets_q[:2], "cu_seqlens_k": torch.zeros(3).int()},
    )
    yield bad("bias is bfloat16; allowed: float32, and float16", {"bias": torch.zeros(1, 1, 4, 8).bfloat16()})
    yield bad("bias is [1, 3, 4, 8]", {"bias": torch.zeros(1, 3, 4, 8)})
    yield bad("head_sink is bfloat16", {"head_sink": torch.zeros(4).bfloat16()})
    yield bad("query_scale is given with float16 inputs", {"query_scale": torch.ones(4)})
    yield bad("alibi_slopes is [3]", {"alibi_slopes": torch.ones(3)})
    yield bad("window_right is 3 with causal 1", causal=1, window_right=3)
    yield bad("window_left is -2", window_left=-2)
    yield bad("causal is 0.5", causal=0.5)
    yield bad("softcap is -1", softcap=-1)
    yield bad("scale is nan", scale=float("nan"))
    yield bad("form is 3", form=3)
    null = key.clone()
    null.null_address = True  # type: ignore[attr-defined]  # how executors are asked for it
    yield bad("key is a null pointer", {"key": null})


def companies(seed: int, requests: int) -> Iterator[Company]:
    """One sequence alone, and as the last but one of `requests`."""
    for setup in (
        Setup((97,), (161,), causal=True, alibi=True, softcap=3.0),
        Setup((70,), head_dim=128, dtype=torch.bfloat16, window_left=33),
        Setup((70,), (230,), head_dim=128, dtype=E4M3, output=torch.bfloat16, causal=True),
    ):
        yield company_of(setup, seed, requests)
