"""FlashAttention and Int4Gemm in a network of their own, built by TensorRT-RTX with the C++ plugins."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from pipeline.targets.tensorrt.builder import BuildOptions, build_engine
from pipeline.targets.tensorrt.layers import parse_layers
from pipeline.targets.tensorrt.profiles import Sizes, profile
from plugins.tensorrt import names

HEADS, KV_HEADS, DIM, COLUMNS, GROUP = 4, 2, 64, 96, 64
INNER = HEADS * DIM
BLOCKS = -(-COLUMNS // 64)


def network() -> onnx.ModelProto:
    """Attention within packed sequences, then a product with a weight of four bits."""
    plugin = {names.PLUGIN_VERSION: names.VERSION, names.PLUGIN_NAMESPACE: names.NAMESPACE}
    nodes = [
        helper.make_node(
            names.FLASH_ATTENTION,
            ["qkv", "cu_seqlens", "cu_seqlens"],
            ["rows"],
            "attention",
            domain=names.DOMAIN,
            num_heads=HEADS,
            kv_num_heads=KV_HEADS,
            causal=1,
            softcap=20.0,
            input_names="query,cu_seqlens_q,cu_seqlens_k",
            **plugin,
        ),
        helper.make_node(
            names.INT4_GEMM,
            ["rows", "weight", "scale", "bias"],
            ["y"],
            "product",
            domain=names.DOMAIN,
            columns=COLUMNS,
            group=GROUP,
            input_names="x,weight,scale,bias",
            **plugin,
        ),
    ]
    codes = np.zeros((BLOCKS, INNER // 64, 2048), np.int8)
    constants = {
        "weight": codes,
        "scale": np.ones((BLOCKS, INNER // GROUP, 64), np.float16),
        "bias": np.ones(COLUMNS, np.float16),
    }
    graph = helper.make_graph(
        nodes,
        "network",
        [
            helper.make_tensor_value_info(
                "qkv", TensorProto.FLOAT16, ["tokens", (HEADS + 2 * KV_HEADS) * DIM]
            ),
            helper.make_tensor_value_info("cu_seqlens", TensorProto.INT32, ["starts"]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT16, ["tokens", COLUMNS])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    opsets = [helper.make_opsetid("", 24), helper.make_opsetid(names.DOMAIN, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=13)


def test_each_is_one_plugin_layer(plugin_library: Path, tmp_path: Path) -> None:
    path = tmp_path / "network.onnx"
    onnx.save(network(), path)
    inputs = {"qkv": ("tokens", (HEADS + 2 * KV_HEADS) * DIM), "cu_seqlens": ("starts",)}
    shapes = profile("any", inputs, {"tokens": Sizes(1, 64, 256), "starts": Sizes(2, 5, 9)})
    options = BuildOptions(("8.9", "12.0"), plugin_library=str(plugin_library))
    made = build_engine("tensorrt-rtx", path, tmp_path / "network.rtx", [shapes], options)
    layers = parse_layers(made.layers)
    plugins = [layer for layer in layers.layers if layer.kind == "custom_layer"]
    assert [layer.nodes for layer in plugins] == [("attention",), ("product",)]
    assert {tensor.dtype for layer in plugins for tensor in layer.outputs[:1]} == {"Half"}
    assert (layers.outputs["y"].dtype, layers.outputs["y"].shape) == ("Half", (-1, COLUMNS))
