"""The walk against running the whole graph anew before each layer, and what it leaves after kill -9."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from calibration.activations import GraphRun, observable
from calibration.algorithms.gptq import gptq
from calibration.algorithms.statistics import Statistics
from calibration.batches import Batches
from calibration.blocks import Walked, walk
from calibration.cuts import blocks
from calibration.linear_layers import groups, linear_layers, replace_weight
from calibration.methods import METHODS
from calibration.schemes import Quantized, Scheme, dequantize, quantize
from model_repo.runtime.errors import BadInput
from pipeline.graph import save_graph

from .layered import facts, sequences, write_layers
from .small_graphs import write_mlp

LAYERS = 3
NAMES = [f"{layer}.{part}" for layer in range(LAYERS) for part in ("qkv", "out", "gate_up", "down")] + [
    "head"
]
INT4 = Scheme("int4", "block", 16)


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_layers(tmp_path_factory.mktemp("layers"), LAYERS)


def batches(count: int = 12, seed: int = 5) -> Batches:
    return Batches(facts(LAYERS), sequences(count, seed), tokens=96)


def walked(graph: Path, folder: Path, algorithm: str = "gptq", scheme: Scheme = INT4) -> Walked:
    schemes = dict.fromkeys(NAMES, scheme)
    return walk(observable(graph), batches(), schemes, algorithm, folder, "key")


def applied(graph: Path, found: Walked, name: str) -> Path:
    """A graph file with the weights that the walk decided on."""
    model = observable(graph)
    for layer in linear_layers(model):
        layer.write(dequantize(found.quantized[layer.name]))
    for weight, array in found.folded.items():
        replace_weight(model.graph.initializers[weight], array)
    return save_graph(model, graph.with_name(name)).graph


def logits_error(graph: Path, other: Path) -> float:
    """Mean squared difference of the logits on data that the walk has not seen."""
    total = []
    for batch, again in zip(batches(6, 9), batches(6, 9), strict=True):
        wanted = GraphRun(graph, ["logits"])(batch.feeds)["logits"].astype(np.float64)
        total.append(np.square(GraphRun(other, ["logits"])(again.feeds)["logits"] - wanted).mean())
    return float(np.mean(total))


def test_each_layer_sees_the_quantized_layers_before_it(graph: Path, tmp_path: Path) -> None:
    """The whole graph, run from its inputs for each group of layers with all earlier weights replaced."""
    found = walked(graph, tmp_path / "state")
    model = observable(graph)
    for group in groups(linear_layers(model)):
        current = save_graph(model, graph.with_name("current.onnx")).graph
        run, statistics = GraphRun(current, [group[0].inputs.name or ""]), None
        for batch in batches():
            (rows,) = run(batch.feeds).values()
            statistics = statistics or Statistics(rows.shape[-1])
            statistics.add(rows)
        assert statistics is not None
        for layer in group:
            wanted = gptq(layer.read(), statistics.hessian, INT4)
            assert (wanted.codes != found.quantized[layer.name].codes).mean() < 0.01, layer.name
            np.testing.assert_array_equal(wanted.scales, found.quantized[layer.name].scales)
            layer.write(dequantize(found.quantized[layer.name]))
    assert set(found.quantized) == set(NAMES)
    assert found.folded == {}


def test_the_model_is_given_back_and_no_more_than_two_blocks_differ_on_the_way(
    graph: Path, tmp_path: Path
) -> None:
    model = observable(graph)
    before = {name: value.const_value for name, value in model.graph.initializers.items()}
    differing: list[int] = []

    def count(done: int, total: int) -> None:
        differing.append(
            sum(value.const_value is not before[name] for name, value in model.graph.initializers.items())
        )

    walk(model, batches(), dict.fromkeys(NAMES, INT4), "awq", tmp_path, "key", progress=count)
    assert all(value.const_value is before[name] for name, value in model.graph.initializers.items())
    assert len(differing) == LAYERS + 1
    assert max(differing) <= 1  # between blocks only the last product is still to be run


@pytest.mark.parametrize("algorithm", sorted(set(METHODS) - {"rtn", "hqq"}))
def test_methods_with_data_beat_round_to_nearest_on_the_logits(
    graph: Path, tmp_path: Path, algorithm: str
) -> None:
    scheme = Scheme("int4", "channel")
    plain = logits_error(graph, applied(graph, walked(graph, tmp_path / "rtn", "rtn", scheme), "rtn.onnx"))
    found = walked(graph, tmp_path / algorithm, algorithm, scheme)
    error = logits_error(graph, applied(graph, found, f"{algorithm}.onnx"))
    assert error < 0.8 * plain
    assert all(0 < value < 0.2 for value in found.errors.values())
    assert bool(found.folded) == (METHODS[algorithm].smoothing != "none")


@pytest.mark.parametrize("algorithm", ["awq", "smoothquant"])
def test_folded_factors_leave_the_float_model(graph: Path, tmp_path: Path, algorithm: str) -> None:
    """In int8 blocks of two nothing but a little rounding is left, less than without folding."""
    scheme = Scheme("int8", "block", 2)
    plain = walked(graph, tmp_path / "rtn", "rtn", scheme)
    found = walked(graph, tmp_path / algorithm, algorithm, scheme)
    assert any("gain" in name for name in found.folded)
    error = logits_error(graph, applied(graph, found, "folded.onnx"))
    assert error < logits_error(graph, applied(graph, plain, "plain.onnx"))
    before = observable(graph).graph.initializers
    assert all(
        not np.array_equal(before[name].const_value.numpy(), array) for name, array in found.folded.items()
    )


def test_a_block_is_a_decoder_layer_and_every_node_is_in_one_stage(graph: Path) -> None:
    model = observable(graph)
    found = blocks(model)
    assert [[layer.name for layer in block.layers] for block in found] == [NAMES[:4], NAMES[4:8], NAMES[8:]]
    nodes = [node for block in found for stage in block.stages for node in stage.nodes]
    assert nodes == list(model.graph)[: len(nodes)]
    assert len(nodes) == len(list(model.graph)) - 1  # the head's own product is not run


def test_without_attention_each_tensor_that_layers_read_begins_a_block(tmp_path: Path) -> None:
    graph, _ = write_mlp(tmp_path)
    found = blocks(observable(graph))
    assert [[layer.name for layer in block.layers] for block in found] == [["w1"], ["w2"]]


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from calibration import blocks
from tests.calibration.test_blocks import INT4, NAMES, batches, observable
if sys.argv[4]:
    def save(self, number, result, live, save=blocks.WalkState.save):
        save(self, number, result, live)
        if number == int(sys.argv[4]):
            os.kill(os.getpid(), signal.SIGKILL)
    blocks.WalkState.save = save
count = []
whole = blocks._Walker.block
blocks._Walker.block = lambda self, block: (count.append(block.number), whole(self, block))[1]
graph, state = observable(Path(sys.argv[1])), Path(sys.argv[2])
found = blocks.walk(graph, batches(), dict.fromkeys(NAMES, INT4), "awq-gptq", state, "key")
print(count, found.resumed)
"""


