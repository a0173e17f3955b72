"""Where quantization is written, what the written graph computes, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from click.testing import CliRunner

from calibration.schemes import Scheme, dequantize, quantize
from model_repo.runtime.errors import BadInput, SlipwayError
from pipeline import BuildResult, Recipe, build
from pipeline.cli import main
from pipeline.graph import load_graph
from pipeline.quantize.nodes import Step
from pipeline.quantize.policy import POLICIES, policy_of
from pipeline.quantize.precisions import LayerSchemes, layer_schemes
from pipeline.quantize.tables import free_tables
from pipeline.quantize.verify import verify
from pipeline.quantize.write import layers_of, write
from pipeline.recipe import QuantizeRecipe
from plugins.column_blocks import storable_scales, unpack, unpack_block_scales
from plugins.cpu.build import registered

CPU, TENSORRT = POLICIES["onnxruntime"], POLICIES["tensorrt"]
GENERATOR = np.random.default_rng(8)


def value(name: str, kind: ir.DataType, shape: list[Any], array: Any = None) -> ir.Value:
    tensor = None if array is None else ir.tensor(array, name=name)
    return ir.Value(name=name, type=ir.TensorType(kind), shape=ir.Shape(shape), const_value=tensor)


def branches() -> ir.Model:
    """A table shared with the head, two products of one tensor, a residual sum, and a product too small to pay."""
    weights = {
        "table": GENERATOR.standard_normal((160, 64)).astype(np.float32),
        "up": GENERATOR.standard_normal((64, 96)).astype(np.float32),
        "gate": GENERATOR.standard_normal((64, 96)).astype(np.float32),
        "down": GENERATOR.standard_normal((96, 64)).astype(np.float32),
        "tiny": GENERATOR.standard_normal((64, 8)).astype(np.float32),
    }
    made = {name: value(name, ir.DataType.FLOAT, list(array.shape), array) for name, array in weights.items()}
    ids = value("ids", ir.DataType.INT64, ["n"])

    def node(op_type: str, inputs: list[ir.Value], name: str, **attributes: int) -> ir.Node:
        out = value(name, ir.DataType.FLOAT, ["n", None])
        return ir.node(op_type, inputs, attributes, outputs=[out], name=f"node_{name}")

    x = node("Gather", [made["table"], ids], "x")
    up = node("MatMul", [x.outputs[0], made["up"]], "u")
    gate = node("MatMul", [x.outputs[0], made["gate"]], "g")
    product = node("Mul", [up.outputs[0], gate.outputs[0]], "m")
    down = node("MatMul", [product.outputs[0], made["down"]], "d")
    total = node("Add", [down.outputs[0], x.outputs[0]], "sum")
    tiny = node("MatMul", [total.outputs[0], made["tiny"]], "t")
    head = node("Gemm", [total.outputs[0], made["table"]], "logits", transB=1)
    graph = ir.Graph(
        [ids],
        [head.outputs[0], tiny.outputs[0]],
        nodes=[x, up, gate, product, down, total, tiny, head],
        initializers=list(made.values()),
        opset_imports={"": 24},
        name="branches",
    )
    return ir.Model(graph, ir_version=11)


def all_of(schemes: LayerSchemes) -> dict[str, LayerSchemes]:
    return dict.fromkeys(("up", "gate", "down", "tiny", "table"), schemes)


def producers(model: ir.Model, name: str) -> list[str]:
    """Operators that make the inputs of the node called `name`."""
    (node,) = (node for node in model.graph if node.name == name)
    return [
        "" if item is None or item.producer() is None else item.producer().op_type for item in node.inputs
    ]


def test_both_operands_of_each_product_are_quantized_and_shared_inputs_once() -> None:
    model = branches()
    written = write(model, CPU, all_of(layer_schemes("int8", 32)))
    verify(model, written)
    for name in ("node_u", "node_g", "node_d", "node_logits"):
        assert producers(model, name) == ["FakeQuantizeTokens", "DequantizeLinear"]
    assert producers(model, "node_t") == ["Add", ""]  # too small to pay
    assert producers(model, "node_sum") == ["MatMul", "Gather"]  # the residual branch stays as it is
    assert producers(model, "node_x")[0] == "DequantizeLinear"
    # x feeds two products, the sum two: one of the products is kept.
    assert sum(node.op_type == "FakeQuantizeTokens" for node in model.graph) == 3
    assert "tiny" not in {layer.name for layer in layers_of(branches(), CPU)}


def test_the_table_shares_its_codes_with_the_head() -> None:
    model = branches()
    before = dequantize(
        quantize(model.graph.initializers["table"].const_value.numpy(), Scheme("int8", "channel"))
    )
    write(model, CPU, all_of(layer_schemes("int8", 32)))
    codes = [item for name, item in model.graph.initializers.items() if name.startswith("table.codes")]
    assert len(codes) == 1
    (scale,) = (item for name, item in model.graph.initializers.items() if name == "table.scale")
    found = codes[0].const_value.numpy() * scale.const_value.numpy()[:, None]
    assert np.array_equal(found, before)
    assert "table" not in model.graph.initializers


def test_static_activations_take_the_calibrated_scale_and_weights_follow_their_layout() -> None:
    model = branches()
    asked = []

    def scale_of(name: str, scheme: Scheme) -> Step:
        asked.append((name, str(scheme)))
        return Step(0.05)

    written = write(model, TENSORRT, all_of(layer_schemes("int8", 32)), scale_of=scale_of)
    verify(model, written)
    assert asked == [("x", "int8 per tensor"), ("m", "int8 per tensor"), ("sum", "int8 per tensor")]
    assert producers(model, "node_u") == ["DequantizeLinear", "DequantizeLinear"]
    (down,) = (node for node in model.graph if node.name == "up.dequantize")
    assert down.attributes.get_int("axis", -1) == 1  # [in, out]: a scale an output
    (head,) = (node for node in model.graph if node.name == "table.dequantize")
    assert head.attributes.get_int("axis", -1) == 0
    with pytest.raises(BadInput, match="slipway calibrate"):
        write(branches(), TENSORRT, all_of(layer_schemes("int8", 32)))


def test_asymmetric_activations_are_refused_for_tensorrt_with_the_reason() -> None:
    asymmetric = LayerSchemes(Scheme("int8", "channel"), Scheme("uint8", "tensor", symmetric=False))
    with pytest.raises(
        BadInput, match=r"'tensorrt' takes no asymmetric activations .* no zero point other than 0"
    ):
        write(branches(), TENSORRT, all_of(asymmetric), scale_of=lambda name, scheme: Step(1.0))


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_a_cpu_refuses_16_bit_by_name(precision: str) -> None:
    with pytest.raises(BadInput, match=f"does not take precision '{precision}': ONNX Runtime has no 16-bit"):
        policy_of("onnxruntime", precision)


def test_a_graph_that_is_quantized_already_is_refused() -> None:
    model = branches()
    write(model, CPU, all_of(layer_schemes("int8", 32)))
    with pytest.raises(BadInput, match="quantized already: DequantizeLinear"):
        layers_of(model, CPU)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (
            lambda model, nodes: nodes["node_u"].replace_input_with(0, nodes["node_x"].outputs[0]),
            "half quantized",
        ),
        (
            lambda model, nodes: nodes["node_t"].replace_input_with(0, nodes["node_d"].inputs[0]),
            "node_t was not to be quantized",
        ),
        (
            lambda model, nodes: nodes["node_sum"].replace_input_with(1, nodes["node_u"].inputs[0]),
            "Add node_sum reads the quantized",
        ),
        (
            lambda model, nodes: nodes["node_d"].replace_input_with(
                1, value("plain", ir.DataType.FLOAT, [96, 64], np.zeros((96, 64), np.float32))
            ),
            "the weight of node_d is not quantized",
        ),
    ],
)
def test_a_graph_that_is_not_as_planned_is_found_out(fault: Any, words: str) -> None:
    model = branches()
    written = write(model, CPU, all_of(layer_schemes("int8", 32)))
    fault(model, {node.name: node for node in model.graph})
    with pytest.raises(SlipwayError, match=words):
        verify(model, written)


def test_a_build_goes_from_floats_to_codes_and_back(
    real_build: BuildResult, tiny_llama: Path, tmp_path: Path
) -> None:
    """Only what pays is quantized; the engine's packed codes are those of the quantized graph."""
    folder = tmp_path / "quantized"
    shutil.copytree(real_build.folder, folder)
    recipe = Recipe.from_dict({"source": {"model": str(tiny_llama)}, "quantize": {"precision": "int8"}})
    build(recipe, folder)
    assert json.loads((folder / "quantize.json").read_text())["details"]["kept"] == []
    kept = load_graph(folder / "engine.onnx")
    assert not any("Quantize" in node.op_type for node in kept.graph)  # matrices of 32 x 96 do not pay
    assert build(recipe, folder).rows[3].ran is False
    build(Recipe.for_model(str(tiny_llama)), folder)
    assert not (folder / "quantize.json").exists()
    assert not (folder / "quantize.onnx").exists()


