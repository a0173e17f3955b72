"""Decoder families through the whole export and our CPU operators, against transformers in float32."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from torch import nn
from transformers import PreTrainedModel

from pipeline.export.attention import UnsupportedModel
from pipeline.export.decoder import export_decoder
from pipeline.export.exported import ExportedGraph
from plugins.cpu.build import registered
from tests.conformance.node_cases import EMITTED
from tests.export.families import CARRIED, REFUSED, Family, Refused
from tests.export.packed_requests import Generated, Step, generate
from tests.export.runners import serialized, session, session_step
from tests.export.tiny_models import VOCABULARY, greedy

NEW_TOKENS = 32
PROMPT_LENGTHS = (5, 21, 8, 34, 1)
"""Shorter than, longer than and exactly a block of 8; longer than windows and a chunk of 13; a single token."""
LOGIT_TOLERANCE = 1e-4
TABLE = Path(__file__).parents[2] / "docs" / "decoders.md"


@dataclass
class Carried:
    """A family exported, and what transformers generates with the very same (frozen) rotary tables."""

    family: Family
    model: PreTrainedModel
    graph: ExportedGraph
    prompts: list[list[int]]
    tokens: list[list[int]]
    logits: list[npt.NDArray[np.float32]]

    def generate(self, model: onnx.ModelProto) -> list[Generated]:
        """Decodes the prompts in flight on our CPU operators."""
        return generate(on_cpu(model), self.graph.kv, self.prompts, NEW_TOKENS)


def on_cpu(model: onnx.ModelProto) -> Step:
    """The graph in ONNX Runtime with our operators."""
    options = onnxruntime.SessionOptions()
    registered(options)
    return session_step(session(model, options))


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(family, id=family.name, marks=pytest.mark.wide if family.wide else ())
        for family in CARRIED
    ],
)
def carried(request: pytest.FixtureRequest) -> Carried:
    family: Family = request.param
    model = family.model()
    graph = export_decoder(model, 96, opset=24)
    as_transformers(model)
    random = np.random.default_rng(1)
    prompts = [random.integers(3, VOCABULARY, length).tolist() for length in PROMPT_LENGTHS]
    expected = [greedy(model, prompt, NEW_TOKENS) for prompt in prompts]
    assert len({token for tokens, _ in expected for token in tokens}) > 10, "too dull to tell models apart"
    return Carried(
        family,
        model,
        graph,
        prompts,
        [tokens for tokens, _ in expected],
        [logits.numpy() for _, logits in expected],
    )


def as_transformers(model: PreTrainedModel) -> None:
    """transformers' own attention and experts again; rotary frequencies stay as the export froze them."""
    model.set_attn_implementation("eager")
    if model._can_set_experts_implementation():
        model.set_experts_implementation("eager")


def test_it_decodes_as_transformers(carried: Carried) -> None:
    generated = carried.generate(serialized(carried.graph.model))
    assert [one.tokens for one in generated] == carried.tokens
    for one, expected in zip(generated, carried.logits, strict=True):
        np.testing.assert_allclose(np.stack(one.logits), expected, rtol=0, atol=LOGIT_TOLERANCE)


def test_its_standard_operators_are_held_against_onnx_vectors(carried: Carried) -> None:
    standard = {node.op_type for node in carried.graph.model.graph.all_nodes() if not node.domain}
    assert standard <= set(EMITTED), "add them to tests.conformance"


def test_without_a_feature_the_tokens_change(carried: Carried) -> None:
    """So the test above would see a feature that is lost on the way."""
    for feature in carried.family.features:
        if feature in _IN_THE_GRAPH:
            spoilt = serialized(carried.graph.model)
            _IN_THE_GRAPH[feature](spoilt)
            tokens = [one.tokens for one in carried.generate(spoilt)]
        elif feature == "q/k norm":
            removed = _without_norms(carried.model)
            tokens = [greedy(carried.model, prompt, NEW_TOKENS)[0] for prompt in carried.prompts]
            for parent, name, norm in removed:
                setattr(parent, name, norm)
        elif feature == "rotary scaling":
            unscaled = carried.family.model(rope_parameters={"rope_type": "default", "rope_theta": 10000.0})
            tokens = [greedy(unscaled, prompt, NEW_TOKENS)[0] for prompt in carried.prompts]
        else:
            continue
        assert tokens != carried.tokens, f"{feature} changes nothing"


