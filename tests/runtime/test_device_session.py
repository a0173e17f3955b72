"""One-call engines on a device: what goes up comes down, for shapes that come and go."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from model_repo.runtime.contract import AxisSpec, EngineSpec, Head, TensorSpec
from model_repo.runtime.device_session import DeviceSession
from model_repo.runtime.errors import BadInput
from model_repo.runtime.host_device import HostDevice, Order
from tests.runtime.graphs import save
from tests.runtime.host_engine import HostEngine

onnx = pytest.importorskip("onnx", reason="graphs are written with the package onnx")

TENSORS = EngineSpec(
    kind="tensors",
    name="sums",
    target="tensorrt",
    precision="fp16",
    graph="engine.onnx",
    plugin=None,
    vocab_size=0,
    max_length=0,
    inputs=(TensorSpec("x", "float32", ("rows", "width")), TensorSpec("y", "float32", ("rows", 1))),
    outputs=(TensorSpec("both", "float32", ("rows", "width")), TensorSpec("size", "int64", (2,))),
    axes=(AxisSpec("rows", 1, 64), AxisSpec("width", 1, 64)),
    batched=False,
)
TEXTS = EngineSpec(
    kind="encoder",
    name="tokens",
    target="tensorrt-rtx",
    precision="fp16",
    graph="engine.onnx",
    plugin=None,
    vocab_size=100,
    max_length=16,
    encoder_inputs=("input_ids", "attention_mask"),
    head=Head("token_classification", ("a", "b", "c")),
)
MOST = 4


def sums(folder: Path, device: HostDevice) -> HostEngine:
    """both = x + y; size = the shape of x."""
    make, info, kinds = onnx.helper.make_node, onnx.helper.make_tensor_value_info, onnx.TensorProto
    nodes = [make("Add", ["x", "y"], ["both"]), make("Shape", ["x"], ["size"])]
    inputs = [info("x", kinds.FLOAT, ["rows", "width"]), info("y", kinds.FLOAT, ["rows", 1])]
    outputs = [info("both", kinds.FLOAT, ["rows", "width"]), info("size", kinds.INT64, [2])]
    save(folder, "sums", nodes, inputs, outputs)
    ranges = {"any": {"x": ((1, 1), (MOST, 64)), "y": ((1, 1), (MOST, 1))}}
    return HostEngine(device, folder / "engine.onnx", ranges)


def tokens(folder: Path, device: HostDevice) -> HostEngine:
    """logits [batch, length, 3] of a token: its id times its mask, three times."""
    make, info, kinds = onnx.helper.make_node, onnx.helper.make_tensor_value_info, onnx.TensorProto
    nodes = [
        make("Mul", ["input_ids", "attention_mask"], ["kept"]),
        make("Cast", ["kept"], ["wide"], to=kinds.FLOAT),
        make("Constant", [], ["last"], value_ints=[2]),
        make("Unsqueeze", ["wide", "last"], ["column"]),
        make("Concat", ["column", "column", "column"], ["logits"], axis=2),
    ]
    inputs = [info(name, kinds.INT64, ["batch", "length"]) for name in TEXTS.encoder_inputs]
    save(folder, "tokens", nodes, inputs, [info("logits", kinds.FLOAT, ["batch", "length", 3])])
    ranges = {"any": dict.fromkeys(TEXTS.encoder_inputs, ((1, 1), (MOST, 16)))}
    return HostEngine(device, folder / "engine.onnx", ranges)


@pytest.mark.parametrize("order", get_args(Order))
def test_named_tensors_of_any_shape_that_the_engine_takes(tmp_path: Path, order: Order) -> None:
    device = HostDevice(order)
    session = DeviceSession(device, sums(tmp_path, device), TENSORS)
    random = np.random.default_rng(0)
    for rows, width in ((2, 3), (4, 60), (1, 1), (2, 3)):
        x, y = (random.normal(size=(rows, size)).astype(np.float32) for size in (width, 1))
        size, both = session.run(["size", "both"], {"x": x, "y": y})
        assert size.tolist() == [rows, width]
        assert (both == x + y).all()
    with pytest.raises(BadInput, match=r"input x has shape \(5, 3\)"):
        session.run(["both"], {"x": np.zeros((5, 3), np.float32), "y": np.zeros((5, 1), np.float32)})
    device.close()


def test_more_texts_than_the_profile_takes_are_computed_in_pieces(tmp_path: Path) -> None:
    device = HostDevice()
    engine = tokens(tmp_path, device)
    session = DeviceSession(device, engine, TEXTS, most_rows=MOST)
    ids = np.arange(10 * 5).reshape(10, 5)
    mask = (ids % 3 > 0).astype(np.int64)
    (logits,) = session.run(["logits"], {"input_ids": ids, "attention_mask": mask})
    assert (logits == (ids * mask)[..., None].repeat(3, 2)).all()
    assert [call.shapes["input_ids"][0] for call in engine.calls] == [4, 4, 2]


def test_sizes_that_the_values_decide_are_refused(tmp_path: Path) -> None:
    device = HostDevice()
    odd = EngineSpec(**{**vars(TENSORS), "outputs": (TensorSpec("found", "int64", ("matches",)),)})
    with pytest.raises(BadInput, match=r"the output 'found' .* size 'matches' that the values decide"):
        DeviceSession(device, sums(tmp_path, device), odd)