def test_packed_codes_of_a_lowered_product_are_its_weights() -> None:
    from pipeline.targets.quantized import lower_products

    model = branches()
    weight = model.graph.initializers["up"].const_value.numpy()
    write(model, CPU, all_of(layer_schemes("int8", 32)))
    lower_products(model)
    counts = {
        op: sum(node.op_type == op for node in model.graph) for op in ("QuantizedMatMul", "QuantizedGather")
    }
    assert counts == {"QuantizedMatMul": 4, "QuantizedGather": 1}
    assert not any(node.op_type in ("DequantizeLinear", "FakeQuantizeTokens") for node in model.graph)
    packed = model.graph.initializers["up.packed"].const_value.numpy()
    wanted = quantize(weight.T, Scheme("int8", "channel"))
    assert np.array_equal(unpack(packed, 8, 96, 64), wanted.codes)


def test_a_table_of_its_own_has_the_scales_of_products() -> None:
    from pipeline.targets.quantized import lower_products

    model = branches()
    head = next(node for node in model.graph if node.name == "node_logits")
    model.graph.outputs.pop(0)
    model.graph.remove(head, safe=True)
    numbers = model.graph.initializers["table"].const_value.numpy()
    schemes = dict.fromkeys(("up", "gate", "down"), layer_schemes("int8-weights", 32))
    written = write(model, CPU, schemes)
    verify(model, written)
    assert {name: str(scheme) for name, scheme in written.tables.items()} == {"table": "int8 block of 32"}
    lower_products(model)
    kinds = [node.op_type for node in model.graph]
    assert (kinds.count("QuantizedGather"), kinds.count("QuantizedMatMul")) == (1, 3)
    assert not any(
        value.const_value.shape == numbers.shape and value.const_value.dtype == ir.DataType.FLOAT
        for value in model.graph.initializers.values()
    )


