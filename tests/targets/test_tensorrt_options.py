"""Options of the builders: judged by target, set on the real builder of TensorRT-RTX, and shown by inspect."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper

from model_repo.runtime.errors import BadInput
from pipeline.builder_recipe import BuilderRecipe
from pipeline.cli import main
from pipeline.plan_report import inspect_plan
from pipeline.recipe import Recipe, TargetRecipe
from pipeline.targets.tensorrt import settings
from pipeline.targets.tensorrt.bindings import load
from pipeline.targets.tensorrt.builder import BuildOptions, Built, build_engine
from pipeline.targets.tensorrt.gpu_here import GpuHere, gpu_here
from pipeline.targets.tensorrt.profiles import Profile, Sizes, profile
from pipeline.targets.tensorrt.refitting import refit_engine
from pipeline.targets.tensorrt.settings import check_builder, configure
from tests.targets.small_networks import network

RTX = "tensorrt-rtx"
INPUTS = profile("any", {"x": ("n", 64)}, {"n": Sizes(1, 4, 8)})


def product() -> Any:
    weight = numpy_helper.from_array(np.ones((64, 64), np.float16), "w")
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], "product")]
    return network(nodes, [weight], TensorProto.FLOAT16, 64)


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("graph") / "product.onnx"
    path.write_bytes(product().SerializeToString())
    return path


def made(graph: Path, folder: Path, chips: tuple[str, ...] = ("8.9",), **options: Any) -> Built:
    chosen = BuildOptions(chips, builder=BuilderRecipe(**options))
    return build_engine(RTX, graph, folder / "engine.rtx", [INPUTS], chosen)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"hardware_compatibility": "ampere-plus"},
            r"hardware_compatibility is 'ampere-plus'.*--compute-capab",
        ),
        ({"version_compatible": True}, "version_compatible is True.*lacks the lean runtime"),
        ({"timing_cache": "x"}, "timing_cache is 'x'.*times no kernels"),
        ({"replay": "x"}, "replay is 'x'.*times no kernels"),
        ({"refit": True}, "refit is on, and TensorRT-RTX builds such an engine only beside a GPU"),
        ({"strip": True}, "strip is on"),
    ],
)
def test_what_tensorrt_rtx_has_not_is_refused(
    options: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings, "gpu_here", lambda: None)
    with pytest.raises(BadInput, match=words):
        check_builder(RTX, BuilderRecipe(**options))
    if "replay" not in options:
        check_builder("tensorrt", BuilderRecipe(**options))
    monkeypatch.setattr(settings, "gpu_here", lambda: GpuHere("a GPU", "8.9"))
    if {"refit", "strip"} & {*options}:
        check_builder(RTX, BuilderRecipe(**options))


def test_a_replay_that_is_no_file_is_refused() -> None:
    with pytest.raises(BadInput, match=r"replay is 'gone.timing', which is no file"):
        check_builder("tensorrt", BuilderRecipe(replay="gone.timing"))


def test_other_targets_take_none_of_them(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"\(target.builder\), and target onnxruntime has no builder"):
        TargetRecipe(builder=BuilderRecipe(refit=True))
    with pytest.raises(BadInput, match=r"plugin_library is 'x.so'; .* target tensorrt alone"):
        TargetRecipe("tensorrt-rtx", plugin_library="x.so")
    options = ("--strip", "--refit", "--output", str(tmp_path / "out"))
    refused = CliRunner().invoke(main, ["build", "demo", "--target", RTX, *options])
    assert refused.exit_code == 2
    assert "refit is on" in refused.output
    assert not (tmp_path / "out").exists()


def test_a_plugin_library_without_its_kernels_is_refused(tmp_path: Path) -> None:
    from pipeline.targets import get_target

    library = tmp_path / "libslipway_tensorrt.so"
    library.touch()
    recipe = Recipe.for_model("demo", "tensorrt")
    recipe = replace(recipe, target=replace(recipe.target, plugin_library=str(library)))
    with pytest.raises(BadInput, match=r"libslipway_kernels.so is no file; `make plugins TENSORRT_INCLUDE"):
        get_target("tensorrt").check(recipe)


def test_a_tactic_source_that_there_is_not_is_refused() -> None:
    with pytest.raises(
        BadInput, match=r"holds 'cublas'; available: edge-mask-convolutions, jit-convolutions"
    ):
        BuilderRecipe(tactic_sources=("cublas",))


def test_they_reach_the_builders_configuration() -> None:
    """On TensorRT-RTX's real classes, which have TensorRT's names."""
    trt = load(RTX)
    config = trt.Builder(trt.Logger(trt.Logger.ERROR)).create_builder_config()
    flags = trt.BuilderFlag
    configure(trt, config, BuilderRecipe())
    assert config.profiling_verbosity == trt.ProfilingVerbosity.DETAILED
    asked = (flags.WEIGHT_STREAMING, flags.STRIP_PLAN, flags.REFIT, flags.REFIT_IDENTICAL)
    assert not any(config.get_flag(flag) for flag in asked)
    configure(
        trt,
        config,
        BuilderRecipe(
            optimization_level=1,
            weight_streaming=True,
            strip=True,
            workspace_bytes=2**28,
            shared_memory_bytes=2**15,
            tactic_sources=("jit-convolutions",),
            profiling_verbosity="layer-names",
        ),
    )
    assert [config.get_flag(flag) for flag in asked] == [True, True, False, True]
    assert config.get_memory_pool_limit(trt.MemoryPoolType.WORKSPACE) == 2**28
    assert config.get_memory_pool_limit(trt.MemoryPoolType.TACTIC_SHARED_MEMORY) == 2**15
    assert config.get_tactic_sources() == 1 << int(trt.TacticSource.JIT_CONVOLUTIONS)
    assert config.builder_optimization_level == 1
    assert config.profiling_verbosity == trt.ProfilingVerbosity.LAYER_NAMES_ONLY


def test_engines_are_built_with_them(graph: Path, tmp_path: Path) -> None:
    whole = made(graph, tmp_path)
    assert "product" in whole.layers
    assert whole.tactics == ""
    less = made(graph, tmp_path, profiling_verbosity="none", weight_streaming=True, optimization_level=0)
    assert less.layers == ""


def test_a_build_without_enough_memory_says_what_to_lower(graph: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"within workspace limit.*That is memory. Raise --workspace-bytes"):
        made(graph, tmp_path, workspace_bytes=2**16)
    assert not (tmp_path / "engine.rtx").exists()


@pytest.mark.parametrize(
    "chips", [("7.5",), ("8.0",), ("8.6",), ("8.9",), ("12.0",), ("12.1",), ("8.9", "12.0"), ()]
)
def test_a_plans_header_tells_the_chips_that_it_is_for(
    graph: Path, tmp_path: Path, chips: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    made(graph, tmp_path, chips)
    found = inspect_plan(tmp_path / "engine.rtx")
    assert found.chips == (chips or ("8.0", "8.6", "8.9", "12.0", "12.1"))
    assert found.problems == ()
    other = "8.9" if "8.9" not in found.chips else "7.5"
    monkeypatch.setattr("pipeline.targets.tensorrt.gpu_here.gpu_here", lambda: GpuHere("NVIDIA X", other))
    (problem,) = inspect_plan(tmp_path / "engine.rtx").problems
    assert problem.endswith(f"; NVIDIA X, which is here, has {other}")


def test_a_plan_of_another_version_or_cut_short_is_told(graph: Path, tmp_path: Path) -> None:
    made(graph, tmp_path)
    plan = bytearray((tmp_path / "engine.rtx").read_bytes())
    plan[25] += 1
    (tmp_path / "engine.rtx").write_bytes(plan[:-100])
    short, older = inspect_plan(tmp_path / "engine.rtx").problems
    assert short == f"the file has {len(plan) - 100} bytes and should have {len(plan)}"
    assert older.startswith("it is built by version 1.8.1; 1.7.1")
    shown = CliRunner().invoke(main, ["inspect", str(tmp_path / "engine.rtx")]).output
    assert "should have" in shown


def test_an_engine_of_tensorrt_for_another_gpu_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = tmp_path / "engine.plan"
    plan.write_bytes(b"ftrt" * 20)
    record = {
        "target": "tensorrt",
        "version": "11.4.0.106",
        "bytes": 80,
        "gpu": {"name": "NVIDIA H200", "capability": "9.0"},
        "builder": {},
    }
    monkeypatch.setattr("pipeline.targets.tensorrt.gpu_here.gpu_here", lambda: GpuHere("NVIDIA L4", "8.9"))
    monkeypatch.setattr("pipeline.targets.tensorrt.bindings.installed", lambda target: "11.5.0.1")
    (tmp_path / "layers.json").write_text(json.dumps(record))
    assert inspect_plan(plan).problems == (
        "it is built for compute capability 9.0; NVIDIA L4, which is here, has 8.9",
        "it is built by version 11.4.0.106; 11.5.0.1 is installed",
    )
    record["builder"] = {"hardware_compatibility": "ampere-plus"}
    (tmp_path / "layers.json").write_text(json.dumps(record))
    assert len(inspect_plan(plan).problems) == 1


def test_profiles_of_decode_steps_follow_the_recipe() -> None:
    from pipeline.targets.tensorrt.profiles import decode_names, linear_profiles

    assert decode_names((), 16) == {"decode": 16}
    assert decode_names((8, 1, 64), 16) == {"decode_1": 1, "decode_8": 8, "decode": 16}
    assert decode_names((1, 8), 8) == {"decode_1": 1, "decode": 8}
    inputs = {"input_ids": ("batch", "length"), "logits_indices": ("selected",)}
    found = linear_profiles(inputs, 16, 32, (4,))
    assert [one.name for one in found] == ["decode_4", "decode", "prefill"]
    assert isinstance(found[0], Profile)
    assert found[0].shapes["input_ids"] == ((1, 1), (4, 1), (4, 1))


def test_refitting_takes_a_gpu_and_a_build_of_tensorrt(graph: Path, tmp_path: Path) -> None:
    made(graph, tmp_path)
    engine = tmp_path / "engine.rtx"
    if gpu_here() is None:
        with pytest.raises(BadInput, match=r"engine.rtx is refitted on a GPU, and there is none here"):
            refit_engine(RTX, engine, graph, tmp_path / "refitted.rtx")
        assert {path.name for path in tmp_path.iterdir()} == {"engine.rtx"}
    Recipe.for_model("demo").dump(tmp_path / "recipe.yaml")
    refused = CliRunner().invoke(main, ["refit", str(tmp_path)])
    assert refused.exit_code == 2
    assert "target onnxruntime, whose engines are not refitted" in refused.output
