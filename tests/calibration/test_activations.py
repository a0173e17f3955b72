"""Activations of a graph over data: against numpy, sample by sample, whatever the batches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from calibration.activations import GraphRun, collect, observable, product_inputs
from calibration.batches import BLOCK_SIZE, Batches
from model_repo.runtime.contract import CROSS, KVSpec
from model_repo.runtime.errors import BadInput

from .small_graphs import DECODER, DIM, HEADS, TENSORS, VOCABULARY, Facts, write_decoder, write_mlp


def sequences(count: int = 9, seed: int = 5) -> list[list[int]]:
    """Token ids in ragged lengths, some longer than a cache block."""
    draw = np.random.default_rng(seed)
    return [draw.integers(0, VOCABULARY, length).tolist() for length in draw.integers(1, 40, count)]


def test_tensors_are_what_numpy_computes_in_any_batches(tmp_path: Path) -> None:
    graph, weights = write_mlp(tmp_path)
    x = np.random.default_rng(1).standard_normal((70, 6), dtype=np.float32)
    samples = [{"x": row[None]} for row in x]
    for tokens in (32, 320, 3200):
        chunks = list(collect(graph, ["x", "hidden", "act"], Batches(TENSORS, samples, tokens=tokens)))
        assert len(chunks) == -(-70 // (tokens // 32))
        joined = {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}
        np.testing.assert_array_equal(joined["x"], x)
        np.testing.assert_allclose(joined["hidden"], x @ weights["w1"], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(joined["act"], np.maximum(x @ weights["w1"], 0), rtol=1e-5, atol=1e-5)


def test_packed_steps_give_each_sequence_its_own_activations(tmp_path: Path) -> None:
    """Keys, values, attention and the head's rows, each against plain attention of that sequence alone."""
    graph, weights = write_decoder(tmp_path)
    samples = sequences()
    batches = Batches(DECODER, samples, tokens=64)
    assert 1 < len(batches) < len(samples)
    seen = 0
    names = ["packed", "attended", "selected", "key_cache_0", "value_cache_0"]
    for batch, chunk in zip(batches, collect(graph, names, batches), strict=True):
        start = 0
        for place in batch.samples:
            ids = samples[place]
            rows = slice(start, start + len(ids))
            packed = weights["embedding"][ids] @ weights["qkv"]
            query, key, value = packed.reshape(len(ids), 3, HEADS, DIM).transpose(1, 0, 2, 3)
            np.testing.assert_allclose(chunk["packed"][rows], packed, atol=1e-5)
            np.testing.assert_allclose(chunk["key_cache_0"][rows], key, atol=1e-5)
            np.testing.assert_allclose(chunk["value_cache_0"][rows], value, atol=1e-5)
            attended = attention(query, key, value)
            np.testing.assert_allclose(chunk["attended"][rows], attended, atol=1e-4)
            start += len(ids)
            seen += 1
        np.testing.assert_array_equal(chunk["selected"], chunk["attended"])
        assert start == batch.tokens
    assert seen == len(samples)


def attention(query: np.ndarray, key: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Causal attention in float64: [tokens, heads * dim]."""
    query, key, value = (array.astype(np.float64).transpose(1, 0, 2) for array in (query, key, value))
    scores = query @ key.transpose(0, 2, 1) / np.sqrt(DIM)
    scores[:, np.triu(np.ones(scores.shape[1:], bool), 1)] = -np.inf
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    mixed = weights / weights.sum(-1, keepdims=True) @ value
    return mixed.transpose(1, 0, 2).reshape(len(mixed[0]), -1)


def test_a_stride_asks_for_fewer_logits(tmp_path: Path) -> None:
    graph, _ = write_decoder(tmp_path)
    batches = Batches(DECODER, sequences(), tokens=64, logit_stride=7)
    for batch, chunk in zip(batches, collect(graph, ["attended", "selected"], batches), strict=True):
        np.testing.assert_array_equal(chunk["selected"], chunk["attended"][::7])
        assert len(batch.feeds["logits_indices"]) == -(-batch.tokens // 7)


def test_every_sequence_is_in_one_batch_and_long_ones_are_alone() -> None:
    samples = [[1] * 10, [2] * 30, [3] * 50, [4] * 3, [5] * 3]
    batches = list(Batches(DECODER, samples, tokens=40))
    assert [batch.samples for batch in batches] == [(0, 1), (2,), (3, 4)]
    assert [batch.tokens for batch in batches] == [40, 50, 6]
    tables = batches[0].feeds["block_table"]
    assert tables.tolist() == [[0, -1], [1, 2]]
    assert batches[0].feeds["slot_mapping"].tolist() == [*range(10), *range(BLOCK_SIZE, BLOCK_SIZE + 30)]


def test_an_encoders_texts_are_never_padded() -> None:
    samples = [[7] * length for length in (5, 3, 5, 9, 3, 5)]
    batches = list(Batches(Facts("encoder"), samples, tokens=10))
    assert [batch.samples for batch in batches] == [(1, 4), (0, 2), (5,), (3,)]
    for batch in batches:
        assert batch.feeds["attention_mask"].min() == 1
        assert batch.feeds["input_ids"].shape[0] == len(batch.samples)


def test_products_of_weights_alone_are_not_observed(tmp_path: Path) -> None:
    graph, _ = write_mlp(tmp_path)
    assert product_inputs(observable(graph)) == ["x", "act"]
    graph, _ = write_decoder(tmp_path / "decoder")
    assert product_inputs(observable(graph)) == ["embedded", "selected"]


def test_a_name_of_another_graph_is_refused(tmp_path: Path) -> None:
    graph, _ = write_mlp(tmp_path)
    with pytest.raises(BadInput, match="no tensor 'val_9'"):
        GraphRun(graph, ["val_9"])
    with pytest.raises(BadInput, match="no ONNX graph"):
        GraphRun(tmp_path / "none.onnx", [])


def test_a_decoder_that_attends_to_an_encoder_is_refused() -> None:
    crossed = DECODER._replace(kv=(*DECODER.kv, KVSpec(CROSS, HEADS, DIM, DIM, 0, "float32")))
    with pytest.raises(
        BadInput, match="models with an encoder and a decoder are neither calibrated nor evaluated"
    ):
        Batches(crossed, sequences())


def test_nothing_is_written_beside_the_graph(tmp_path: Path) -> None:
    graph, _ = write_mlp(tmp_path)
    before = sorted(path.name for path in tmp_path.rglob("*"))
    next(collect(graph, ["act"], Batches(TENSORS, [{"x": np.ones((1, 6), np.float32)}])))
    assert sorted(path.name for path in tmp_path.rglob("*")) == before
