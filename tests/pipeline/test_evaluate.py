"""`evaluate`: perplexity as transformers has it, the acceptance rule, and what a build does when it is broken."""

from __future__ import annotations

import json
import math
import shutil
import xml.etree.ElementTree
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from click.testing import CliRunner

from model_repo.runtime.errors import BadInput, GateFailed
from model_repo.runtime.tokenizer import Tokenizer
from pipeline import build
from pipeline.builder import stages_of
from pipeline.cli import main
from pipeline.evaluate import Given, evaluate
from pipeline.graph import load_graph, save_graph
from pipeline.recipe import AcceptRecipe, Recipe
from pipeline.workspace import ACCURACY, ACCURACY_PICTURE, ALL_MANIFESTS, ENGINE, RECIPE
from tests.pipeline.tiny import MAX_LENGTH

WORDS = "It was a bright cold day in April, and the clocks were striking thirteen. {n} men of {n} came. "


@pytest.fixture
def heldout(tmp_path: Path) -> Path:
    """Three documents, longer than the model's length."""
    path = tmp_path / "heldout.txt"
    path.write_text("<|endoftext|>".join(WORDS.format(n=n) * 3 for n in (3, 14, 159)), encoding="utf-8")
    return path


@pytest.fixture
def worse(built: Path, tmp_path: Path) -> Path:
    """A build whose engine has noise in its weights."""
    folder = tmp_path / "worse"
    shutil.copytree(built, folder)
    engine = load_graph(folder / ENGINE)
    draw = np.random.default_rng(5)
    for name, value in engine.graph.initializers.items():
        weight = value.const_value
        assert weight is not None
        array = weight.numpy()
        if array.ndim == 2 and array.dtype == np.float32 and array.shape[1] >= 32:
            noisy = array + 0.05 * array.std() * draw.standard_normal(array.shape).astype(np.float32)
            value.const_value = ir.tensor(noisy.astype(np.float32), name=name)
    save_graph(engine, folder / ENGINE)
    return folder


def transformers_perplexity(checkpoint: Path, heldout: Path) -> tuple[float, int]:
    """Of windows of MAX_LENGTH tokens, each from its second token on."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    tokenizer = Tokenizer.load(checkpoint / "tokenizer.json")
    nats, count = 0.0, 0
    for document in heldout.read_text(encoding="utf-8").split("<|endoftext|>"):
        ids = torch.tensor(tokenizer.encode(document.strip()))
        for window in ids.split(MAX_LENGTH):
            if len(window) < 2:
                continue
            with torch.no_grad():
                logits = model(window[None]).logits[0, :-1].double()
            nats += float(torch.nn.functional.cross_entropy(logits, window[1:], reduction="sum"))
            count += len(window) - 1
    return math.exp(nats / count), count


def test_perplexity_is_that_of_transformers(built: Path, tiny_llama: Path, heldout: Path) -> None:
    report = evaluate(built, given=Given(heldout))
    perplexity, tokens = transformers_perplexity(tiny_llama, heldout)
    assert report["tokens"] == tokens
    assert report["perplexity"] == pytest.approx(perplexity, rel=1e-5)
    assert report["reference"] is None
    weights = sum(path.stat().st_size for path in (built / "weights").iterdir())
    assert report["candidate"]["bytes"] <= weights + (built / ENGINE).stat().st_size


def test_an_engine_is_compared_with_another_folders(built: Path, worse: Path, heldout: Path) -> None:
    report = evaluate(worse, built, Given(heldout))
    alone = evaluate(worse, given=Given(heldout))
    assert report["perplexity"] == pytest.approx(alone["perplexity"], rel=1e-6)
    assert report["reference_perplexity"] == pytest.approx(
        evaluate(built, given=Given(heldout))["perplexity"], rel=1e-6
    )
    assert report["kl"] > 1e-4
    assert report["top1"] < 1


def test_the_float32_graph_shows_the_worst_layers(worse: Path, heldout: Path) -> None:
    report = evaluate(worse, given=Given(heldout), compare_always=True)
    assert report["kl"] > 1e-4
    errors = [layer["error"] for layer in report["worst"]]
    assert errors == sorted(errors, reverse=True)
    # Only products have other weights: what stands between them computes as before.
    worst = report["worst"][:8]
    assert {layer["operator"].rpartition("::")[2] for layer in worst} <= {
        "MatMul",
        "Gemm",
        "FusedMatMul",
        "Gather",
    }
    assert errors[0] > 0.02


def accepted(folder: Path, heldout: Path, **rule: Any) -> Recipe:
    """The folder's recipe with an acceptance rule, on disk too."""
    data = Recipe.load(folder / RECIPE).to_dict()
    data["accept"].update(rule, data=str(heldout))
    recipe = Recipe.from_dict(data)
    recipe.dump(folder / RECIPE)
    return recipe


