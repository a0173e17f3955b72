"""`slipway plan-memory`: against the checkpoint's header, torch's own profiler, and arithmetic by hand."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.profiler import ProfilerActivity, profile

from model_repo.runtime.errors import BadInput
from pipeline.cli import main
from pipeline.gpus import GIB, GPU_GIB, Gpu, gpu
from pipeline.memory_plan import MemoryPlan, most_alive, plan_memory
from pipeline.recipe import ExportRecipe, SourceRecipe, TargetRecipe
from pipeline.sources import open_source

DEMO = Path(__file__).resolve().parents[2] / "demo" / "model"


def header(path: Path) -> dict[str, dict[str, list[int]]]:
    """The safetensors header, read by hand."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        entries = json.loads(file.read(length))
    entries.pop("__metadata__", None)
    return entries


@pytest.fixture(scope="module")
def demo_plan() -> MemoryPlan:
    source = open_source("demo", SourceRecipe("demo"))
    return plan_memory(source, ExportRecipe(), TargetRecipe(name="onnxruntime"), "float16", "float16")


def test_weights_are_those_of_the_checkpoint(demo_plan: MemoryPlan) -> None:
    (checkpoint,) = DEMO.glob("*.safetensors")
    elements = sum(torch.Size(entry["shape"]).numel() for entry in header(checkpoint).values())
    assert demo_plan.weights == elements
    assert demo_plan.weight_bytes == 2 * elements


def test_cache_of_a_token_is_keys_and_values_of_every_layer(demo_plan: MemoryPlan) -> None:
    config = json.loads((DEMO / "config.json").read_text())
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    assert (
        demo_plan.kv_bytes_per_token
        == 2 * config["num_hidden_layers"] * config["num_key_value_heads"] * head_dim * 2
    )


def test_activations_grow_with_the_step_and_hold_at_least_its_widest_product(demo_plan: MemoryPlan) -> None:
    config = json.loads((DEMO / "config.json").read_text())
    source = open_source("demo", SourceRecipe("demo"))
    double = plan_memory(
        source, ExportRecipe(), TargetRecipe(name="onnxruntime", token_budget=1024), "float16", "float16"
    )
    gate_and_up = 2 * demo_plan.token_budget * config["intermediate_size"] * 2
    assert gate_and_up < demo_plan.activation_bytes < 3 * gate_and_up
    assert double.activation_bytes == pytest.approx(2 * demo_plan.activation_bytes, rel=0.01)


def test_bytes_alive_are_those_that_torch_allocates() -> None:
    net = nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64), nn.LayerNorm(64), nn.ReLU())
    rows = torch.randn(100, 64)
    with torch.no_grad(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        net(rows)
    now = peak = 0
    for event in profiled.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    shadow = net.to("meta")
    x = rows.to("meta")
    with torch.no_grad(), most_alive([*shadow.parameters(), x]) as watch:
        shadow(x)
    assert peak >= 2 * 100 * 256 * 4
    assert watch.peak == pytest.approx(peak, rel=0.01)


def test_views_and_what_was_given_count_nothing() -> None:
    x = torch.zeros(10, 20, device="meta")
    with most_alive([x]) as watch:
        _ = x.t().reshape(200)[3:].view(1, -1) if x.t().is_contiguous() else x.t()[2:]
    assert watch.peak == 0


@given(
    gib=st.integers(1, 200),
    utilization=st.floats(0.1, 1.0),
    weight_bytes=st.integers(1, 40 * GIB),
    per_token=st.integers(1, 1 << 21),
    max_length=st.integers(1, 1 << 17),
    block_size=st.sampled_from([1, 16, 256]),
)
def test_the_blocks_are_as_many_as_fit(
    gib: int, utilization: float, weight_bytes: int, per_token: int, max_length: int, block_size: int
) -> None:
    plan = MemoryPlan("m", 1, weight_bytes, 1000, 500, per_token, "float16", max_length, 4, 512, block_size)
    fit = plan.fit(Gpu("x", gib * GIB), utilization)
    taken = weight_bytes + 1000 + 500
    room = int(gib * GIB * utilization)
    if taken + block_size * per_token > room:
        assert fit.num_blocks == 0
        assert not fit.fits
    else:
        assert taken + fit.num_blocks * block_size * per_token <= room
        assert taken + (fit.num_blocks + 1) * block_size * per_token > room
    assert fit.longest_sequences * max_length <= fit.tokens


def test_gpus_by_name_and_by_size() -> None:
    assert gpu("H100") == Gpu("h100", 80 * GIB)
    assert gpu("RTX 4090").bytes == GPU_GIB["rtx4090"] * GIB
    assert gpu("nvidia L40S").name == "l40s"
    assert gpu("24").bytes == gpu("24GiB").bytes == 24 * GIB
    assert gpu("80 GB").bytes == 80 * 10**9


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["demo", "--gpu", "h1000"], "unknown GPU 'h1000'; did you mean h100?"),
        (["demo", "--gpu", "0GiB"], "unknown GPU '0GiB'"),
        (["demo", "--utilization", "1.5"], "it must be above 0 and at most 1"),
        (["demo", "--dtype", "int3"], "no memory plan for 'int3'; known are float32, float16"),
        (["minilm"], "minilm is of kind encoder"),
        ([], "no MODEL given"),
    ],
)
def test_bad_input_is_one_clear_error(arguments: list[str], words: str) -> None:
    result = CliRunner().invoke(main, ["plan-memory", *arguments])
    assert result.exit_code == BadInput.exit_code
    assert words in result.output


def test_the_command_tells_what_does_not_fit() -> None:
    result = CliRunner().invoke(main, ["plan-memory", "demo", "--gpu", "4MiB", "--gpu", "h200", "--json"])
    assert result.exit_code == 0, result.output
    small, large = json.loads(result.output)["gpus"]
    assert small["longest_sequences"] == 0
    assert small["cache_bytes"] < 0
    assert large["longest_sequences"] > 0
    shown = CliRunner().invoke(main, ["plan-memory", "demo", "--gpu", "4MiB"])
    assert "does not fit" in shown.output
