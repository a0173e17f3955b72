"""Memory of a whole build, measured as `python -m bench.scale` does: it does not grow with the layers."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.scale import FLOAT32_BYTES, measure
from bench.shape import Shape
from bench.sharded import parameters

SMALL = Shape(1024, 2, 16, 4, 64, 4096, 8192, False, 10000.0, 256)
LARGE = SMALL._replace(layers=8)
"""91 million parameters more than SMALL has."""

SLACK_BYTES = 40 << 20
"""What graphs and allocators differ by. The weights added have eight times as much."""

MOMENT_BYTES = 100 << 20
"""The same for stages that compare sessions of ONNX Runtime: a peak of 80 MiB, the same with any number of layers, is
over so fast that some runs see it and others do not. The weights added have three times as much."""

COMPARING = ("lower", "compile")

HELD_BY_THE_RUNTIME = "generate"
"""ONNX Runtime rearranges the weights for speed when an engine is loaded, and holds them."""


@pytest.mark.wide
def test_no_stage_of_a_build_holds_the_weights(tmp_path: Path) -> None:
    small, large = (measure(shape, tmp_path / str(shape.layers)) for shape in (SMALL, LARGE))
    added = (parameters(LARGE) - parameters(SMALL)) * FLOAT32_BYTES
    assert added > 8 * SLACK_BYTES > 3 * MOMENT_BYTES
    anonymous = {stage["stage"]: stage["anonymous"] for stage in small["stages"]}
    assert {"export", "fuse", "lower", "compile", "emit", HELD_BY_THE_RUNTIME} <= set(anonymous)
    for stage in large["stages"]:
        grown = stage["anonymous"] - anonymous[stage["stage"]]
        if stage["stage"] != HELD_BY_THE_RUNTIME:
            assert grown < (MOMENT_BYTES if stage["stage"] in COMPARING else SLACK_BYTES), stage["stage"]
        assert stage["whole"] < 3 * large["weight_bytes"], stage["stage"]
    measured = [stage["parity"] for stage in large["stages"] if isinstance(stage["parity"], dict)]
    assert len(measured) >= 4
    assert all(parity["min_cosine"] > 0.9999 for parity in measured)