@pytest.mark.parametrize("precision", ["int4", "w4a8", "int8-weights"])
def test_scales_of_blocks_are_rounded_before_the_engine_is_made(precision: str) -> None:
    """The quantized graph, which figures are computed with, and the packed weights have the same scales."""
    from pipeline.targets.quantized import lower_products

    model = branches()
    write(model, CPU, all_of(layer_schemes(precision, 32)))
    simulated = {
        name: model.graph.initializers[f"{name}.scale"].const_value.numpy() for name in ("up", "gate", "down")
    }
    lower_products(model)
    for name, scales in simulated.items():
        codes = model.graph.initializers[f"{name}.packed"].const_value.numpy()
        factor = model.graph.initializers[f"{name}.packed_scales"].const_value.numpy()
        assert np.array_equal(unpack_block_scales(codes, factor, scales.shape[1]), scales.T)
    free = branches()
    write(free, policy_of("tensorrt", "int4"), all_of(layer_schemes("int4", 32)))
    kept = free.graph.initializers["up.scale"].const_value.numpy()
    assert not np.array_equal(storable_scales(kept), kept)  # another target keeps what was found


def test_large_blocks_of_bytes_are_cut_for_the_product() -> None:
    """Checkpoints come with groups of 256 and more; 300 inputs are one and a part of one."""
    from pipeline.targets.quantized import lower_products

    x = value("x", ir.DataType.FLOAT, ["n", 300])
    weight = GENERATOR.standard_normal((300, 16)).astype(np.float32)
    up = value("up", ir.DataType.FLOAT, [300, 16], weight)
    y = value("y", ir.DataType.FLOAT, ["n", 16])
    node = ir.node("MatMul", [x, up], outputs=[y], name="node_up")
    model = ir.Model(
        ir.Graph([x], [y], nodes=[node], initializers=[up], opset_imports={"": 24}), ir_version=11
    )
    write(model, CPU, {"up": LayerSchemes(Scheme("int8", "block", 256))})
    scales = model.graph.initializers["up.scale"].const_value.numpy()
    lower_products(model)
    codes = model.graph.initializers["up.packed"].const_value.numpy()
    factor = model.graph.initializers["up.packed_scales"].const_value.numpy()
    assert codes.shape == (1, 3, 16 * 128 + 32)
    assert scales.shape == (2, 16)
    assert np.array_equal(unpack_block_scales(codes, factor, 16), scales.T[:, [0, 0, 1]])


