"""Figures of accuracy reports: each against plain numpy over one sample at a time."""

from __future__ import annotations

import math
import xml.etree.ElementTree
from pathlib import Path

import numpy as np
import pytest

from calibration.activations import graph_session, observable
from calibration.report.acceptance import Limit, broken
from calibration.report.arrays import compare_arrays
from calibration.report.heldout import check_apart, sentences, windows
from calibration.report.language import NEW_TOKENS, PROMPT_TOKENS, compare_language
from calibration.report.picture import picture
from calibration.report.sentences import compare_sentences, embedding_figures, label_figures
from calibration.report.subject import Subject, greedy
from model_repo.runtime.errors import BadInput
from tests.calibration.small_graphs import (
    DECODER,
    DIM,
    HEADS,
    TENSORS,
    VOCABULARY,
    Facts,
    write_decoder,
    write_encoder,
    write_mlp,
)
from tests.calibration.test_activations import attention
from tests.runtime.tiny_tokenizer import tiny_tokenizer

Weights = dict[str, np.ndarray]


def subject(graph: Path, kv: bool) -> Subject:
    opened = graph_session(observable(graph), graph.parent, 1)
    return Subject(graph.parent.name, opened, graph.stat().st_size, DECODER.kv if kv else ())


def logits(weights: Weights, ids: list[int]) -> np.ndarray:
    """The decoder's graph in numpy: float64 [tokens, vocabulary]."""
    packed = weights["embedding"][ids] @ weights["qkv"]
    query, key, value = packed.reshape(len(ids), 3, HEADS, DIM).transpose(1, 0, 2, 3)
    return attention(query, key, value) @ weights["head"].astype(np.float64)


def log_softmax(row: np.ndarray) -> list[float]:
    largest = max(row)
    total = math.log(sum(math.exp(value - largest) for value in row)) + largest
    return [value - total for value in row]


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Subject, Weights, Subject, Weights]:
    """Two decoders of the same shapes and not quite the same weights."""
    before, weights = write_decoder(tmp_path / "before", seed=4)
    after, others = write_decoder(tmp_path / "after", seed=9)
    return subject(before, True), weights, subject(after, True), others


def text(count: int = 12) -> list[list[int]]:
    draw = np.random.default_rng(3)
    return [draw.integers(0, VOCABULARY, length).tolist() for length in draw.integers(2, 200, count)]


def test_perplexity_divergence_and_agreement(pair: tuple[Subject, Weights, Subject, Weights]) -> None:
    reference, before, candidate, after = pair
    data = text()
    figures = compare_language(candidate, reference, data, VOCABULARY)
    nats, reference_nats, divergence, same, count = 0.0, 0.0, 0.0, 0, 0
    for ids in data:
        wanted, found = logits(before, ids), logits(after, ids)
        for place in range(len(ids) - 1):
            p, q = log_softmax(wanted[place]), log_softmax(found[place])
            reference_nats -= p[ids[place + 1]]
            nats -= q[ids[place + 1]]
            divergence += sum(math.exp(a) * (a - b) for a, b in zip(p, q, strict=True))
            same += int(np.argmax(p)) == int(np.argmax(q))
            count += 1
    assert figures["tokens"] == count == sum(len(ids) - 1 for ids in data)
    assert figures["perplexity"] == pytest.approx(math.exp(nats / count), rel=1e-4)
    assert figures["reference_perplexity"] == pytest.approx(math.exp(reference_nats / count), rel=1e-4)
    assert figures["perplexity_increase"] == pytest.approx(
        math.exp((nats - reference_nats) / count) - 1, rel=1e-3
    )
    assert figures["kl"] == pytest.approx(divergence / count, rel=1e-4)
    assert figures["top1"] == same / count


