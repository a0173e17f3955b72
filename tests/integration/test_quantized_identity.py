"""Every scheme of the CPU target: a request's logits are the same bits alone and among 15 others."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model_repo.runtime import onnxruntime_executor
from model_repo.runtime.contract import ROWS_ALONE
from model_repo.runtime.engine_files import EngineFiles
from pipeline import Recipe, build
from pipeline.recipe import read_yaml

from .test_bit_identity import requests_of, run

FIELDS: dict[str, dict[str, Any]] = {
    "int8": {"precision": "int8"},
    "int8-weights": {"precision": "int8-weights"},
    "int4": {"precision": "int4"},
    "int4-asymmetric": {"precision": "int4-asymmetric"},
    "w4a8": {"precision": "w4a8"},
    "fp8": {"precision": "fp8"},
    "kv int8": {"kv_dtype": "int8"},
    "kv fp8": {"kv_dtype": "fp8"},
}


@pytest.mark.parametrize("scheme", FIELDS)
def test_neighbours_change_no_bit(
    engine_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    """Nor does it change one where the weights lie: those of requests alone are read into memory, as large ones are."""
    folder = tmp_path / "engine"
    shutil.copytree(engine_folder, folder, ignore=shutil.ignore_patterns("repository"))
    recipe = read_yaml(folder / "recipe.yaml") | {"quantize": FIELDS[scheme]}
    # Random weights: the parity figures say nothing here.
    recipe["parity"]["quantize"] = {"min_cosine": -1.0, "min_top1": 0.0, "max_relative": 1e9}
    static = scheme in ("fp8", "kv int8", "kv fp8")
    if static:
        tokens = np.random.default_rng(2).integers(0, 1003, (8, 64)).tolist()
        data = tmp_path / "tokens.jsonl"
        data.write_text("".join(json.dumps({"input_ids": row}) + "\n" for row in tokens))
        recipe["calibrate"] = {"data": str(data)}
    stages = ("calibrate",) if static else ()
    build(Recipe.from_dict(recipe), folder, stages=(*stages, "quantize", "lower", "compile"))
    spec = EngineFiles.read(folder).spec
    assert spec.precision == FIELDS[scheme].get("precision", "fp32")
    assert (ROWS_ALONE in spec.features) == (scheme in ("int8", "int8-weights", "int4", "w4a8"))
    assert spec.limits is not None
    requests = requests_of(np.random.default_rng(7), spec.vocab_size)
    tight = replace(spec, limits=replace(spec.limits, token_budget=96))
    together = run(folder, tight, 2, requests, [index // 3 for index in range(16)])
    assert max(len(step.rows) for step in together.log.steps) >= 8
    monkeypatch.setattr(onnxruntime_executor, "LARGE_BYTES", 0)
    executor = onnxruntime_executor.OnnxRuntimeExecutor(folder, spec, spec.limits.num_blocks, 1)
    assert executor.bucket_rule.min_tokens == (1 if ROWS_ALONE in spec.features else 2)
    for request in (requests[place] for place in (0, 1, 6, 7, 11, 13)):
        alone = run(folder, spec, 1, [request], [0])
        expected, got = alone.logits[request.request_id], together.logits[request.request_id]
        assert len(got) == len(expected) == request.sampling.max_tokens
        assert all((a.view(np.int32) == b.view(np.int32)).all() for a, b in zip(expected, got, strict=True))
