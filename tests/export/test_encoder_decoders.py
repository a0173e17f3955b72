"""Encoder-decoder families through the whole export and our CPU operators, against transformers in float32."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from transformers import PreTrainedModel

from model_repo.runtime.contract import CROSS
from pipeline.export.attention import UnsupportedModel
from pipeline.export.encoder_decoder import export_encoder_decoder
from pipeline.export.exported import ExportedGraph
from plugins.schemas import PAGED_ATTENTION
from tests.export.cross_families import CARRIED, MAX_POSITIONS, REFUSED, CrossFamily, RefusedCross
from tests.export.cross_table import PAGE, page_with, table
from tests.export.packed_requests import Generated, Schedule, Source, generate
from tests.export.runners import serialized, session
from tests.export.test_families import on_cpu
from tests.export.tiny_models import VOCABULARY

NEW_TOKENS = 32
PROMPT_LENGTHS = (1, 21, 4, 30, 2)
"""Of the decoder: usual ones, and some longer than a block of 8 and a chunk of 13."""
SOURCE_LENGTHS = (5, 23, 8, 1, 33)
"""Texts shorter than, longer than and exactly a block; a single token."""
LOGIT_TOLERANCE = 1e-4


@dataclass
class Carried:
    """A family exported, and what transformers generates."""

    family: CrossFamily
    graph: ExportedGraph
    inputs: list[npt.NDArray[Any]]
    prompts: list[list[int]]
    tokens: list[list[int]]
    logits: list[npt.NDArray[np.float32]]

    def sources(self) -> list[Source]:
        """What the exported encoder gives for each input."""
        assert self.graph.encoder is not None
        running = session(serialized(self.graph.encoder))
        (name,) = (value.name for value in running.get_inputs())
        outputs = [value.name for value in running.get_outputs()]
        return [
            Source(dict(zip(outputs, running.run(outputs, {name: array}), strict=True)))
            for array in self.inputs
        ]

    def generate(self, model: onnx.ModelProto, schedule: Schedule | None = None) -> list[Generated]:
        """Decodes the prompts in flight on our CPU operators."""
        return generate(
            on_cpu(model), self.graph.kv, self.prompts, NEW_TOKENS, schedule, sources=self.sources()
        )


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(family, id=family.name, marks=pytest.mark.wide if family.wide else ())
        for family in CARRIED
    ],
)
def carried(request: pytest.FixtureRequest) -> Carried:
    family: CrossFamily = request.param
    random = np.random.default_rng(1)
    prompts = [random.integers(3, VOCABULARY, length).tolist() for length in PROMPT_LENGTHS]
    inputs = [encoder_input(family, length, random) for length in SOURCE_LENGTHS]
    reference = family.model()
    expected = [
        greedy(reference, family.input.name, one, prompt) for one, prompt in zip(inputs, prompts, strict=True)
    ]
    assert len({token for tokens, _ in expected for token in tokens}) > 10, "too dull to tell models apart"
    graph = export_encoder_decoder(family.model(), 96, 24, family.input, MAX_POSITIONS)
    tokens = [tokens for tokens, _ in expected]
    return Carried(family, graph, inputs, prompts, tokens, [logits for _, logits in expected])


def encoder_input(family: CrossFamily, length: int, random: np.random.Generator) -> npt.NDArray[Any]:
    """A text of `length` tokens, or as much audio as the model wants."""
    shape = tuple(size if isinstance(size, int) else length for size in family.input.shape)
    if family.input.dtype == "int64":
        return np.asarray(random.integers(3, VOCABULARY, shape))
    return random.standard_normal(shape).astype(np.float32)


@torch.no_grad()
def greedy(
    model: PreTrainedModel, input_name: str, array: npt.NDArray[Any], prompt: list[int]
) -> tuple[list[int], npt.NDArray[np.float32]]:
    """transformers alone, without a cache: tokens, and the logits [NEW_TOKENS, vocab] that they were chosen from."""
    ids = torch.tensor([prompt])
    encoded = model.get_encoder()(**{input_name: torch.from_numpy(array)})
    for _ in range(NEW_TOKENS):
        logits = model(encoder_outputs=encoded, decoder_input_ids=ids, use_cache=False).logits
        ids = torch.cat([ids, logits[:, -1:].argmax(-1)], dim=1)
    logits = model(encoder_outputs=encoded, decoder_input_ids=ids, use_cache=False).logits[0]
    return ids[0, len(prompt) :].tolist(), logits[len(prompt) - 1 : -1].numpy()


def test_it_decodes_as_transformers(carried: Carried) -> None:
    generated = carried.generate(serialized(carried.graph.model), Schedule(padding_rows=2))
    assert [one.tokens for one in generated] == carried.tokens
    for one, expected in zip(generated, carried.logits, strict=True):
        np.testing.assert_allclose(np.stack(one.logits), expected, rtol=0, atol=LOGIT_TOLERANCE)


def test_without_cross_attention_the_tokens_change(carried: Carried) -> None:
    """So the test above would see that it is lost on the way, or that requests see each other's encoder output."""
    spoilt = serialized(carried.graph.model)
    attention = [node for node in spoilt.graph.node if node.op_type == "PagedAttention"]
    for node, spec in zip(attention, carried.graph.kv, strict=True):
        if spec.group == CROSS:
            (scale,) = (attribute for attribute in node.attribute if attribute.name == "scale")
            scale.f = 1e-6  # every position counts the same
    tokens = [one.tokens for one in carried.generate(spoilt)]
    for found, expected, source in zip(tokens, carried.tokens, carried.sources(), strict=True):
        assert (found != expected) == (source.num_positions > 1)
    exchanged = replace(carried, inputs=carried.inputs[1:] + carried.inputs[:1])
    tokens = [one.tokens for one in exchanged.generate(serialized(carried.graph.model))]
    assert all(one != expected for one, expected in zip(tokens, carried.tokens, strict=True))


