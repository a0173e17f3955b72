"""scales.json: what is written is read, and what cannot be right is refused by the tensor's name."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from calibration.scales import Scales, TensorRange
from calibration.schemes import Scheme
from model_repo.runtime.errors import BadInput

SCALES = Scales(
    graph_sha256="ab" * 32,
    data_sha256="cd" * 32,
    method="entropy",
    scheme="int8 per tensor",
    samples=512,
    tokens=30000,
    tensors={
        "val_1": TensorRange((-1.5,), (3.0,), 1000),
        "key_cache_0": TensorRange((-4.0, -1.0), (2.0, 8.0), 2000, axis=1),
        "dead": TensorRange((0.0,), (0.0,), 10),
        "half_dead": TensorRange((-1.0, 0.0), (1.0, 0.0), 10, axis=1),
    },
)


def changed(path: Path, name: str, **entry: Any) -> Path:
    """The file of SCALES with a tensor's entry changed."""
    SCALES.write(path)
    data = json.loads(path.read_text())
    data["tensors"][name].update(entry)
    path.write_text(json.dumps(data))
    return path


def test_what_is_written_is_read(tmp_path: Path) -> None:
    SCALES.write(tmp_path / "scales.json")
    assert Scales.read(tmp_path / "scales.json", "ab" * 32) == SCALES
    assert [path.name for path in tmp_path.iterdir()] == ["scales.json"]


def test_scales_follow_from_ranges() -> None:
    scale, zero = SCALES.scales_of("val_1", Scheme("int8"))
    assert zero is None
    assert scale.shape == ()
    assert scale == np.float32(3.0) / np.float32(127)
    scale, zero = SCALES.scales_of("val_1", Scheme("uint8", symmetric=False))
    assert scale == np.float32(4.5) / np.float32(255)
    assert zero == round(1.5 / (4.5 / 255))
    heads, _ = SCALES.scales_of("key_cache_0", Scheme("e4m3"))
    np.testing.assert_array_equal(heads, np.float32([4, 8]) / np.float32(448))


def test_dead_tensors_and_heads_are_refused_by_name() -> None:
    with pytest.raises(BadInput, match="'dead' was zero for all calibration data"):
        SCALES.scales_of("dead", Scheme("int8"))
    with pytest.raises(BadInput, match="'half_dead', slice 1 was zero"):
        SCALES.scales_of("half_dead", Scheme("int8"))
    with pytest.raises(BadInput, match="hold no tensor 'val_9'"):
        SCALES.scales_of("val_9", Scheme("int8"))


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"low": [float("nan")]}, "'val_1' is .nan,. to .3.0,.; NaN and infinity are no ends"),
        ({"high": [float("inf")]}, "'val_1' is .-1.5,. to .inf,.; NaN and infinity"),
        ({"high": [-2.0]}, "low is above high"),
        ({"high": [1.0, 2.0]}, "as many low as high"),
        ({"low": []}, "as many low as high"),
        ({"low": ["x"]}, "it must be numbers"),
        ({"width": 3}, "does not fit"),
    ],
)
def test_ranges_that_cannot_be_are_refused(entry: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=message):
        Scales.read(changed(tmp_path / "scales.json", "val_1", **entry))


def test_files_that_are_no_scales_of_this_graph_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "scales.json"
    with pytest.raises(BadInput, match="run `slipway calibrate"):
        Scales.read(path)
    for text, message in (
        ("{", "is not readable"),
        ("[]", "no scales of this version"),
        ("{}", "no scales of this"),
    ):
        path.write_text(text)
        with pytest.raises(BadInput, match=message):
            Scales.read(path)
    dataclasses.replace(SCALES, graph_sha256="ef" * 32).write(path)
    with pytest.raises(
        BadInput, match=r"calibrated on another graph \(efefefefefef..., here is abababababab...\)"
    ):
        Scales.read(path, "ab" * 32)
