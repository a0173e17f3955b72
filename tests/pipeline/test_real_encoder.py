"""All stages for real on a tiny random BERT: embeddings, not tokens, and no plugin where nothing needs it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from transformers import AutoModel, BertConfig, BertModel

from model_repo.runtime.contract import PACKED_TEXTS
from model_repo.runtime.encoder import EncoderEngine
from model_repo.runtime.manifest import Manifest
from pipeline import Recipe, build
from pipeline.bench import bench
from pipeline.check import check, verdict
from pipeline.workspace import MANIFESTS
from tests.export.tiny_models import saved, sharpened

HIDDEN = 32


def test_an_encoder_is_built_and_embeds_as_the_module_does(tmp_path: Path) -> None:
    torch.manual_seed(5)
    config = BertConfig(
        vocab_size=150,
        hidden_size=HIDDEN,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=40,
    )
    checkpoint = saved(sharpened(BertModel(config)), tmp_path / "bert")
    result = build(Recipe.for_model(str(checkpoint)), tmp_path / "out")
    for row in result.rows[:4]:
        assert not isinstance(row.parity, str)
        assert row.parity["min_cosine"] > 0.99999
        assert "top1" not in row.parity
    spec = Manifest.read(result.folder / MANIFESTS["compile"]).engine
    assert spec is not None
    assert (spec.kind, spec.hidden_size, spec.limits, spec.kv) == ("encoder", HIDDEN, None, ())
    assert not (result.folder / "libslipway_cpu.so").exists() or spec.plugin is not None
    verdict(check(result.folder))

    texts = [[5, 9, 30], [7] * 20, [4]]
    engine = EncoderEngine.load(result.folder, threads=1)
    found = engine.embed(texts)
    assert PACKED_TEXTS in engine.spec.features
    for text, row in zip(texts, found, strict=True):
        np.testing.assert_array_equal(
            engine.embed([text])[0], row, "a text's bits do not depend on its company"
        )
    module = AutoModel.from_pretrained(checkpoint, dtype=torch.float32).eval()
    with torch.no_grad():
        expected = [module(torch.tensor([text])).last_hidden_state[0].mean(dim=0).numpy() for text in texts]
    np.testing.assert_allclose(found, np.stack(expected), rtol=1e-4, atol=1e-4)

    (rate,) = bench(result.folder, spec, threads=1)
    assert rate.unit == "texts/s"
    assert rate.value > 0