def test_mixed_takes_a_file_of_precisions(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="precision mixed needs a file"):
        QuantizeRecipe(precision="mixed")
    with pytest.raises(BadInput, match=r"block is 48; available: 32, 64, 128"):
        QuantizeRecipe(precision="int4", block=48)
    model = branches()
    schemes = {
        "up": layer_schemes("int4", 32),
        "down": layer_schemes("int8", 32),
        "gate": layer_schemes("fp32", 32),
    }
    written = write(model, CPU, schemes)
    verify(model, written)
    assert set(written.kept) == {"gate", "table"}
    assert producers(model, "node_u") == ["Gather", "DequantizeLinear"]
    assert producers(model, "node_d") == ["FakeQuantizeTokens", "DequantizeLinear"]


def test_the_command_names_the_stage_that_is_missing(built: Path) -> None:
    result = CliRunner().invoke(main, ["quantize", str(built), "--precision", "fp8"])
    assert result.exit_code == 2
    assert "run `slipway calibrate" in result.output


def embeddings(third: bool) -> ir.Model:
    """One EmbedLayerNormalization of two or three tables, its sum an output too."""
    tables = {"table": (200, 32), "second_table": (16, 32), "third_table": (4, 32)}
    arrays = {name: GENERATOR.standard_normal(shape).astype(np.float32) for name, shape in tables.items()}
    arrays |= {name: GENERATOR.standard_normal(32).astype(np.float32) for name in ("weight", "bias")}
    constants = {
        name: value(name, ir.DataType.FLOAT, list(array.shape), array) for name, array in arrays.items()
    }
    ids = value("ids", ir.DataType.INT64, ["batch", "length"])
    second, kinds = (
        value("second_ids", ir.DataType.INT64, ["length"]),
        value("kinds", ir.DataType.INT64, ["length"]),
    )
    inputs = [
        ids,
        constants["table"],
        second,
        constants["second_table"],
        constants["weight"],
        constants["bias"],
    ]
    outputs = [value(name, ir.DataType.FLOAT, ["batch", "length", 32]) for name in ("normalized", "summed")]
    node = ir.node(
        "EmbedLayerNormalization",
        [*inputs, kinds, constants["third_table"]] if third else inputs,
        {"epsilon": 1e-3},
        domain="slipway",
        outputs=outputs,
        name="embed",
    )
    graph = ir.Graph(
        [ids, second, kinds],
        outputs,
        nodes=[node],
        initializers=list(constants.values()),
        opset_imports={"": 24, "slipway": 1},
        name="embeddings",
    )
    return ir.Model(graph, ir_version=11)


@pytest.mark.parametrize("third", [False, True])
def test_tables_taken_out_of_a_fused_operator_give_the_same(third: bool) -> None:
    model = embeddings(third)
    feeds = {
        "ids": GENERATOR.integers(0, 200, (3, 5)),
        "second_ids": np.arange(5),
        "kinds": np.array([0, 1, 3, 2, 0]),
    }

    def run() -> list[np.ndarray]:
        options = ort.SessionOptions()
        registered(options)
        content = ir.to_proto(model).SerializeToString()
        return ort.InferenceSession(content, options, providers=["CPUExecutionProvider"]).run(None, feeds)

    before = run()
    free_tables(model)
    assert [node.op_type for node in model.graph].count("Gather") == 2 + third
    assert not any(node.op_type == "EmbedLayerNormalization" for node in model.graph)
    for old, new in zip(before, run(), strict=True):
        assert np.allclose(old, new, rtol=1e-5, atol=1e-5)
