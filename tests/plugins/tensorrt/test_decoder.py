"""The decoder graph with the paged plugin as its attention: its tokens, and real builds by TensorRT-RTX's builder."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir
import pytest

from model_repo.runtime.errors import BadInput
from pipeline.export.decoder import export_decoder
from pipeline.export.exported import ExportedGraph
from pipeline.fuse import fuse
from pipeline.fuse.matching import dims
from pipeline.graph import save_graph
from pipeline.precision.plan import Precision
from pipeline.recipe import FuseRecipe
from pipeline.targets.tensorrt.audit import check_types
from pipeline.targets.tensorrt.builder import BuildOptions, Built, build_engine
from pipeline.targets.tensorrt.layers import EngineLayers, parse_layers, report
from pipeline.targets.tensorrt.plugin_form import attention_workers, lower_to_plugins
from pipeline.targets.tensorrt.profiles import Profile, Sizes, profile
from plugins.cuda.library import Library
from plugins.schemas import PAGED_ATTENTION
from plugins.tensorrt import names
from tests.export.packed_requests import Schedule, generate
from tests.export.tiny_models import VOCABULARY, greedy, tiny_llama
from tests.plugins.tensorrt.evaluator import plugin_step
from tests.plugins.tensorrt.quantized import quantize_pools, quantize_products

RTX, CHIPS = "tensorrt-rtx", ("8.9", "12.0")
LAYERS, KV_HEADS, HEAD_DIM, BLOCK, MAX_LENGTH = 2, 2, 64, 16, 64
PRODUCTS = 4 * LAYERS + 1


class Kind(NamedTuple):
    """A network: the type of all that is not quantized, of the products' operands and of the pools."""

    precision: Precision
    products: ir.DataType | None
    pools: ir.DataType | None
    pools_in_engine: str

    @property
    def width(self) -> str:
        return {"fp16": "Half", "bf16": "BFloat16"}[self.precision]


INT8, FP8 = ir.DataType.INT8, ir.DataType.FLOAT8E4M3FN
KINDS = {
    "fp16": Kind("fp16", None, None, "Half"),
    "bf16, fp8 pools": Kind("bf16", None, FP8, "FP8"),
    "int8, int8 pools": Kind("fp16", INT8, INT8, "Int8"),
    "fp8, fp8 pools": Kind("fp16", FP8, FP8, "FP8"),
}


def model() -> Any:
    return tiny_llama(head_dim=HEAD_DIM, num_key_value_heads=KV_HEADS, num_hidden_layers=LAYERS)


@pytest.fixture(scope="module")
def exported() -> ExportedGraph:
    graph = export_decoder(model(), MAX_LENGTH, 24)
    fuse(graph.model, FuseRecipe(), max_length=MAX_LENGTH)
    return graph


def lowered(exported: ExportedGraph, kind: Kind) -> ir.Model:
    """A copy of the graph in the plugin form."""
    graph = exported.model.clone()
    if kind.products is not None:
        assert quantize_products(graph, kind.products) == PRODUCTS
    if kind.pools is not None:
        quantize_pools(graph, kind.pools, KV_HEADS)
    lower_to_plugins(graph, kind.precision, workers=attention_workers(CHIPS))
    check_types(graph)
    return graph


def profiles(graph: ir.Model) -> list[Profile]:
    """Decode and a mixed step in one engine."""
    inputs = {value.name or "": dims(value) or () for value in graph.graph.inputs}
    shared = {
        "max_blocks": Sizes(4, 4, 4),
        "num_blocks": Sizes(1, 32, 64),
        "block_size": Sizes(BLOCK, BLOCK, BLOCK),
    }
    rows, sequences = Sizes(1, 8, 8), Sizes(2, 9, 9)
    common = {**shared, "batch": rows, "batch + 1": sequences, "selected": rows}
    return [
        profile("decode", inputs, {**common, "tokens": rows}),
        profile("mixed", inputs, {**common, "tokens": Sizes(1, 32, 32)}),
    ]


def built(graph: ir.Model, folder: Path, chips: tuple[str, ...] = CHIPS, **plugins: str) -> Built:
    path = save_graph(graph, folder / "graph.onnx").graph
    options = BuildOptions(compute_capabilities=chips, **plugins)
    return build_engine(RTX, path, folder / "model.rtx", profiles(graph), options)


