"""All stages for real on a tiny random Llama: artifacts, parity, what runs again, planted faults."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from click.testing import CliRunner

import pipeline.fuse
from model_repo.runtime.engine import Engine
from model_repo.runtime.errors import BadInput
from model_repo.runtime.manifest import Manifest
from model_repo.runtime.request import Request, SamplingParams
from pipeline import BuildResult, Recipe, build
from pipeline.cli import main
from pipeline.recipe import ExportRecipe, FuseRecipe, ServeRecipe, TargetRecipe
from pipeline.workspace import ENGINE, EXPORTED, FUSED, MANIFESTS, RECIPE, REPOSITORY, Workspace

from .tiny import MAX_LENGTH, VOCABULARY

ROOT = Path(__file__).resolve().parents[2]
ALL = list(MANIFESTS)


def ran(recipe: Recipe, folder: Path) -> list[str]:
    """Stages that a build runs."""
    return [row.stage for row in build(recipe, folder).rows if row.ran]


def test_every_stage_is_measured_against_the_one_before(real_build: BuildResult) -> None:
    assert [row.stage for row in real_build.rows] == ALL
    for row, against in zip(real_build.rows, ("the torch module", "export", "fuse", "lower"), strict=False):
        assert not isinstance(row.parity, str)
        assert row.parity["against"] == against
        assert row.parity["rows"] > 100
        assert row.parity["min_cosine"] > 0.99999
        assert row.parity["top1"] == 1.0
    written = json.loads((real_build.folder / "build.json").read_text())
    assert [row["stage"] for row in written["stages"]] == ALL


def test_the_engine_says_what_it_is(real_build: BuildResult) -> None:
    spec = Manifest.read(real_build.folder / MANIFESTS["compile"]).engine
    assert spec is not None
    assert (spec.kind, spec.vocab_size, spec.max_length) == ("decoder", VOCABULARY, MAX_LENGTH)
    assert spec.end_token_ids == (1,)
    assert [(kv.kv_heads, kv.key_dim) for kv in spec.kv] == [(1, 16), (1, 16)]
    assert spec.decoder_limits.num_blocks == 16 * MAX_LENGTH // 16
    listed = {record.path for record in Manifest.read(real_build.folder / MANIFESTS["compile"]).outputs}
    assert {ENGINE, "tokenizer.json", spec.plugin} <= listed


def test_the_engine_gives_the_tokens_of_the_torch_module(real_build: BuildResult, tiny_llama: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    module = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    prompts = [[5, 9, 30], [40, 41, 42, 43, 44, 45, 46, 47, 48, 49, 50, 51, 52, 53, 54, 55, 56, 57]]
    sampling = SamplingParams(max_tokens=12, temperature=0.0, ignore_eos=True)
    engine = Engine.load(real_build.folder, threads=1)
    requests = [Request(str(row), tuple(ids), sampling) for row, ids in enumerate(prompts)]
    for prompt, completion in zip(prompts, engine.generate(requests), strict=True):
        ids = torch.tensor([prompt])
        expected = module.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=12, min_new_tokens=12
        )
        assert list(completion.token_ids) == expected[0, len(prompt) :].tolist()


def test_the_repository_is_a_copy(real_build: BuildResult) -> None:
    spec = Manifest.read(real_build.folder / MANIFESTS["compile"])
    (copied,) = (real_build.folder / REPOSITORY).glob("*/1/engine")
    for record in spec.outputs:
        original, copy = real_build.folder / record.path, copied / record.path
        assert copy.read_bytes() == original.read_bytes()
        assert not copy.samefile(original)


def test_an_unchanged_build_imports_nothing_heavy(built: Path, tiny_llama: Path) -> None:
    script = (
        "import sys\n"
        "from pipeline import Recipe, build\n"
        "rows = build(Recipe.load(sys.argv[1] + '/recipe.yaml'), sys.argv[1]).rows\n"
        "assert not any(row.ran for row in rows), rows\n"
        "heavy = {'torch', 'transformers', 'onnx', 'onnx_ir', 'onnxscript', 'onnxruntime'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", script, str(built)], cwd=ROOT, check=True)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"target": TargetRecipe(max_batch=4)}, ["compile", "emit"]),
        ({"serve": ServeRecipe(max_queue=7)}, ["emit"]),
    ],
)
def test_a_changed_section_runs_what_depends_on_it(
    built: Path, change: dict[str, Any], expected: list[str]
) -> None:
    recipe = dataclasses.replace(Recipe.load(built / RECIPE), **change)
    assert ran(recipe, built) == expected


def test_fusion_that_is_switched_off_keeps_parity(built: Path) -> None:
    before = len(ir.load(built / FUSED).graph)
    recipe = dataclasses.replace(Recipe.load(built / RECIPE), fuse=FuseRecipe(disable=("qkv",)))
    assert ran(recipe, built) == ["fuse", "lower", "compile", "emit"]
    assert len(ir.load(built / FUSED).graph) > before


def planted(model: ir.Model, recipe: FuseRecipe, **options: Any) -> Any:
    """Fusion with a fault: one product's weight is a little off."""
    report = ORIGINAL(model, recipe, **options)
    (value, *_) = (
        node.inputs[1] for node in model.graph if node.op_type == "MatMul" and node.inputs[1].const_value
    )
    array = value.const_value.numpy().copy()
    array[:, 0] *= -1
    value.const_value = ir.Tensor(array.astype(np.float32), name=value.name)
    return report


