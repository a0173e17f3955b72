"""Quantized checkpoints through the build: what transformers computes with the dequantized weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from calibration.data import parity_prompts
from model_repo.runtime.errors import BadInput
from pipeline import Recipe, build
from pipeline.fuse.weights import read_origin
from pipeline.graph import load_graph
from pipeline.parity.decoder import run_decoder
from pipeline.parity.sessions import graph_session
from pipeline.recipe import QuantizeRecipe, SourceRecipe
from pipeline.steps.context import ModelFacts
from pipeline.workspace import QUANTIZED, Workspace
from tests.calibration.quantized_checkpoints import awq_layer, gptq_layer

from .tiny import write_tiny_llama

GROUP = 32
STAGES = ("export", "fuse", "quantize")


@pytest.fixture(scope="module")
def float_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama whose projections are wide enough to be worth quantizing."""
    folder = write_tiny_llama(tmp_path_factory.mktemp("float") / "wide")
    config = LlamaConfig.from_pretrained(folder)
    config.hidden_size, config.intermediate_size, config.num_attention_heads = 64, 128, 4
    torch.manual_seed(5)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def quantized(float_folder: Path, folder: Path, method: str, symmetric: bool) -> tuple[Path, Path]:
    """Every projection quantized: the checkpoint in its format, and one of the floats that it stands for."""
    plain = folder.with_name(f"{folder.name}-dequantized")
    for target in (folder, plain):
        shutil.copytree(float_folder, target)
    tensors = load_file(float_folder / "model.safetensors")
    draw = np.random.default_rng(0)
    stored, floats = {}, {}
    for name, weight in tensors.items():
        if "_proj" not in name:
            stored[name] = floats[name] = weight
            continue
        out, width = weight.shape
        groups = width // GROUP
        scales = (weight.reshape(out, groups, GROUP).abs().amax(-1) / 6).half().numpy()
        zeros = np.full((out, groups), 8) if symmetric else draw.integers(7, 10, (out, groups))
        spread = [np.repeat(part.astype(np.float32), GROUP, axis=1) for part in (scales, zeros)]
        codes = np.clip(np.rint(weight.numpy() / spread[0]) + spread[1], 0, 15).astype(np.int64)
        layer = gptq_layer(codes, zeros, scales, 4) if method == "gptq" else awq_layer(codes, zeros, scales)
        module = name.removesuffix(".weight")
        stored |= {f"{module}.{key}": value.contiguous() for key, value in layer.items()}
        floats[name] = torch.from_numpy(((codes - spread[1]) * spread[0]).astype(np.float32))
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    save_file(floats, plain / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": method,
        "bits": 4,
        "group_size": GROUP,
        "version": "gemm",
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder, plain


def recipe(folder: Path, **quantize: str) -> Recipe:
    return Recipe(SourceRecipe(str(folder)), quantize=QuantizeRecipe(**quantize))


@pytest.mark.parametrize(("method", "symmetric"), [("gptq", True), ("awq", False)])
def test_codes_and_scales_of_a_checkpoint_reach_the_graph_unchanged(
    float_folder: Path, tmp_path: Path, method: str, symmetric: bool
) -> None:
    folder, plain = quantized(float_folder, tmp_path / method, method, symmetric)
    result = build(recipe(folder, precision="int4", algorithm="checkpoint"), tmp_path / "out", stages=STAGES)
    graph = result.folder / QUANTIZED
    model = load_graph(graph)
    codes = [value for value in model.graph.initializers.values() if value.dtype == ir.DataType.INT4]
    assert len([value for value in codes if (value.name or "").endswith(".codes")]) == 8
    assert any((value.name or "").endswith(".zero") for value in codes) != symmetric
    (attention,) = [value for value in codes if value.name == "model.layers.1.self_attn.qkv.weight.codes"]
    parts = [
        load_file(folder / "model.safetensors")[f"model.layers.1.self_attn.{x}_proj.scales"] for x in "qkv"
    ]
    scales = model.graph.initializers["model.layers.1.self_attn.qkv.weight.scale"].const_value
    np.testing.assert_array_equal(scales.numpy(), torch.cat(parts, dim=1).float().numpy())
    assert attention.shape == (64, 64 + 2 * 16)
    reference = LlamaForCausalLM.from_pretrained(plain, dtype=torch.float32).eval()
    facts = ModelFacts.from_dict(Workspace(result.folder).manifest("export").details["model"])
    prompts = parity_prompts(None, facts.vocab_size, (5, 17, 31))
    with graph_session(graph, result.folder / "scratch.onnx") as session:
        found = run_decoder(session, facts.kv, prompts)
    for ids, rows in zip(prompts, found, strict=True):
        with torch.inference_mode():
            wanted = reference(input_ids=torch.tensor([ids])).logits[0].numpy()
        np.testing.assert_allclose(rows, wanted, rtol=1e-3, atol=1e-3)


def test_fixed_scales_of_activations_are_the_checkpoints(float_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "fp8"
    shutil.copytree(float_folder, folder)
    tensors = load_file(float_folder / "model.safetensors")
    stored, given = {}, {}
    for place, (name, weight) in enumerate(sorted(tensors.items())):
        stored[name] = weight
        if "_proj" in name and "layers.1.mlp.gate" not in name:
            module = name.removesuffix(".weight")
            scale = weight.abs().max() / 448
            given[name] = 0.01 + 0.001 * (place % 7)
            stored[name] = (weight / scale).to(torch.float8_e4m3fn)
            stored |= {f"{module}.weight_scale": scale, f"{module}.input_scale": torch.tensor(given[name])}
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    (folder / "hf_quant_config.json").write_text(json.dumps({"quantization": {"quant_algo": "FP8"}}))
    stages = ("export", "fuse", "calibrate", "quantize")
    made = recipe(folder, precision="fp8", algorithm="checkpoint")
    model = load_graph(build(made, tmp_path / "out", stages=stages).folder / QUANTIZED)
    seen = set()
    for node in model.graph:
        rounded = node.inputs[0].producer() if node.op_type == "MatMul" and node.inputs[0] else None
        if rounded is None or rounded.op_type != "DequantizeLinear":
            continue
        weight = node.inputs[1].producer()
        assert weight is not None
        parts = [origin.parameter for origin in read_origin(weight.inputs[0])]
        scale = float(rounded.inputs[1].const_value.numpy())
        assert scale == np.float32(max(given[part] for part in parts))
        seen.update(parts)
    assert seen == set(given) - {"model.layers.1.mlp.up_proj.weight"}  # packed with floats, so it stays so


def test_what_does_not_go_together_is_refused(float_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="is not quantized; choose another algorithm"):
        build(
            recipe(float_folder, precision="int4", algorithm="checkpoint"), tmp_path / "float", stages=STAGES
        )
    folder, _ = quantized(float_folder, tmp_path / "gptq", "gptq", True)
    with pytest.raises(BadInput, match="takes int8"):
        build(recipe(folder, precision="int8", algorithm="checkpoint"), tmp_path / "int8", stages=STAGES)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["quant_method"] = "bitsandbytes"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(BadInput, match="quantized by 'bitsandbytes' are not read"):
        build(recipe(folder), tmp_path / "other", stages=("export",))