def check_engine(graph: ir.Model, layers: EngineLayers, kind: Kind) -> None:
    """Each attention is one plugin layer in each profile; inputs and outputs are the contract's."""
    operators = {node.name or "": node.op_type for node in graph.graph}
    made = report(layers, operators, (names.PAGED_ATTENTION,), ("decode", "mixed"))
    assert [(fate.nodes, fate.whole, fate.kernels) for fate in made.fates] == [(LAYERS, LAYERS, LAYERS)] * 2
    attention = [layer for layer in layers.layers if layer.kind == "custom_layer"]
    assert len(attention) == 2 * LAYERS  # one for each profile
    for layer in attention:
        assert [operators[node] for node in layer.nodes] == [names.PAGED_ATTENTION]
        results = [kind.width, kind.pools_in_engine, kind.pools_in_engine]
        assert [tensor.dtype for tensor in layer.outputs] == [*results, "UInt8"]  # and the workspace
        assert [tensor.dtype for tensor in layer.inputs[:3]] == results
    assert made.reformats == ()
    int32 = dict.fromkeys(
        ("input_ids", "position_ids", "cu_seqlens", "past_lens", "slot_mapping", "logits_indices"),
        ("Int32", (-1,)),
    )
    pool = (kind.pools_in_engine, (-1, BLOCK, KV_HEADS, HEAD_DIM))
    pools = [f"{which}_cache_{layer}" for layer in range(LAYERS) for which in ("key", "value")]
    assert {name: (end.dtype, end.shape) for name, end in layers.inputs.items()} == {
        **int32,
        "block_table": ("Int32", (-1, 4)),
        **dict.fromkeys(pools, pool),
    }
    assert {name: (end.dtype, end.shape) for name, end in layers.outputs.items()} == {
        "logits": ("Float", (-1, VOCABULARY)),
        **dict.fromkeys([name.replace("cache_", "cache_out_") for name in pools], pool),
    }


@pytest.fixture(scope="module")
def plain(exported: ExportedGraph, kernels_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The fp16 network with the Python plugins."""
    return built(
        lowered(exported, KINDS["fp16"]), tmp_path_factory.mktemp("plain"), kernels=str(kernels_path)
    )


def test_each_attention_is_one_plugin_layer(exported: ExportedGraph, plain: Built) -> None:
    """TensorRT-RTX's own parser and builder, for compute capability 8.9 and 12.0, with the Python plugins."""
    check_engine(lowered(exported, KINDS["fp16"]), parse_layers(plain.layers), KINDS["fp16"])


def test_so_it_is_in_an_engine_for_any_gpu(
    exported: ExportedGraph, kernels_path: Path, tmp_path: Path
) -> None:
    graph = lowered(exported, KINDS["fp16"])
    made = built(graph, tmp_path, chips=(), kernels=str(kernels_path))
    check_engine(graph, parse_layers(made.layers), KINDS["fp16"])


@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if kind.pools is not None])
def test_so_it_is_with_pools_of_eight_bits(
    exported: ExportedGraph, kernels_path: Path, tmp_path: Path, name: str
) -> None:
    """Nothing stands between the engine's own inputs and outputs of int8 or FP8 and the plugin."""
    graph = lowered(exported, KINDS[name])
    made = built(graph, tmp_path, kernels=str(kernels_path))
    check_engine(graph, parse_layers(made.layers), KINDS[name])


def test_the_library_makes_the_same_engine(
    exported: ExportedGraph, plain: Built, plugin_library: Path, tmp_path: Path
) -> None:
    """The C++ plugins in the same builder: their virtual functions lie where the real headers put them."""
    graph = lowered(exported, KINDS["fp16"])
    made = built(graph, tmp_path, plugin_library=str(plugin_library))
    check_engine(graph, parse_layers(made.layers), KINDS["fp16"])
    assert made.bytes == plain.bytes


def test_a_file_that_is_no_library_of_plugins_is_refused(
    exported: ExportedGraph, kernels_path: Path, tmp_path: Path
) -> None:
    graph = lowered(exported, KINDS["fp16"])
    with pytest.raises(
        BadInput, match=r"is no library of plugins that tensorrt_rtx 1.* loads: build it with `make"
    ):
        built(graph, tmp_path, plugin_library=str(tmp_path / "nothing.so"))


def test_its_graph_gives_the_float32_models_tokens(exported: ExportedGraph, kernels: Library) -> None:
    """Chunked prefill beside decode and a late request: fp16 in onnx's evaluator, attention by the kernels' sources."""
    random = np.random.default_rng(1)
    prompts = [random.integers(4, VOCABULARY, length).tolist() for length in (5, 21, 8)]
    schedule = Schedule(block_size=BLOCK, num_blocks=12, chunk=13, join={2: 1}, padding_rows=2)
    step = plugin_step(lowered(exported, KINDS["fp16"]), kernels)
    found = generate(step, exported.kv, prompts, 8, schedule)
    assert [one.tokens for one in found] == [greedy(model(), prompt, 8)[0] for prompt in prompts]


def test_what_the_kernel_has_not_is_refused(exported: ExportedGraph) -> None:
    graph = exported.model.clone()
    node = next(node for node in graph.graph if node.op_type == PAGED_ATTENTION.name)
    place = PAGED_ATTENTION.input_index("distance_bias")
    node.resize_inputs(place + 1)
    node.replace_input_with(place, node.inputs[0])
    with pytest.raises(
        BadInput, match=r"attention node .* uses distance_bias, which the CUDA kernel .* lacks"
    ):
        lower_to_plugins(graph, "fp16")


def test_workers_are_two_for_each_multiprocessor_of_the_largest_chip() -> None:
    assert attention_workers(["8.9"]) == 284
    assert attention_workers(["8.9", "12.0"]) == attention_workers() == 376
    assert attention_workers(["8.9", "99.0"]) == 376