def test_greedy_continuations_are_what_one_sequence_alone_gives(
    pair: tuple[Subject, Weights, Subject, Weights],
) -> None:
    reference, before, candidate, after = pair
    prompts = [ids[:20] for ids in text()]

    def alone(weights: Weights, prompt: list[int]) -> list[int]:
        ids = list(prompt)
        for _ in range(25):
            ids.append(int(logits(weights, ids)[-1].argmax()))
        return ids[len(prompt) :]

    for side, weights in ((reference, before), (candidate, after)):
        assert greedy(side, prompts, 25) == [alone(weights, prompt) for prompt in prompts]
    data = text(40)
    figures = compare_language(candidate, reference, data, VOCABULARY)
    starts = [data[place * 40 // 16][:PROMPT_TOKENS] for place in range(16)]
    pairs = zip(greedy(reference, starts, NEW_TOKENS), greedy(candidate, starts, NEW_TOKENS), strict=True)
    agreed = [[a == b for a, b in zip(*both, strict=True)] for both in pairs]
    until = [row.index(False) if False in row else NEW_TOKENS for row in agreed]
    assert figures["greedy_tokens"] == sum(until) / (16 * NEW_TOKENS)
    assert figures["greedy_whole"] == sum(map(all, agreed)) / 16


def test_without_a_reference_there_is_perplexity_alone(
    pair: tuple[Subject, Weights, Subject, Weights],
) -> None:
    reference = pair[0]
    assert set(compare_language(reference, None, text(), VOCABULARY)) == {"tokens", "perplexity"}
    assert reference.tokens == sum(map(len, text()))
    assert reference.tokens_per_second > 0


def test_a_model_beside_itself_loses_nothing(
    pair: tuple[Subject, Weights, Subject, Weights], tmp_path: Path
) -> None:
    figures = compare_language(pair[0], pair[0], text(), VOCABULARY)
    assert (figures["perplexity_increase"], figures["kl"], figures["top1"]) == (0, 0, 1)
    assert (figures["greedy_tokens"], figures["greedy_whole"]) == (1, 1)


def test_embeddings_are_compared_pair_by_pair() -> None:
    draw = np.random.default_rng(0)
    wanted = draw.standard_normal((30, 6))
    found = wanted + 0.4 * draw.standard_normal((30, 6))

    def cosine(a: np.ndarray, b: np.ndarray) -> float:
        return float(a @ b / math.sqrt((a @ a) * (b @ b)))

    figures = embedding_figures(wanted, found)
    cosines = [cosine(a, b) for a, b in zip(wanted, found, strict=True)]
    assert figures["mean_cosine"] == pytest.approx(np.mean(cosines))
    assert figures["min_cosine"] == pytest.approx(min(cosines))
    nearest, correlations = 0, []
    for row in range(30):
        others = [place for place in range(30) if place != row]
        before = [cosine(wanted[row], wanted[place]) for place in others]
        after = [cosine(found[row], found[place]) for place in others]
        nearest += int(np.argmax(before)) == int(np.argmax(after))
        ranks = [[sorted(values).index(value) for value in values] for values in (before, after)]
        distance = sum((a - b) ** 2 for a, b in zip(*ranks, strict=True))
        correlations.append(1 - 6 * distance / (29 * (29**2 - 1)))  # Spearman's formula without ties
    assert figures["retrieval"] == nearest / 30
    assert figures["order"] == pytest.approx(np.mean(correlations))
    assert 0 < nearest < 30


def test_sentences_of_any_lengths_are_embedded_and_compared_in_their_order(tmp_path: Path) -> None:
    before, rows = write_encoder(tmp_path / "before", seed=6)
    after, others = write_encoder(tmp_path / "after", seed=7)
    texts = text(30)
    candidate, reference = subject(after, False), subject(before, False)
    figures = compare_sentences(candidate, reference, Facts("encoder"), texts)
    wanted, found = (
        np.stack([table[ids].astype(np.float64).mean(axis=0) for ids in texts]) for table in (rows, others)
    )
    assert figures == {
        "texts": 30,
        **{k: pytest.approx(v, rel=1e-4) for k, v in embedding_figures(wanted, found).items()},
    }
    assert candidate.tokens == sum(map(len, texts))
    same = compare_sentences(reference, reference, Facts("encoder"), texts)
    assert same["mean_cosine"] == pytest.approx(1)
    assert (same["retrieval"], same["order"]) == (1, pytest.approx(1))


def test_labels_are_compared_by_choice_and_divergence() -> None:
    draw = np.random.default_rng(1)
    wanted, found = draw.standard_normal((20, 4)), draw.standard_normal((20, 4))
    figures = label_figures(wanted, found)
    rows = [(log_softmax(a), log_softmax(b)) for a, b in zip(wanted, found, strict=True)]
    kl = np.mean([sum(math.exp(p) * (p - q) for p, q in zip(*row, strict=True)) for row in rows])
    assert figures["kl"] == pytest.approx(kl, rel=1e-6)
    assert figures["top1"] == np.mean([int(np.argmax(a)) == int(np.argmax(b)) for a, b in rows])
    assert label_figures(wanted[:, :1], found[:, :1]) == {
        "max_difference": np.abs(wanted[:, 0] - found[:, 0]).max()
    }


def test_named_tensors_are_compared_by_row_and_by_class(tmp_path: Path) -> None:
    before, weights = write_mlp(tmp_path / "before", seed=3)
    after, others = write_mlp(tmp_path / "after", seed=8)
    x = np.random.default_rng(1).standard_normal((30, 6), dtype=np.float32)
    labels = np.arange(30) % 5
    report = compare_arrays(
        subject(after, False), subject(before, False), TENSORS, [{"x": row[None]} for row in x], labels
    )
    wanted, found = (
        np.maximum(x.astype(np.float64) @ w["w1"], 0) @ w["w2"].astype(np.float64) for w in (weights, others)
    )
    figures = report["outputs"]["y"]
    cosines = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(wanted, found, strict=True)]
    assert figures["mean_cosine"] == pytest.approx(np.mean(cosines), rel=1e-5)
    assert figures["min_cosine"] == pytest.approx(min(cosines), rel=1e-4)
    assert figures["relative"] == pytest.approx(
        np.linalg.norm(wanted - found) / np.linalg.norm(wanted), rel=1e-5
    )
    assert figures["top1"] == (wanted.argmax(1) == found.argmax(1)).mean()
    assert figures["accuracy"] == (found.argmax(1) == labels).mean()
    assert figures["reference_accuracy"] == (wanted.argmax(1) == labels).mean()


def test_windows_hold_each_document_once_and_begin_anew(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    documents = ["a" + "bcd " * 30, "xyz " * 9]
    path = tmp_path / "text.txt"
    path.write_text("<|endoftext|>\n".join(documents), encoding="utf-8")
    whole = [tokenizer.encode(document.strip()) for document in documents]
    found = windows(path, tokenizer, 16, None)
    assert [token for window in found for token in window] == [
        token
        for ids in whole
        for start in range(0, len(ids), 16)
        if len(ids) - start > 1
        for token in ids[start:][:16]
    ]
    assert max(map(len, found)) == 16
    limited = windows(path, tokenizer, 16, 40)
    assert sum(map(len, limited)) in (39, 40)
    assert limited[:2] == found[:2]


def test_calibrated_text_is_no_held_out_text() -> None:
    held = [list(range(100, 200)), list(range(300, 330))]
    check_apart([list(range(77, 123)), [5] * 100], held)
    with pytest.raises(BadInput, match="24 tokens in a row of calibration sample 1"):
        check_apart([[1, 2], [7, *range(304, 328), 9]], held)


def test_sentences_are_different_and_spread_over_the_file() -> None:
    from calibration.report.heldout import HELDOUT_FILE

    found = sentences(HELDOUT_FILE, 500)
    assert len(set(found)) == 500
    assert all(30 <= len(sentence) <= 300 for sentence in found)
    whole = " ".join(HELDOUT_FILE.read_text(encoding="utf-8").split())
    places = [whole.index(sentence) for sentence in found]
    assert places == sorted(places)
    assert places[0] < 0.05 * len(whole)
    assert places[-1] > 0.95 * len(whole)
    with pytest.raises(BadInput, match="sentences of 30 to 300 characters; 100000 are asked for"):
        sentences(HELDOUT_FILE, 100_000)


def test_limits_are_judged_figure_by_figure() -> None:
    report = {"perplexity_increase": 0.0123, "kl": math.nan, "top1": 0.97}
    limits = [
        Limit("max_perplexity_increase", "perplexity_increase", 0.01, "at most"),
        Limit("max_kl", "kl", 1.0, "at most"),
        Limit("min_top1", "top1", 0.97, "at least"),
    ]
    words = broken(report, limits)
    assert words == [
        "perplexity_increase is 0.0123, and accept.max_perplexity_increase asks for at most 0.01",
        "kl is nan, and accept.max_kl asks for at most 1",
    ]
    outputs = {"outputs": {"a": {"mean_cosine": 0.9}, "b": {"mean_cosine": 0.999}}}
    cosine = Limit("min_cosine", "mean_cosine", 0.95, "at least")
    assert broken(outputs, [cosine]) == [
        "mean_cosine of a is 0.9, and accept.min_cosine asks for at least 0.95"
    ]
    with pytest.raises(
        BadInput, match=r"accept\.min_cosine limits 'mean_cosine', which a report on this model"
    ):
        broken(report, [cosine])


def test_the_picture_shows_both_sides_and_what_is_not_finite() -> None:
    side = {"name": "m, int8 <x>", "bytes": 2**20, "tokens_per_second": 10.0}
    report = {
        "perplexity": math.inf,
        "reference_perplexity": 40.0,
        "top1": 0.5,
        "greedy_tokens": 0.25,
        "candidate": side,
        "reference": {"name": "m, float32", "bytes": 4 * 2**20, "tokens_per_second": 5.0},
        "worst": [
            {"tensor": "a", "module": "layers.1", "operator": "MatMul", "error": math.inf},
            {"tensor": "b", "module": "", "operator": "MatMul", "error": 0.5},
            {"tensor": "c", "module": "", "operator": "MatMul", "error": 0.25},
        ],
    }
    root = xml.etree.ElementTree.fromstring(picture(report, "m & n"))
    texts = [text.strip() for text in root.itertext()]
    assert {"m, int8 <x>", "m, float32", "m & n", "layers.1", "b", "inf", "40.00", "50.0%", "1.0"} <= set(
        texts
    )
    bars = {
        kind: [
            float(r.get("width", ""))
            for r in root.iter("{http://www.w3.org/2000/svg}rect")
            if r.get("class") == kind
        ][legend:]
        for kind, legend in (("before", 1), ("after", 1), ("worse", 0))
    }
    room = max(bars["after"])
    assert bars["before"] == pytest.approx([room, room, room, room, room / 2], abs=0.1)
    assert bars["after"] == pytest.approx([room, room / 2, room / 4, room / 4, room], abs=0.1)
    assert bars["worse"][0] == bars["worse"][1] == pytest.approx(2 * bars["worse"][2], abs=0.2)
