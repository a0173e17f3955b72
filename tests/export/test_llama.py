"""Llama checkpoints of several shapes through the whole export, against transformers in float32."""

from __future__ import annotations

import collections
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest
import torch
from transformers import AutoModelForCausalLM

from model_repo.runtime import contract
from pipeline.export import export
from pipeline.export.exported import ExportedGraph
from pipeline.export.packed import PackedDecoder
from pipeline.export.probe import probe
from pipeline.export.tidy import ORIGIN
from pipeline.recipe import ExportRecipe, SourceRecipe
from pipeline.sources import open_source
from tests.export.packed_requests import Generated, Schedule, Step, generate
from tests.export.runners import eager_step, serialized, session, session_step, standard_step
from tests.export.tiny_models import VOCABULARY, greedy, saved, tiny_llama

NEW_TOKENS = 32
PROMPT_LENGTHS = (5, 21, 8, 34, 1)
"""Shorter than, longer than and exactly a block of 8; longer than a chunk of 13; a single token."""
LOGIT_TOLERANCE = 1e-4

ROPE = {"rope_theta": 10000.0}
SHAPES: dict[str, dict[str, Any]] = {
    "grouped, 16, tied": {},
    "multi-head, 32, linear rotary": {
        "num_key_value_heads": 4,
        "head_dim": 32,
        "tie_word_embeddings": False,
        "rope_parameters": {"rope_type": "linear", "factor": 2.0, **ROPE},
    },
    "multi-query, 64, llama3 rotary": {
        "num_key_value_heads": 1,
        "head_dim": 64,
        "rope_parameters": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
            **ROPE,
        },
    },
    "grouped, 128, yarn rotary": {
        "head_dim": 128,
        "tie_word_embeddings": False,
        "rope_parameters": {
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 32,
            **ROPE,
        },
    },
    "three heads, 48, biases": {
        "hidden_size": 96,
        "num_attention_heads": 3,
        "num_key_value_heads": 3,
        "head_dim": 48,
        "attention_bias": True,
        "mlp_bias": True,
        "num_hidden_layers": 3,
    },
}
SCHEDULES = {
    "chunked": Schedule(),
    "whole prompts": Schedule(chunk=None),
    "odd blocks, padding": Schedule(block_size=5, num_blocks=90, chunk=7, padding_rows=3),
}
DATA_DEPENDENT = {"If", "Loop", "Scan", "NonZero", "Compress", "Range", "Where", "Trilu", "ScatterND"}


@dataclass
class Exported:
    """One shape: the checkpoint's parameters, the graph, and what transformers says."""

    parameters: dict[str, torch.Tensor]
    tied: bool
    graph: ExportedGraph
    wrapper: PackedDecoder
    step: Step
    prompts: list[list[int]]
    tokens: list[list[int]]
    logits: list[npt.NDArray[np.float32]]

    def assert_same(self, generated: Sequence[Generated]) -> None:
        """Same tokens as transformers, logits within the tolerance."""
        assert [one.tokens for one in generated] == self.tokens
        for one, expected in zip(generated, self.logits, strict=True):
            np.testing.assert_allclose(np.stack(one.logits), expected, rtol=0, atol=LOGIT_TOLERANCE)