def test_a_rule_that_holds_leaves_a_report(built: Path, heldout: Path) -> None:
    recipe = accepted(built, heldout, max_perplexity_increase="1%", min_top1=0.99, max_kl=0.01)
    assert stages_of(recipe)[-2:] == ("evaluate", "emit")
    rows = {row.stage: row for row in build(recipe, built).rows}
    assert rows["evaluate"].ran
    assert "perplexity" in str(rows["evaluate"].parity)
    report = json.loads((built / ACCURACY).read_text())
    assert abs(report["perplexity_increase"]) < 1e-5
    assert report["reference"]["name"] == "tiny, float32"
    xml.etree.ElementTree.parse(built / ACCURACY_PICTURE)
    assert not {row.stage: row for row in build(recipe, built).rows}["evaluate"].ran


def test_a_broken_rule_ends_the_build_before_anything_is_emitted(worse: Path, heldout: Path) -> None:
    recipe = accepted(worse, heldout, max_perplexity_increase="0.1%", max_kl=1e-5)
    (worse / ALL_MANIFESTS["emit"]).unlink()
    with pytest.raises(
        GateFailed, match=r"kl is [\d.e-]+, and accept\.max_kl asks for at most 1e-05"
    ) as caught:
        build(recipe, worse, stages=("evaluate", "emit"))
    assert caught.value.exit_code == 3
    for name in (ACCURACY, ALL_MANIFESTS["evaluate"], ALL_MANIFESTS["emit"]):
        assert not (worse / name).exists()


def test_the_command_prints_draws_and_judges(worse: Path, built: Path, heldout: Path, tmp_path: Path) -> None:
    files = ["--report", str(tmp_path / "r.json"), "--picture", str(tmp_path / "p.svg")]
    command = ["evaluate", str(worse), "--against", str(built), "--data", str(heldout), "--threads", "1"]
    runner = CliRunner()
    done = runner.invoke(main, [*command, *files])
    assert done.exit_code == 0, done.output
    assert "perplexity of" in done.output
    assert json.loads((tmp_path / "r.json").read_text())["kl"] > 0
    texts = "".join(xml.etree.ElementTree.parse(tmp_path / "p.svg").getroot().itertext())
    assert "perplexity" in texts
    assert "MiB" in texts
    accepted(worse, heldout, max_kl=1e-6)
    done = runner.invoke(main, [*command, "--json"])
    assert done.exit_code == 3
    assert '"kl"' in done.output


def test_what_cannot_be_evaluated_is_refused(built: Path, heldout: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no held-out text at"):
        evaluate(built, given=Given(tmp_path / "none.txt"))
    with pytest.raises(BadInput, match="no manifest at"):
        evaluate(tmp_path, given=Given(heldout))
    ids = Tokenizer.load(built / "tokenizer.json").encode(WORDS.format(n=14))
    (built / "calibration.jsonl").write_text(json.dumps({"input_ids": ids}) + "\n")
    with pytest.raises(BadInput, match="tokens in a row of calibration sample 0"):
        evaluate(built, given=Given(heldout))
    (built / "calibration.jsonl").unlink()
    for text in ("much", "-1%", "nan", "inf%"):
        with pytest.raises(BadInput, match=r"it must be a share such as 1% or 0\.01"):
            AcceptRecipe(max_perplexity_increase=text)
    with pytest.raises(BadInput, match=r"accept\.min_retrieval limits 'retrieval'"):
        build(accepted(built, heldout, min_retrieval=0.9), built, stages=("evaluate",))
