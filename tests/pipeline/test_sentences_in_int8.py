"""The sentence encoder with 8-bit weights: what float32 finds nearest stays the nearest."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline import Recipe, build
from pipeline.evaluate import evaluate

STAGES = ("export", "fuse", "quantize", "lower", "compile")


@pytest.mark.wide
def test_held_out_sentences_keep_their_nearest(tmp_path: Path) -> None:
    """500 sentences of books that neither the model nor GPTQ has seen."""
    recipe = Recipe.from_dict(
        {"source": {"model": "minilm"}, "quantize": {"precision": "int8-weights", "algorithm": "gptq"}}
    )
    report = evaluate(build(recipe, tmp_path / "minilm", stages=STAGES).folder, threads=1)
    assert report["texts"] == 500
    assert report["mean_cosine"] >= 0.995
    assert report["retrieval"] >= 0.98
    assert report["candidate"]["bytes"] <= 0.30 * report["reference"]["bytes"]