def test_after_kill_9_blocks_that_are_done_are_not_done_again(graph: Path, tmp_path: Path) -> None:
    def run(kill_after: str) -> subprocess.CompletedProcess[str]:
        command = [
            sys.executable,
            "-c",
            KILLED,
            str(graph),
            str(tmp_path / "state"),
            str(Path.cwd()),
            kill_after,
        ]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    assert run("1").returncode == -signal.SIGKILL
    ended = run("")
    assert ended.stdout.strip() == "[2] 2", ended.stderr
    resumed = walk(
        observable(graph), batches(), dict.fromkeys(NAMES, INT4), "awq-gptq", tmp_path / "state", "key"
    )
    assert resumed.resumed == LAYERS
    straight = walked(graph, tmp_path / "straight", "awq-gptq")
    for name in NAMES:
        _same(resumed.quantized[name], straight.quantized[name])
    assert resumed.folded.keys() == straight.folded.keys()
    for name, array in straight.folded.items():
        np.testing.assert_array_equal(resumed.folded[name], array)
    assert resumed.errors == straight.errors


def _same(one: Quantized, other: Quantized) -> None:
    np.testing.assert_array_equal(one.codes, other.codes)
    np.testing.assert_array_equal(one.scales, other.scales)
    assert one.scheme == other.scheme
    assert (one.axis, one.tensor_scale) == (other.axis, other.tensor_scale)


def test_another_key_begins_anew_and_half_a_file_is_not_taken(graph: Path, tmp_path: Path) -> None:
    walked(graph, tmp_path)
    assert walked(graph, tmp_path).resumed == LAYERS
    (tmp_path / ".block-0000.npz.123").write_bytes(b"half")
    schemes = dict.fromkeys(NAMES, INT4)
    other = walk(observable(graph), batches(), schemes, "rtn", tmp_path, "other key")
    assert other.resumed == 0
    assert json.loads((tmp_path / "walk.json").read_text()) == "other key"
    weight = {layer.name: layer.read() for layer in linear_layers(observable(graph))}["1.down"]
    _same(other.quantized["1.down"], quantize(weight, INT4))


@pytest.mark.parametrize(
    "scheme",
    [
        Scheme("e4m3", "channel"),
        Scheme("nvfp4", "block", 16),
        Scheme("uint8", "channel", symmetric=False),
        Scheme("int4", "block", 16, signed_scales=True),
    ],
    ids=str,
)
def test_every_format_survives_the_disk(graph: Path, tmp_path: Path, scheme: Scheme) -> None:
    found = walked(graph, tmp_path, "rtn", scheme)
    for layer in linear_layers(observable(graph)):
        _same(found.quantized[layer.name], quantize(layer.read(), scheme))
        np.testing.assert_array_equal(
            dequantize(found.quantized[layer.name]), dequantize(quantize(layer.read(), scheme))
        )


def test_bad_input_is_named(graph: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"0\.first\.gain is no weight of a linear layer"):
        walk(observable(graph), batches(), {"0.first.gain": INT4}, "gptq", tmp_path, "key")
    with pytest.raises(BadInput, match="algorithm 'magic' is unknown; known: rtn"):
        walk(observable(graph), batches(), {"head": INT4}, "magic", tmp_path, "key")
    model = observable(graph)
    gain = model.graph.initializers["1.first.gain"]
    gain.const_value = ir.tensor(np.full(32, np.inf, np.float32), name=gain.name)
    with pytest.raises(BadInput, match=r"inputs of 1\.qkv hold NaN or infinity"):
        walk(model, batches(), dict.fromkeys(NAMES, INT4), "gptq", tmp_path, "key")
