"""How a case of `flash_attention` is made: sequences packed one after another, and what must come out of them.

Whatever must not be read is poison: rows beyond the last sequence, gaps between heads, elements of a bias where no
sequence has a query or a key.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from plugins.cuda.case import Case
from plugins.cuda.company import Company
from plugins.reference.flash_attention import flash_attention

E4M3 = torch.float8_e4m3fn
TOLERANCE = {torch.float16: 1e-3, torch.bfloat16: 8e-3, E4M3: 6e-2}
LOG_SUM_EXP_TOLERANCE = 1e-4
E4M3_CAPABILITY = 89
"""The least compute capability of a device that takes E4M3 inputs."""


@dataclass(frozen=True)
class Setup:
    """One call. queries, keys: lengths of the sequences; keys None: as queries. value_dim 0: as head_dim.

    bias: which of batch, heads and rows it has as axes of their own ("bhq", "h", ...), "" for none; those that it lacks
    have size 1, and rows stride 0. packed: query, key and value are views of one tensor of rows. padding: rows beyond
    the last sequence, full of poison. output: dtype of the output where the inputs are E4M3.
    """

    queries: tuple[int, ...]
    keys: tuple[int, ...] | None = None
    heads: int = 2
    kv_heads: int = 1
    head_dim: int = 64
    value_dim: int = 0
    dtype: torch.dtype = torch.float16
    output: torch.dtype = torch.float16
    causal: bool = False
    window_left: int = -1
    window_right: int = -1
    softcap: float = 0.0
    scale: float = 0.0
    alibi: bool = False
    bias: str = ""
    bias_dtype: torch.dtype = torch.float32
    sink: bool = False
    sink_dtype: torch.dtype = torch.float32
    packed: bool = False
    padding: int = 0
    log_sum_exp: bool = True
    form: int = 0

    @property
    def output_dtype(self) -> torch.dtype:
        """dtype of the output; that of the inputs unless they are E4M3."""
        return self.output if self.dtype == E4M3 else self.dtype

    @property
    def name(self) -> str:
        """The values that are not the default ones."""

        def text(value: object) -> str:
            if isinstance(value, tuple):
                return "+".join(map(str, value)) if len(value) <= 6 else f"{len(value)}x"
            return str(value).removeprefix("torch.")

        fields = self.__dataclass_fields__.values()
        return " ".join(
            f"{f.name}={text(getattr(self, f.name))}" for f in fields if getattr(self, f.name) != f.default
        )


def case_of(setup: Setup, seed: int) -> Case:
    """The call and, by the reference, what comes out of it."""
    tensors = inputs(setup, seed)
    attributes: dict[str, float] = {
        "scale": setup.scale,
        "causal": int(setup.causal),
        "window_left": setup.window_left,
        "window_right": setup.window_right,
        "softcap": setup.softcap,
        "form": setup.form,
    }
    expected = reference(tensors, attributes, setup.output_dtype)
    if not setup.log_sum_exp:
        del expected["log_sum_exp"]
    return Case(
        setup.name,
        "flash_attention",
        tensors,
        expected,
        attributes,
        TOLERANCE[setup.dtype],
        {"log_sum_exp": 1e-3 if setup.dtype == E4M3 else LOG_SUM_EXP_TOLERANCE},
        least_compute_capability=E4M3_CAPABILITY if setup.dtype == E4M3 else 0,
    )


def reference(
    tensors: Mapping[str, Tensor], attributes: Mapping[str, float], output_dtype: torch.dtype
) -> dict[str, Tensor]:
    """The outputs of a call, by the names of the description."""
    output, log_sum_exp = flash_attention(
        **tensors,
        scale=attributes["scale"],
        causal=bool(attributes["causal"]),
        window_left=int(attributes["window_left"]),
        window_right=int(attributes["window_right"]),
        softcap=attributes["softcap"],
        output_dtype=output_dtype,
    )
    return {"output": output, "log_sum_exp": log_sum_exp}


def inputs(setup: Setup, seed: int) -> dict[str, Tensor]:
    """Random inputs of a call."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    keys = setup.queries if setup.keys is None else setup.keys
    cu_q, cu_k = offsets(setup.queries), offsets(keys)
    rows_q, rows_k = int(cu_q[-1]) + setup.padding, int(cu_k[-1]) + setup.padding
    heads, kv_heads, head_dim = setup.heads, setup.kv_heads, setup.head_dim
    value_dim = setup.value_dim or head_dim
    if setup.packed:
        # Heads of a gap between them, so that a wrong stride reads poison.
        width = max(head_dim, value_dim) + 16
        wide = torch.full((rows_q, heads + 2 * kv_heads, width), torch.nan, dtype=setup.dtype)
        query = wide[:, :heads, :head_dim]
        key = wide[:, heads : heads + kv_heads, :head_dim]
        value = wide[:, heads + kv_heads :, :value_dim]
    else:
        query = torch.empty(rows_q, heads, head_dim, dtype=setup.dtype)
        key = torch.empty(rows_k, kv_heads, head_dim, dtype=setup.dtype)
        value = torch.empty(rows_k, kv_heads, value_dim, dtype=setup.dtype)
    for tensor, live in ((query, int(cu_q[-1])), (key, int(cu_k[-1])), (value, int(cu_k[-1]))):
        tensor.copy_(normal(*tensor.shape).to(setup.dtype))
        tensor[live:] = torch.full((), torch.nan).to(setup.dtype)
    tensors = {
        "query": query,
        "key": key,
        "value": value,
        "cu_seqlens_q": cu_q,
        "cu_seqlens_k": cu_k,
    }
    if setup.alibi:
        tensors["alibi_slopes"] = 2.0 ** -(1 + torch.arange(heads) * 4 / heads)
    if setup.bias:
        tensors["bias"] = bias_of(setup, keys, normal)
    if setup.sink:
        tensors["head_sink"] = (1 + normal(heads)).to(setup.sink_dtype)
    if setup.dtype == E4M3:
        for name, count in (("query_scale", heads), ("key_scale", kv_heads), ("value_scale", kv_heads)):
            # Neighbours are so far apart that one for the other is more than a rounding error.
            apart = torch.arange(count) + 0.5 * torch.rand(count, generator=generator)
            tensors[name] = 0.3 + 0.4 * apart / count
    return tensors


