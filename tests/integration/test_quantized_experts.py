"""Mixtures of experts in codes: what is stored, what the engine multiplies, and that company changes no bit."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from calibration.schemes import dequantize, quantize
from model_repo.runtime.engine_files import EngineFiles
from model_repo.runtime.errors import SlipwayError
from pipeline import Recipe, build
from pipeline.graph import load_graph
from pipeline.quantize.experts import expert_schemes, experts_of, write_experts
from pipeline.quantize.policy import POLICIES
from pipeline.quantize.precisions import layer_schemes
from pipeline.quantize.verify import verify
from pipeline.quantize.write import Written
from pipeline.recipe import read_yaml
from tests.export.families import CARRIED
from tests.export.tiny_models import VOCABULARY

from .test_bit_identity import requests_of, run

CPU = POLICIES["onnxruntime"]
MATRICES = 4
"""Two layers, each with a first and a second product."""


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Mixtral's build: hidden 64, four experts of 96."""
    from tokenizers import Tokenizer, models

    (family,) = (family for family in CARRIED if family.name == "Mixtral")
    checkpoint = tmp_path_factory.mktemp("checkpoint") / "mixtral"
    family.model(max_position_embeddings=320).save_pretrained(checkpoint)
    words = {f"w{token}": token for token in range(VOCABULARY)}
    Tokenizer(models.WordLevel(words, unk_token="w0")).save(str(checkpoint / "tokenizer.json"))
    stages = ("export", "fuse", "lower", "compile")
    return build(
        Recipe.for_model(str(checkpoint)), tmp_path_factory.mktemp("build") / "moe", stages=stages
    ).folder


def weight(layout: str) -> np.ndarray:
    """Matrices of three experts, 96 out and 70 in, as a graph holds them."""
    made = np.random.default_rng(4).standard_normal((3, 96, 70)).astype(np.float32)
    return made.swapaxes(1, 2).copy() if layout == "transposed" else made


def graph_of(layout: str) -> ir.Model:
    """One ExpertLinear node whose weight is `weight(layout)`."""

    def value(name: str, kind: ir.DataType, shape: list[Any], array: Any = None) -> ir.Value:
        tensor = None if array is None else ir.tensor(array, name=name)
        return ir.Value(name=name, type=ir.TensorType(kind), shape=ir.Shape(shape), const_value=tensor)

    matrices = weight(layout)
    rows = value("rows", ir.DataType.FLOAT, ["n", 70])
    ids = value("ids", ir.DataType.INT32, ["n"])
    experts = value("experts", ir.DataType.FLOAT, list(matrices.shape), matrices)
    node = ir.node(
        "ExpertLinear",
        [rows, experts, ids],
        {"transposed": int(layout == "transposed")},
        domain="slipway",
        outputs=[value("out", ir.DataType.FLOAT, ["n", 96])],
        name="routed",
    )
    graph = ir.Graph(
        [rows, ids],
        node.outputs,
        nodes=[node],
        initializers=[experts],
        opset_imports={"": 24, "slipway": 1},
        name="one",
    )
    return ir.Model(graph, ir_version=11)


@pytest.mark.parametrize("layout", ["plain", "transposed"])
@pytest.mark.parametrize("precision", ["int8", "int8-weights", "int4", "w4a8"])
def test_each_experts_matrix_is_rounded_by_itself(layout: str, precision: str) -> None:
    """The codes in the graph mean what each matrix alone, as [out, in], is rounded to."""
    model = graph_of(layout)
    schemes = expert_schemes({"experts": layer_schemes(precision, 32)})
    written = write_experts(model, CPU, schemes)
    verify(model, Written(written, {}, ()))
    assert experts_of(model, CPU) == []
    constants = {name: value.const_value.numpy() for name, value in model.graph.initializers.items()}
    (node,) = (node for node in model.graph if node.op_type == "DequantizeLinear")
    axis, block = node.attributes.get_int("axis", 0), node.attributes.get_int("block_size", 0)
    codes = constants["experts.codes"].astype(np.float32)
    steps = np.repeat(constants["experts.scale"], block, axis).take(np.arange(70), axis)
    meant = codes * steps
    scheme = schemes["experts"].weight
    assert scheme is not None
    scheme = replace(scheme, signed_scales=scheme.format == "int4")
    for own, expert in zip(meant, weight("plain"), strict=True):
        wanted = dequantize(CPU.stored(quantize(expert, scheme)))
        assert np.array_equal(own.T if layout == "transposed" else own, wanted)
    rounds = [node.op_type for node in model.graph].count("FakeQuantizeTokens")
    assert rounds == (precision in ("int8", "w4a8"))


def test_verification_looks_at_experts() -> None:
    model = graph_of("plain")
    written = write_experts(model, CPU, {"experts": layer_schemes("int8", 32)})
    (node,) = (node for node in model.graph if node.op_type == "ExpertLinear")
    node.replace_input_with(0, model.graph.inputs[0])
    with pytest.raises(SlipwayError, match="routed is half quantized"):
        verify(model, Written(written, {}, ()))
    with pytest.raises(SlipwayError, match="routed was not to be quantized"):
        verify(model, Written({}, {}, ()))
    assert expert_schemes({"experts": layer_schemes("fp8", 32)}) == {}
    assert experts_of(graph_of("plain"), POLICIES["tensorrt"]) == []


@pytest.mark.parametrize("precision", ["int8", "int8-weights", "int4", "w4a8"])
def test_a_mixture_is_built_in_codes_and_company_changes_no_bit(
    mixtral: Path, tmp_path: Path, precision: str
) -> None:
    folder = tmp_path / "engine"
    shutil.copytree(mixtral, folder)
    recipe = read_yaml(folder / "recipe.yaml") | {"quantize": {"precision": precision}}
    # Random weights: how far codes are from floats says nothing here. What is lowered must be what was quantized.
    recipe["parity"]["quantize"] = {"min_cosine": -1.0, "min_top1": 0.0, "max_relative": 1e9}
    build(Recipe.from_dict(recipe), folder, stages=("quantize", "lower", "compile"))
    about = json.loads((folder / "quantize.json").read_text())["details"]
    assert about["kept"] == []
    assert about["weight_bytes"] < {"int8": 0.32, "int8-weights": 0.34}.get(precision, 0.22) * float(
        about["float_weight_bytes"]
    )
    engine = load_graph(folder / "engine.onnx")
    assert [node.op_type for node in engine.graph].count("QuantizedExpertLinear") == MATRICES
    floats = [
        value.const_value.size
        for value in engine.graph.initializers.values()
        if value.const_value is not None and value.const_value.dtype == ir.DataType.FLOAT
    ]
    assert max(floats) < 64 * 96
    spec = EngineFiles.read(folder).spec
    assert spec.limits is not None
    requests = requests_of(np.random.default_rng(7), VOCABULARY)[4:12]
    requests = [replace(r, prompt_ids=tuple(i % VOCABULARY for i in r.prompt_ids)) for r in requests]
    tight = replace(spec, limits=replace(spec.limits, token_budget=96))
    together = run(folder, tight, 2, requests, [place // 3 for place in range(len(requests))])
    for request in requests[::3]:
        alone = run(folder, spec, 1, [request], [0]).logits[request.request_id]
        got = together.logits[request.request_id]
        assert len(got) == len(alone) == request.sampling.max_tokens
        assert all((a.view(np.int32) == b.view(np.int32)).all() for a, b in zip(alone, got, strict=True))