ORIGINAL = pipeline.fuse.fuse


def test_a_planted_fault_ends_with_3_and_publishes_nothing(
    built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline.fuse, "fuse", planted)
    before = {path: path.read_bytes() for path in built.rglob("*") if path.is_file()}
    result = CliRunner().invoke(main, ["fuse", str(built), "--force"])
    assert result.exit_code == 3, result.output
    assert "fuse differs from export: least cosine 0." in result.stderr
    assert "top-1" in result.stderr
    assert f"to repeat just this stage: slipway fuse {built}" in result.stderr
    after = {path: path.read_bytes() for path in built.rglob("*") if path.is_file()}
    changed = {path.name for path in after if after[path] != before.get(path)} - {".hashes.json"}
    # A weight that only the refused graph names may lie there until the next build that ends well.
    assert all(path.parent.name == "weights" for path in after.keys() - before.keys())
    assert not {EXPORTED, FUSED, *MANIFESTS.values()} & changed
    monkeypatch.undo()
    assert CliRunner().invoke(main, ["fuse", str(built), "--force"]).exit_code == 0
    assert {path for path in built.rglob("*") if path.is_file()} - {built / "build.lock"} == set(before)


def test_a_length_beyond_the_model_is_refused_and_nothing_is_left(tiny_llama: Path, tmp_path: Path) -> None:
    recipe = dataclasses.replace(Recipe.for_model(str(tiny_llama)), export=ExportRecipe(max_length=65))
    with pytest.raises(BadInput, match="at most 64 tokens"):
        build(recipe, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_pools_too_small_for_one_sequence_are_refused(built: Path) -> None:
    recipe = dataclasses.replace(Recipe.load(built / RECIPE), target=TargetRecipe(num_blocks=2))
    old = (built / MANIFESTS["compile"]).read_bytes()
    with pytest.raises(BadInput, match="2 blocks of 16 tokens cannot hold one sequence of 64"):
        build(recipe, built)
    assert (built / MANIFESTS["compile"]).read_bytes() == old


def test_a_checkpoint_cut_short_is_refused_and_nothing_is_left(tiny_llama: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_llama, tmp_path / "cut")
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    result = CliRunner().invoke(
        main, ["build", str(tmp_path / "cut"), "--output", str(tmp_path / "out" / "cut")]
    )
    assert result.exit_code == 2, result.output
    assert "model.safetensors" in result.stderr
    assert not (tmp_path / "out").exists()
    assert not Workspace(tmp_path / "out" / "cut").has_artifacts()