@pytest.fixture(scope="module", params=list(SHAPES))
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A checkpoint on disk, read by transformers for the expectation and by us for the graph."""
    folder = saved(tiny_llama(**SHAPES[request.param]), tmp_path_factory.mktemp("llama"))
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    random = np.random.default_rng(1)
    prompts = [random.integers(3, VOCABULARY, length).tolist() for length in PROMPT_LENGTHS]
    expected = [greedy(reference, prompt, NEW_TOKENS) for prompt in prompts]

    source = open_source(str(folder), SourceRecipe(str(folder)))
    graph = export(source, ExportRecipe(max_length=128))
    loaded = source.load()
    return Exported(
        parameters=dict(reference.named_parameters()),
        tied=bool(reference.config.tie_word_embeddings),
        graph=graph,
        wrapper=PackedDecoder(loaded, probe(loaded)),
        step=standard_step(graph.model),
        prompts=prompts,
        tokens=[tokens for tokens, _ in expected],
        logits=[logits.numpy() for _, logits in expected],
    )


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())
def test_in_standard_operators_it_decodes_as_transformers(exported: Exported, schedule: Schedule) -> None:
    exported.assert_same(generate(exported.step, exported.graph.kv, exported.prompts, NEW_TOKENS, schedule))


def test_alone_each_size_is_one(exported: Exported) -> None:
    """Tokens, batch and selected rows of 1: sizes that exporters like to freeze."""
    (alone,) = generate(exported.step, exported.graph.kv, exported.prompts[-1:], NEW_TOKENS)
    assert alone.tokens == exported.tokens[-1]


def test_in_torch_it_decodes_as_transformers(exported: Exported) -> None:
    step = eager_step(exported.wrapper, exported.graph.kv)
    exported.assert_same(generate(step, exported.graph.kv, exported.prompts, NEW_TOKENS))


def test_on_our_cpu_operator_it_decodes_as_transformers(exported: Exported) -> None:
    from plugins.cpu.build import registered

    options = onnxruntime.SessionOptions()
    registered(options)
    step = session_step(session(serialized(exported.graph.model), options))
    exported.assert_same(generate(step, exported.graph.kv, exported.prompts, NEW_TOKENS))


def test_the_graph_keeps_to_the_contract(exported: Exported) -> None:
    graph = exported.graph.model.graph
    found = [(value.name, tuple(map(str, value.shape or ()))) for value in graph.inputs]
    assert found == [
        (spec.name, tuple(map(str, spec.shape))) for spec in contract.decoder_inputs(exported.graph.kv)
    ]
    pools = [value.name for value in graph.inputs if "cache" in (value.name or "")]
    assert [value.name for value in graph.outputs] == [
        "logits",
        *(name.replace("_cache_", "_cache_out_") for name in pools if name),
    ]
    assert exported.graph.model.opset_imports[""] == 24


def test_the_graph_has_no_control_flow_and_no_stray_types(exported: Exported) -> None:
    graph = exported.graph.model.graph
    operators = collections.Counter(node.op_type for node in graph)
    assert not DATA_DEPENDENT & set(operators)
    assert operators["PagedAttention"] == len(exported.graph.kv)
    assert operators["Cast"] <= 2, "positions to float32, logits_indices to int64"
    types = {value.dtype.name for node in graph for value in node.outputs if value.dtype}
    assert types <= {"FLOAT", "INT64", "INT32"}


def test_every_weight_is_there_once_under_its_parameter_name(exported: Exported) -> None:
    initializers = exported.graph.model.graph.initializers
    weights = {name: value for name, value in initializers.items() if name in exported.parameters}
    assert set(weights) == set(exported.parameters)
    for name, value in weights.items():
        origin = {"parameter": name, "rows": None, "transposed": False}
        assert json.loads(value.metadata_props[ORIGIN]) == [origin]
        assert value.const_value is not None
        np.testing.assert_array_equal(value.const_value.numpy(), exported.parameters[name].detach().numpy())
    assert ("lm_head.weight" in weights) == (not exported.tied)


Feed = dict[str, npt.NDArray[Any]]


def _without_rotary(feed: Feed) -> None:
    feed["position_ids"] = np.zeros_like(feed["position_ids"])


def _with_a_wrong_block(feed: Feed) -> None:
    feed["block_table"] = feed["block_table"].copy()
    if feed["block_table"][0, 1] >= 0:
        feed["block_table"][0, 0] = feed["block_table"][0, 1]


@pytest.mark.parametrize("spoil", [_without_rotary, _with_a_wrong_block])
def test_spoilt_inputs_change_the_tokens(exported: Exported, spoil: Callable[[Feed], None]) -> None:
    generated = generate(exported.step, exported.graph.kv, exported.prompts, NEW_TOKENS, change=spoil)
    assert generated[0].tokens != exported.tokens[0]


def test_without_the_causal_mask_the_tokens_change(exported: Exported) -> None:
    step = standard_step(exported.graph.model, causal=False)
    generated = generate(step, exported.graph.kv, exported.prompts, NEW_TOKENS)
    assert generated[1].tokens != exported.tokens[1]
