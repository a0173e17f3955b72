"""Ranges of a graph's activations: each against numpy over all samples at once."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from calibration.observers import METHODS, make_observer
from calibration.ranges import LOGIT_STRIDE, Ruler, observe
from calibration.samples import Samples
from calibration.samples.kept import read_samples, write_samples
from calibration.schemes import Scheme
from model_repo.runtime.errors import BadInput
from model_repo.runtime.manifest import sha256_of
from pipeline.recipe import CALIBRATION_METHODS

from .small_graphs import DECODER, DIM, HEADS, TENSORS, VOCABULARY, write_decoder, write_mlp

INT8 = Scheme("int8")


def samples_of(items: list[Any]) -> Samples:
    return Samples("data", tuple(items), 99, "12" * 32, {})


def token_samples() -> list[tuple[int, ...]]:
    draw = np.random.default_rng(6)
    return [tuple(draw.integers(0, VOCABULARY, length).tolist()) for length in draw.integers(200, 400, 7)]


@pytest.mark.parametrize("method", [name for name in METHODS if name != "average"])
def test_tensors_have_the_ranges_of_all_their_activations(method: str, tmp_path: Path) -> None:
    graph, weights = write_mlp(tmp_path)
    x = np.random.default_rng(1).standard_normal((40, 6), dtype=np.float32)
    told: list[tuple[int, int]] = []
    scales = observe(
        graph,
        TENSORS,
        samples_of([{"x": row[None]} for row in x]),
        Ruler(method, INT8),
        advanced=lambda *d: told.append(d),
    )
    assert list(scales.tensors) == ["x", "act"]
    assert told == [(place, 3) for place in (1, 2, 3)]
    for name, array in (("x", x), ("act", np.maximum(x @ weights["w1"], 0))):
        direct = make_observer(method, INT8)
        direct.observe(array)
        span, tensor = direct.range(), scales.tensors[name]
        # The graph's sums are rounded otherwise than numpy's, which may move a number into the next bin.
        bin_width = 2 * float(np.abs(array).max()) / 2048
        assert tensor.low[0] == pytest.approx(float(span.low), abs=bin_width)
        assert tensor.high[0] == pytest.approx(float(span.high), abs=bin_width)
        assert tensor.elements == array.size
    assert scales.graph_sha256 == sha256_of(graph)
    assert (scales.method, scales.samples, scales.data_sha256) == (method, 40, "12" * 32)


@pytest.mark.parametrize("method", ["minmax", "mse"])
def test_keys_and_values_have_the_whole_range_of_each_head(method: str, tmp_path: Path) -> None:
    graph, weights = write_decoder(tmp_path)
    items = token_samples()
    scales = observe(graph, DECODER, samples_of(items), Ruler(method, INT8))
    packed = np.concatenate([weights["embedding"][list(ids)] @ weights["qkv"] for ids in items])
    _, key, value = packed.reshape(len(packed), 3, HEADS, DIM).transpose(1, 0, 2, 3)
    for name, array in (("key_cache_0", key), ("value_cache_0", value)):
        tensor = scales.tensors[name]
        assert tensor.axis == 1
        np.testing.assert_allclose(tensor.low, array.min(axis=(0, 2)), atol=1e-5)
        np.testing.assert_allclose(tensor.high, array.max(axis=(0, 2)), atol=1e-5)
    rows = scales.tensors["selected"].elements // (HEADS * DIM)
    assert 0 <= rows - len(packed) / LOGIT_STRIDE <= len(items)


def test_activations_that_overflow_are_refused_with_tensor_and_samples(tmp_path: Path) -> None:
    graph, _ = write_mlp(tmp_path)
    x = np.full((20, 6), 3e38, np.float32)
    x[:16] = 1
    with pytest.raises(
        BadInput, match=r"tensor 'act': .* activations are NaN or infinite, in the samples 16 to 19 of data"
    ):
        observe(graph, TENSORS, samples_of([{"x": row[None]} for row in x]), Ruler("minmax", INT8))


def test_a_graph_without_products_is_refused(tmp_path: Path) -> None:
    import onnx_ir as ir

    from .small_graphs import _save

    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["batch", 6]))
    relu = ir.node("Relu", [x], outputs=[ir.Value(name="y", type=x.type, shape=x.shape)])
    graph = _save(tmp_path, [x], list(relu.outputs), [relu], {})
    with pytest.raises(BadInput, match="multiplies nothing by a weight"):
        observe(graph, TENSORS, samples_of([{"x": np.ones((1, 6), np.float32)}]), Ruler("minmax", INT8))


def test_kept_samples_are_read_as_they_were_written(tmp_path: Path) -> None:
    tokens = tuple(token_samples())
    name, path = write_samples(tokens, tmp_path)
    assert path == tmp_path / name
    assert read_samples(tmp_path) == tokens
    arrays = tuple({"x": np.full((1, place), place, np.float32), "b.c": np.arange(2)} for place in range(12))
    (tmp_path / "arrays").mkdir()
    write_samples(arrays, tmp_path / "arrays")
    found = read_samples(tmp_path / "arrays")
    assert len(found) == 12
    for wanted, item in zip(arrays, found, strict=True):
        assert not isinstance(item, tuple)
        assert set(item) == {"x", "b.c"}
        np.testing.assert_array_equal(item["x"], wanted["x"])
    with pytest.raises(BadInput, match="holds no calibration samples"):
        read_samples(tmp_path / "none")


def test_the_recipe_knows_every_method() -> None:
    assert CALIBRATION_METHODS == METHODS


@pytest.mark.parametrize("method", METHODS)
def test_memory_does_not_grow_with_the_samples(method: str, tmp_path: Path) -> None:
    graph, _ = write_decoder(tmp_path)
    items = token_samples()

    def peak(times: int) -> int:
        samples = samples_of(items * times)
        tracemalloc.start()
        try:
            observe(graph, DECODER, samples, Ruler(method, INT8))
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(1)  # what is imported and cached on the way
    few = peak(2)
    # The activations of the other samples take 7 MB; batches that fall otherwise, a tenth of one.
    assert peak(20) < few + 300_000