def bias_of(setup: Setup, keys: tuple[int, ...], normal: Callable[..., Tensor]) -> Tensor:
    """[batch or 1, heads or 1, max_q, max_k], poison where no sequence has a query or a key, some keys hidden."""
    batch = len(setup.queries) if "b" in setup.bias else 1
    heads = setup.heads if "h" in setup.bias else 1
    # max_k is rounded up to what keeps rows aligned, as callers do; the rest is poison.
    most_q, most_k = max(setup.queries), -(-max(keys) // 8) * 8
    bias = normal(batch, heads, most_q if "q" in setup.bias else 1, most_k)
    bias[..., :: max(7, most_k // 3)] = -torch.inf
    for sequence in range(batch):
        rows, length = (most_q, max(keys)) if batch == 1 else (setup.queries[sequence], keys[sequence])
        bias[sequence, :, :, length:] = torch.nan
        if "q" in setup.bias:
            bias[sequence, :, rows:] = torch.nan
    return bias.to(setup.bias_dtype).expand(batch, heads, most_q, most_k)


def offsets(lengths: tuple[int, ...]) -> Tensor:
    """cu_seqlens of sequences of these lengths, int32 [len + 1]."""
    return torch.cumsum(torch.tensor((0, *lengths)), 0).to(torch.int32)


def company_of(setup: Setup, seed: int, requests: int) -> Company:
    """The one sequence of `setup` alone, and as the last but one of `requests`."""
    alone = case_of(setup, seed)
    length, keys = setup.queries[0], (setup.keys or setup.queries)[0]
    others_q = tuple(1 + (7 * i) % 23 for i in range(requests - 1))
    others_k = tuple(1 + (5 * i) % 31 for i in range(requests - 1))
    place = requests - 2
    among_setup = replace(
        setup,
        queries=(*others_q[:place], length, *others_q[place:]),
        keys=(*others_k[:place], keys, *others_k[place:]),
    )
    tensors = inputs(among_setup, seed + 1)
    first, first_key = sum(others_q[:place]), sum(others_k[:place])
    tensors["query"][first : first + length] = alone.tensors["query"]
    for name in ("key", "value"):
        tensors[name][first_key : first_key + keys] = alone.tensors[name]
    for name in ("query_scale", "key_scale", "value_scale"):
        if name in tensors:
            tensors[name] = alone.tensors[name]
    expected = reference(tensors, alone.attributes, setup.output_dtype)
    among = replace(alone, name=f"{setup.name} among {requests}", tensors=tensors, expected=expected)
    rows = torch.arange(length)
    return Company(setup.name, alone, among, {"output": (rows, rows + first)})
