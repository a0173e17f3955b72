"""The CPU operators of packed texts against their references, and the references against torch's own functions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor

from plugins.cpu.build import registered
from plugins.reference import packed_texts as reference
from plugins.reference.rotary import rotary_tables
from plugins.schemas import DOMAIN, OPERATORS, VERSION
from tests.plugins.attention_case import forced_isa

Array = npt.NDArray[Any]
LENGTHS = (70, 1, 0, 9, 200, 64)
DEAD = 3
"""Rows behind the last text."""


def run_node(
    operator: str, inputs: dict[str, Tensor], threads: int = 2, **attributes: int | float
) -> list[Array]:
    """All outputs of one node."""
    schema = OPERATORS[operator]
    node = helper.make_node(
        operator,
        [p.name if p.name in inputs else "" for p in schema.inputs],
        [p.name for p in schema.outputs],
        domain=DOMAIN,
        **attributes,
    )
    types = {torch.float32: TensorProto.FLOAT, torch.int32: TensorProto.INT32, torch.int64: TensorProto.INT64}
    given = [helper.make_tensor_value_info(n, types[x.dtype], list(x.shape)) for n, x in inputs.items()]
    outputs = [
        helper.make_tensor_value_info(
            p.name, TensorProto.INT32 if p.type == "Int" else TensorProto.FLOAT, None
        )
        for p in schema.outputs
    ]
    opsets = [helper.make_opsetid("", 24), helper.make_opsetid(DOMAIN, VERSION)]
    model = helper.make_model(
        helper.make_graph([node], "one_node", given, outputs), opset_imports=opsets, ir_version=11
    )
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    registered(options)
    running = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    result: list[Array] = running.run(None, {n: x.numpy() for n, x in inputs.items()})
    return result


def starts(lengths: tuple[int, ...]) -> Tensor:
    return torch.tensor([0, *np.cumsum(lengths).tolist()], dtype=torch.int32)


@dataclass(frozen=True)
class Case:
    """One setting of the operator; `bias` is the number of its heads."""

    heads: int = 3
    kv_heads: int = 3
    head_dim: int = 32
    value_dim: int = 32
    together: bool = False
    bias: int = 0
    rotary: int = 0
    interleaved: bool = False
    scale: float = 0.0
    left: int = -1
    right: int = -1

    def inputs(self, lengths: tuple[int, ...] = LENGTHS) -> dict[str, Tensor]:
        torch.manual_seed(0)
        tokens, longest = sum(lengths) + DEAD, max(lengths)
        sizes = (self.heads * self.head_dim, self.kv_heads * self.head_dim, self.kv_heads * self.value_dim)
        rows = torch.randn(tokens, sum(sizes)) * 1.5
        given = dict(zip(("query", "key", "value"), rows.split(sizes, dim=1), strict=True))
        if self.together:
            given = {"query": rows}
        given["cu_seqlens"] = starts(lengths)
        if self.bias:
            given["bias"] = torch.randn(self.bias, longest + 2, longest + 2)
        if self.rotary:
            given["cos_cache"], given["sin_cache"] = rotary_tables(longest, self.rotary)
            positions = torch.cat([torch.arange(length) for length in (*lengths, DEAD)])
            given["position_ids"] = positions.int()
        return {name: tensor.contiguous() for name, tensor in given.items()}

    def run(self, inputs: dict[str, Tensor], threads: int = 2) -> Array:
        attributes = {
            "num_heads": self.heads,
            "kv_num_heads": self.kv_heads,
            "scale": self.scale,
            "left_window": self.left,
            "right_window": self.right,
            "rotary_interleaved": int(self.interleaved),
        }
        (output,) = run_node("PackedAttention", inputs, threads, **attributes)
        return output

    def expected(self, inputs: dict[str, Tensor]) -> Array:
        """In double precision, but for the rotary embedding."""
        q, k, v = (self.heads * self.head_dim, self.kv_heads * self.head_dim, self.kv_heads * self.value_dim)
        rows = (
            inputs["query"].split((q, k, v), dim=1)
            if self.together
            else tuple(inputs[name] for name in ("query", "key", "value"))
        )
        apart = [
            x.double().unflatten(1, (heads, -1))
            for x, heads in zip(rows, (self.heads, self.kv_heads, self.kv_heads), strict=True)
        ]
        output = reference.packed_attention(
            apart[0],
            apart[1],
            apart[2],
            inputs["cu_seqlens"],
            inputs.get("bias"),
            (inputs["cos_cache"], inputs["sin_cache"]) if self.rotary else None,
            self.scale,
            self.left,
            self.right,
            self.interleaved,
        )
        return output.flatten(1).numpy()


CASES = {
    "plain": Case(),
    "one packed row": Case(together=True),
    "odd head sizes": Case(head_dim=20, value_dim=13, scale=0.3),
    "wide heads": Case(heads=2, kv_heads=2, head_dim=96, value_dim=80),
    "bias of each head": Case(bias=3, scale=1.0),
    "bias of all heads": Case(bias=1),
    "window": Case(left=17, right=17),
    "narrow window": Case(left=2, right=0, bias=3),
    "causal, grouped heads": Case(heads=6, kv_heads=2, right=0, together=True),
    "rotary": Case(rotary=32, left=64, right=64, together=True),
    "rotary of a part, interleaved": Case(rotary=12, interleaved=True, head_dim=20, value_dim=20),
}


@pytest.mark.parametrize("isa", ["plain", "avx2", "avx512"])
def test_attention_is_that_of_the_definition(isa: str) -> None:
    with forced_isa(isa):
        for name, case in CASES.items():
            inputs = case.inputs()
            found = case.run(inputs)
            np.testing.assert_allclose(found, case.expected(inputs), rtol=0, atol=2e-5, err_msg=name)
            assert not found[-DEAD:].any(), name


def test_the_reference_is_torchs_attention() -> None:
    """Each text by itself through scaled_dot_product_attention."""
    case = Case(heads=4, kv_heads=2, left=5, right=3, bias=4)
    inputs = case.inputs((12, 7))
    found = case.expected(inputs)
    start = 0
    for length in (12, 7):
        q, k, v = (
            inputs[name][start : start + length].unflatten(1, (-1, 32)).transpose(0, 1)
            for name in ("query", "key", "value")
        )
        ahead = torch.arange(length)[None, :] - torch.arange(length)[:, None]
        mask = inputs["bias"][:, :length, :length].masked_fill((ahead < -5) | (ahead > 3), float("-inf"))
        wanted = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
        wanted = wanted.transpose(0, 1).flatten(1)
        np.testing.assert_allclose(found[start : start + length], wanted, rtol=0, atol=1e-5)
        start += length


@pytest.mark.parametrize("isa", ["plain", "avx2", "avx512"])
def test_a_text_has_the_same_bits_alone_and_in_company(isa: str) -> None:
    case = CASES["rotary"]
    inputs = case.inputs()
    with forced_isa(isa):
        together = case.run(inputs)
        for text, length in enumerate(LENGTHS):
            if length == 0:
                continue
            first = sum(LENGTHS[:text])
            alone = {name: inputs[name] for name in ("cos_cache", "sin_cache")}
            alone |= {
                name: inputs[name][first : first + length].contiguous() for name in ("query", "position_ids")
            }
            alone["cu_seqlens"] = starts((length,))
            np.testing.assert_array_equal(case.run(alone, threads=1), together[first : first + length])


REFUSED = {
    r"it must not decrease": {"cu_seqlens": torch.tensor([0, 5, 4], dtype=torch.int32)},
    r"must start with 0": {"cu_seqlens": torch.tensor([1, 4], dtype=torch.int32)},
    r"the bias is for 3": {"bias": torch.zeros(1, 3, 3)},
    r"bias has shape \[2, 4, 4\]": {"bias": torch.zeros(2, 4, 4)},
    r"key \[4, 95\]": {"key": torch.zeros(4, 95)},
    r"position_ids\[1\] is 9": {
        "cos_cache": torch.ones(4, 16),
        "sin_cache": torch.zeros(4, 16),
        "position_ids": torch.tensor([0, 9, 2, 3], dtype=torch.int32),
    },
}


@pytest.mark.parametrize("words", REFUSED)
def test_bad_calls_are_refused_in_words(words: str) -> None:
    inputs = {name: torch.zeros(4, 96) for name in ("query", "key", "value")}
    inputs["cu_seqlens"] = starts((4,))
    with pytest.raises(Exception, match=words):
        Case().run(inputs | REFUSED[words])


def test_layout_pooling_and_padding() -> None:
    torch.manual_seed(1)
    lengths = (3, 0, 7, 1)
    mask = (torch.arange(7)[None, :] < torch.tensor(lengths)[:, None]).long()
    for given in (mask, mask[1:2], mask[3:]):
        found = run_node("PackedLayout", {"attention_mask": given})
        for array, wanted in zip(found, reference.packed_layout(given), strict=True):
            np.testing.assert_array_equal(array, wanted)
    rows, cu_seqlens = torch.randn(11, 37), starts(lengths)
    for kind in range(4):
        (pooled,) = run_node("PackedPool", {"rows": rows, "cu_seqlens": cu_seqlens}, kind=kind)
        np.testing.assert_allclose(
            pooled, reference.packed_pool(rows, cu_seqlens, kind), rtol=1e-6, atol=1e-6
        )
    padded = {"rows": rows, "cu_seqlens": cu_seqlens, "attention_mask": mask}
    np.testing.assert_array_equal(
        run_node("UnpackedRows", padded)[0], reference.unpacked_rows(rows, cu_seqlens, 7)
    )


def test_a_mask_with_holes_is_refused() -> None:
    mask = torch.tensor([[1, 1, 0], [1, 0, 1]])
    with pytest.raises(Exception, match=r"attention_mask\[1, 2\] is 1; rows must be ones, then zeros"):
        run_node("PackedLayout", {"attention_mask": mask})


@pytest.mark.parametrize("count", [2, 3])
def test_embedding_sums_are_normalized(count: int) -> None:
    torch.manual_seed(2)
    tables = [torch.randn(entries, 70) for entries in (11, 4, 6)][:count]
    ids = [torch.randint(-11, 11, (2, 5)), torch.randint(4, (2, 5)).int(), torch.randint(6, (1, 5))][:count]
    weight, bias = torch.randn(70), torch.randn(70)
    names = (("ids", "table"), ("second_ids", "second_table"), ("third_ids", "third_table"))
    inputs = {
        name: tensor
        for pair, tensors in zip(names[:count], zip(ids, tables, strict=True), strict=True)
        for name, tensor in zip(pair, tensors, strict=True)
    }
    found = run_node("EmbedLayerNormalization", {**inputs, "weight": weight, "bias": bias}, epsilon=1e-6)
    lookups = [(i.long(), table) for i, table in zip(ids, tables, strict=True)]
    wanted = reference.embed_layer_normalization(lookups, weight, bias, 1e-6)
    for array, expected in zip(found, wanted, strict=True):
        np.testing.assert_allclose(array, expected, rtol=2e-6, atol=2e-6)
    with pytest.raises(Exception, match=r"second_ids holds 4; the table has 4 rows"):
        run_node("EmbedLayerNormalization", {**inputs, "second_ids": ids[1] * 0 + 4, "weight": weight})
