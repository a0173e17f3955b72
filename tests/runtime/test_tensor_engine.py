"""Named tensors at run time: what an engine takes, what it refuses, and requests computed as one batch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model_repo.runtime.contract import CONVOLUTIONS, AxisSpec, EngineSpec, TensorSpec
from model_repo.runtime.engine_files import EXAMPLE
from model_repo.runtime.errors import BadInput
from model_repo.runtime.tensors import TensorEngine

onnx = pytest.importorskip("onnx", reason="graphs are written with the package onnx")

SPEC = EngineSpec(
    kind="tensors",
    name="scaled",
    target="onnxruntime",
    precision="fp32",
    graph="engine.onnx",
    plugin=None,
    vocab_size=0,
    max_length=0,
    inputs=(
        TensorSpec("x", "float32", ("batch", "width", 2)),
        TensorSpec("factor", "float32", ("batch",)),
    ),
    outputs=(TensorSpec("y", "float32", ("batch", "width", 2)), TensorSpec("whole", "int64", ("batch",))),
    axes=(AxisSpec("batch", 1, 8), AxisSpec("width", 2, None)),
    batched=True,
)


@pytest.fixture
def engine(tmp_path: Path) -> TensorEngine:
    """y = x * factor, row by row; whole = factor as an integer."""
    make, info, kinds = onnx.helper.make_node, onnx.helper.make_tensor_value_info, onnx.TensorProto
    graph = onnx.helper.make_graph(
        [
            make("Unsqueeze", ["factor", "axes"], ["column"]),
            make("Mul", ["x", "column"], ["y"]),
            make("Cast", ["factor"], ["whole"], to=kinds.INT64),
        ],
        "scaled",
        [info("x", kinds.FLOAT, ["batch", "width", 2]), info("factor", kinds.FLOAT, ["batch"])],
        [info("y", kinds.FLOAT, ["batch", "width", 2]), info("whole", kinds.INT64, ["batch"])],
        [onnx.numpy_helper.from_array(np.array([1, 2]), "axes")],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(model, tmp_path / "engine.onnx")
    np.savez(tmp_path / EXAMPLE, **{"0.0": request(2, 3)["x"], "0.1": request(2, 3)["factor"]})
    return TensorEngine(tmp_path, SPEC, threads=1)


def request(batch: int, width: int, seed: int = 0) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    return {
        "x": random.standard_normal((batch, width, 2), dtype=np.float32),
        "factor": random.integers(1, 9, batch).astype(np.float32),
    }


def test_outputs_come_by_name(engine: TensorEngine) -> None:
    given = request(3, 4)
    found = engine.run(given)
    assert list(found) == ["y", "whole"]
    np.testing.assert_array_equal(found["y"], given["x"] * given["factor"][:, None, None])
    np.testing.assert_array_equal(found["whole"], given["factor"].astype(np.int64))


def test_requests_computed_together_get_what_they_get_alone(engine: TensorEngine) -> None:
    requests = [request(rows, 5, seed) for seed, rows in enumerate((1, 3, 2))]
    together = engine.run_together(requests)
    assert engine.metrics.counters() == {"steps": 1, "rows": 6}
    for given, found in zip(requests, together, strict=True):
        for name, array in engine.run(given).items():
            np.testing.assert_array_equal(found[name], array)


def test_the_example_warms_up(engine: TensorEngine) -> None:
    engine.warm_up()
    assert {name: array.shape for name, array in engine.example().items()} == {"x": (2, 3, 2), "factor": (2,)}


GOOD = request(2, 3)
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "missing": ({"x": GOOD["x"]}, "the input 'factor' is missing; this model takes x, factor"),
    "unknown": ({**GOOD, "z": GOOD["x"]}, "there is no input 'z'; this model takes x, factor"),
    "type": ({**GOOD, "x": GOOD["x"].astype(np.float64)}, "has the type float64; it must be float32"),
    "rank": ({**GOOD, "x": GOOD["x"][0]}, r"'x' has the shape \[3, 2\]; it must be \[batch, width, 2\]"),
    "fixed size": (
        {**GOOD, "x": GOOD["x"][:, :, :1]},
        r"has the shape \[2, 3, 1\]; it must be \[batch, width, 2\]",
    ),
    "too small": (request(2, 1), r"so width is 1; it must be at least 2"),
    "too large": (request(9, 3), r"so batch is 9; it must be at least 1 and at most 8"),
    "none": (request(0, 3), r"so batch is 0; it must be at least 1 and at most 8"),
    "two sizes": ({**GOOD, "factor": GOOD["factor"][:1]}, r"so batch is 1; another input says 2"),
}


@pytest.mark.parametrize(("inputs", "message"), BAD.values(), ids=BAD.keys())
def test_inputs_that_do_not_fit_are_refused(
    engine: TensorEngine, inputs: dict[str, Any], message: str
) -> None:
    with pytest.raises(BadInput, match=message):
        engine.run(inputs)


def test_one_bad_request_refuses_the_batch(engine: TensorEngine) -> None:
    with pytest.raises(BadInput, match="so width is 1"):
        engine.run_together([request(1, 3), request(1, 1)])
    with pytest.raises(BadInput, match="so batch is 10; it must be at least 1 and at most 8"):
        engine.run_together([request(5, 3), request(5, 3)])


def test_another_kind_of_engine_is_refused(tmp_path: Path) -> None:
    spec = EngineSpec.from_dict({**SPEC.to_dict(), "kind": "encoder"})
    with pytest.raises(BadInput, match="is of kind encoder; one of named tensors is needed"):
        TensorEngine(tmp_path, spec, threads=1)


@pytest.mark.parametrize("features", [(), (CONVOLUTIONS,)])
def test_convolutions_get_their_layout_where_the_engine_is_loaded(
    features: tuple[str, ...], tmp_path: Path
) -> None:
    make, info, kinds = onnx.helper.make_node, onnx.helper.make_tensor_value_info, onnx.TensorProto
    weight = np.random.default_rng(1).standard_normal((32, 3, 1, 1), dtype=np.float32)
    graph = onnx.helper.make_graph(
        [make("Conv", ["x", "w"], ["c"]), make("Relu", ["c"], ["y"])],
        "mixed",
        [info("x", kinds.FLOAT, ["batch", 3, 8, 8])],
        [info("y", kinds.FLOAT, ["batch", 32, 8, 8])],
        [onnx.numpy_helper.from_array(weight, "w")],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(model, tmp_path / "engine.onnx")
    inputs, outputs = (
        TensorSpec("x", "float32", ("batch", 3, 8, 8)),
        TensorSpec("y", "float32", ("batch", 32, 8, 8)),
    )
    spec = replace(SPEC, inputs=(inputs,), outputs=(outputs,), features=features)
    engine = TensorEngine(tmp_path, spec, threads=1)
    level = engine._session.get_session_options().graph_optimization_level
    assert level.name == ("ORT_ENABLE_LAYOUT" if features else "ORT_DISABLE_ALL")
    x = np.random.default_rng(2).standard_normal((2, 3, 8, 8), dtype=np.float32)
    wanted = np.maximum(np.einsum("oc,bchw->bohw", weight[:, :, 0, 0].astype(np.float64), x), 0)
    np.testing.assert_allclose(engine.run({"x": x})["y"], wanted, rtol=1e-5, atol=1e-5)


def test_the_spec_survives_json() -> None:
    import json

    assert EngineSpec.from_dict(json.loads(json.dumps(SPEC.to_dict()))) == SPEC