def _without_window(model: onnx.ModelProto) -> None:
    for attribute in _attention_attributes(model, "local_window_size"):
        attribute.i = -1


def _without_softcap(model: onnx.ModelProto) -> None:
    for attribute in _attention_attributes(model, "softcap"):
        attribute.f = 0.0


def _without_sink(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        if node.op_type == "PagedAttention":
            node.input[11] = ""


def _with_one_expert(model: onnx.ModelProto) -> None:
    """Every row goes to expert 0."""
    for node in model.graph.node:
        if node.op_type == "ExpertLinear":
            model.graph.node.add(op_type="Sub", input=[node.input[2]] * 2, output=[f"{node.name}_none"])
            node.input[2] = f"{node.name}_none"
    nodes = sorted(model.graph.node, key=lambda node: node.op_type == "ExpertLinear")
    ordered = _in_order(nodes, {value.name for value in (*model.graph.input, *model.graph.initializer)})
    del model.graph.node[:]
    model.graph.node.extend(ordered)


def _in_order(nodes: list[onnx.NodeProto], known: set[str]) -> list[onnx.NodeProto]:
    """The nodes, each behind those that it reads."""
    known = known | {""}
    ordered: list[onnx.NodeProto] = []
    while nodes:
        ready = [node for node in nodes if known.issuperset(node.input)]
        assert ready, "a cycle"
        known |= {name for node in ready for name in node.output}
        ordered += ready
        nodes = [node for node in nodes if not any(node is one for one in ready)]
    return ordered


_IN_THE_GRAPH: dict[str, Callable[[onnx.ModelProto], None]] = {
    "window": _without_window,
    "softcap": _without_softcap,
    "sink": _without_sink,
    "experts": _with_one_expert,
}


def _attention_attributes(model: onnx.ModelProto, name: str) -> list[onnx.AttributeProto]:
    return [
        attribute
        for node in model.graph.node
        if node.op_type == "PagedAttention"
        for attribute in node.attribute
        if attribute.name == name
    ]


def _without_norms(model: PreTrainedModel) -> list[tuple[nn.Module, str, nn.Module]]:
    """Takes the norms of queries and keys away; returns what puts them back."""
    removed = []
    for parent in model.modules():
        for name, child in list(parent.named_children()):
            if name in ("q_norm", "k_norm", "query_layernorm", "key_layernorm"):
                setattr(parent, name, nn.Identity())
                removed.append((parent, name, child))
    assert removed
    return removed


@pytest.mark.parametrize("refused", REFUSED, ids=lambda refused: refused.family.name)
def test_what_is_not_carried_is_refused_with_the_reason(refused: Refused) -> None:
    with pytest.raises(UnsupportedModel, match=refused.reason):
        export_decoder(refused.family.model(), 96, opset=24)


def test_the_table_in_the_docs_is_this_one() -> None:
    """`python -m tests.export.test_families` writes it."""
    assert TABLE.read_text() == table()


def table() -> str:
    """Family by feature, as Markdown."""
    lines = [
        "# Decoders that were tried",
        "",
        "Tiny random models of each family, exported and decoded in flight on the CPU operators: five ragged prompts,",
        "chunked prefill beside decode, late joins, shuffled blocks. *Equal* means the same 32 greedy tokens as",
        "transformers in float32 for each prompt, and logits within 1e-4. Rotary scalings that depend on the length",
        "are compared with transformers frozen alike. `tests/export/test_families.py` holds the",
        "proof; families marked * are in `make test-wide`. Others are carried as long as",
        "they use transformers' attention interface.",
        "",
        "| family | what sets it apart | result |",
        "| --- | --- | --- |",
        "| Llama (linear, llama3 and yarn rotary) | | equal |",
        *(
            f"| {family.name}{' *' if family.wide else ''} | {', '.join(family.features)} | equal |"
            for family in CARRIED
        ),
        *(f"| {refused.family.name} | | refused: {refused.reason} |" for refused in REFUSED),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    TABLE.write_text(table())