def test_without_relative_positions_the_tokens_change(carried: Carried) -> None:
    """And those of texts longer than the farthest distance that counts are equal above."""
    spoilt = serialized(carried.graph.model)
    place = PAGED_ATTENTION.input_index("distance_bias")
    attention = [node for node in spoilt.graph.node if node.op_type == "PagedAttention"]
    names = [node.input[place] for node in attention if len(node.input) > place]
    assert len(names) == carried.family.distance_bias
    if not names:
        return
    for tensor in spoilt.graph.initializer:
        if tensor.name in names:
            distances = onnx.numpy_helper.to_array(tensor).shape[1]
            assert (
                distances < carried.family.settings["relative_attention_max_distance"] < max(PROMPT_LENGTHS)
            )
            zeros = np.zeros(tensor.dims, np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(zeros, tensor.name))
    tokens = [one.tokens for one in carried.generate(spoilt)]
    assert all(found != expected for found, expected in zip(tokens, carried.tokens, strict=True))


def test_the_decoder_holds_no_weight_of_the_encoder(carried: Carried) -> None:
    """What depends on the encoder alone is computed once a request, not in every step."""
    decoder = set(carried.graph.model.graph.initializers)
    assert carried.graph.encoder is not None
    encoder = set(carried.graph.encoder.graph.initializers)
    cross = ("encoder_attn", "EncDecAttention")
    projections = tuple(f"{name}.{key}" for name in cross for key in ("k_proj", "k."))
    assert not {name for name in decoder if any(key in name for key in (*projections, "encoder.layers"))}
    assert not {name for name in decoder if name.startswith("encoder.")}
    of_decoder = {name for name in encoder if "decoder." in name}
    assert all(any(name in weight for name in cross) for weight in of_decoder)


@pytest.mark.parametrize("refused", REFUSED, ids=lambda refused: refused.family.name)
def test_what_is_not_carried_is_refused_with_the_reason(refused: RefusedCross) -> None:
    with pytest.raises(UnsupportedModel, match=refused.reason):
        export_encoder_decoder(refused.family.model(), 96, 24, refused.family.input, MAX_POSITIONS)


def test_the_table_in_the_docs_is_this_one() -> None:
    """`python -m tests.export.cross_table` writes it."""
    assert PAGE.read_text() == page_with(table())
