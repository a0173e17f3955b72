"""Losses of single layers against torch's KL on graphs with the rounded weight; the choice that follows."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from calibration.activations import GraphRun, observable
from calibration.allocation import Frontier
from calibration.batches import Batches
from calibration.linear_layers import linear_layers
from calibration.pareto_picture import Point, picture
from calibration.schemes import Scheme, dequantize, quantize
from calibration.sensitivity import Swapping, loss_of, sensitivities, weight_bytes
from model_repo.runtime.errors import BadInput
from pipeline.graph import save_graph

from .layered import facts, sequences, write_layers
from .small_graphs import TENSORS, write_mlp

SCHEMES = {"fp32": None, "int8": Scheme("int8", "block", 16), "int4": Scheme("int4", "block", 16)}
LAYERS = 3


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_layers(tmp_path_factory.mktemp("layers"), LAYERS)


@pytest.fixture(scope="module")
def swapping(graph: Path) -> Swapping:
    return Swapping(graph, batches())


def batches() -> Batches:
    return Batches(facts(LAYERS), sequences(10, 11), tokens=96)


def torch_kl(graph: Path, other: Path) -> float:
    """Mean over all positions, in float64."""
    values = []
    for batch, again in zip(batches(), batches(), strict=True):
        p, q = (
            torch.log_softmax(torch.from_numpy(GraphRun(path, ["logits"])(feeds)["logits"]).double(), dim=-1)
            for path, feeds in ((graph, batch.feeds), (other, again.feeds))
        )
        values.append(torch.nn.functional.kl_div(q, p, log_target=True, reduction="none").sum(dim=-1))
    return float(torch.cat(values).mean())


def test_a_layers_loss_is_torchs_divergence_with_that_layer_rounded(graph: Path, swapping: Swapping) -> None:
    found = sensitivities(swapping, SCHEMES)
    for name in ("0.qkv", "1.down", "head"):
        model = observable(graph)
        layer = next(layer for layer in linear_layers(model) if layer.name == name)
        layer.write(dequantize(quantize(layer.read(), SCHEMES["int4"])))
        other = save_graph(model, graph.with_name("one.onnx")).graph
        options = {option.precision: option for option in found[name]}
        assert options["int4"].loss == pytest.approx(torch_kl(graph, other), rel=1e-3)
        assert options["fp32"].loss == 0
        assert 0 < options["int8"].loss < 0.1 * options["int4"].loss
    assert set(found) == set(swapping.layers)
    assert swapping.loss({}) == 0  # what a layer was given is not kept


def test_at_equal_bytes_the_choice_beats_uniform_precision_and_random_ones(swapping: Swapping) -> None:
    options = sensitivities(swapping, SCHEMES)
    frontier = Frontier(options)
    uniform = {
        name: sum(
            option.num_bytes for found in options.values() for option in found if option.precision == name
        )
        for name in SCHEMES
    }
    budget = (uniform["int4"] + uniform["int8"]) // 2
    chosen = frontier.within_bytes(budget)
    measured = loss_of(swapping, chosen.precisions, SCHEMES)
    fits = [name for name, size in uniform.items() if size <= budget]
    assert all(measured < 0.7 * loss_of(swapping, dict.fromkeys(options, name), SCHEMES) for name in fits)
    draw = np.random.default_rng(0)
    others = [random_allocation(options, budget, draw) for _ in range(20)]
    assert all(measured < loss_of(swapping, other, SCHEMES) for other in others)
    assert chosen.loss == pytest.approx(measured, rel=0.5)


def random_allocation(options, budget: int, draw: np.random.Generator) -> dict[str, str]:
    """Layers in random order are raised from int4 as far as the budget lasts: it is used up."""
    chosen = dict.fromkeys(options, "int4")
    by_name = {
        layer: {option.precision: option.num_bytes for option in found} for layer, found in options.items()
    }
    left = budget - sum(sizes["int4"] for sizes in by_name.values())
    for layer in draw.permutation(list(options)):
        more = by_name[layer]["int8"] - by_name[layer]["int4"]
        if more <= left:
            chosen[layer], left = "int8", left - more
    return chosen


def test_other_models_are_told_by_the_distance_of_their_outputs(tmp_path: Path) -> None:
    graph, weights = write_mlp(tmp_path)
    x = np.random.default_rng(1).standard_normal((64, 6), dtype=np.float32)
    swapping = Swapping(graph, Batches(TENSORS, [{"x": row[None]} for row in x]))
    rounded = dequantize(quantize(weights["w2"].T, Scheme("int4", "channel"))).T
    hidden = np.maximum(x @ weights["w1"], 0).astype(np.float64)
    before, after = hidden @ weights["w2"], hidden @ rounded
    wanted = (np.square(after - before).sum(axis=1) / np.square(before).sum(axis=1)).mean()
    assert swapping.loss({"w2": rounded.T}) == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize(
    ("scheme", "wanted"),
    [
        (None, 4 * 40 * 70),
        (Scheme("int8", "channel"), 40 * 70 + 4 * 40),
        (Scheme("int4", "block", 32), 40 * 70 // 2 + 4 * 40 * 3),
        (Scheme("int4", "block", 32, symmetric=False), 40 * 70 // 2 + 4 * 40 * 3 + 40 * 3 // 2),
    ],
    ids=str,
)
def test_bytes_are_codes_scales_and_zero_points(scheme: Scheme | None, wanted: int) -> None:
    assert weight_bytes((40, 70), scheme) == wanted


def test_a_graph_without_linear_layers_is_refused(tmp_path: Path) -> None:
    graph, _ = write_mlp(tmp_path)
    model = observable(graph)
    for layer in linear_layers(model):
        layer.node.op_type = "Add"
    other = save_graph(model, tmp_path / "adds.onnx").graph
    with pytest.raises(BadInput, match="no linear layers"):
        Swapping(other, [])


def test_the_picture_is_well_formed_and_holds_every_point() -> None:
    points = [
        Point("uniform", "int8 <a>", 900, 1e-4),
        Point("random", "r", 700, 2e-2),
        Point("chosen", "chosen", 600, 0.0),
    ]
    text = picture([(500, 0.1), (700, 0.01), (1000, 0.0)], points, "demo & more")
    root = ElementTree.fromstring(text)
    space = "{http://www.w3.org/2000/svg}"
    circles = root.findall(f"{space}circle")
    assert [circle.get("class") for circle in circles] == ["uniform", "random", "chosen"]
    assert len((root.find(f"{space}polyline").get("points") or "").split()) == 3
    assert all(0 <= float(circle.get("cx") or -1) <= 860 for circle in circles)
    heights = [float(circle.get("cy") or -1) for circle in circles]
    assert 0 < heights[1] < heights[0] < heights[2] <= 460  # the larger the loss, the higher
