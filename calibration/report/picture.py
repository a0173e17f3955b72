"""An accuracy report as an SVG: before and after side by side, and the layers that lose most."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

WIDTH, LEFT, TOP = 960, 16, 84
COLUMNS, COLUMN, BAR, GAP = 3, 304, 22, 8
LAYER_LEFT, LAYER_HEIGHT = 360, 20

_STYLE = (
    "text{font:12px sans-serif;fill:#24292f}.title{font-size:15px;font-weight:600}.small{fill:#57606a}"
    ".before{fill:#8c959f}.after{fill:#0969da}.worse{fill:#bc4c00}.grid{stroke:#d8dee4}.head{font-weight:600}"
)


class Pair(NamedTuple):
    """One figure of both sides; `before` None where there is only one."""

    title: str
    before: float | None
    after: float
    better: str  # which direction is better, in words
    words: str  # format of a value


def write_picture(path: Path, report: Mapping[str, Any], title: str) -> None:
    """Writes the picture to `path`. Raises OSError when the disk refuses."""
    path.write_text(picture(report, title), encoding="utf-8")


def picture(report: Mapping[str, Any], title: str) -> str:
    """The SVG's text."""
    pairs = _pairs(report)
    layers: Sequence[Mapping[str, Any]] = report.get("worst", [])
    rows = -(-len(pairs) // COLUMNS)
    row = 2 * (BAR + GAP) + 40
    below = TOP + rows * row
    height = below + (56 + LAYER_HEIGHT * len(layers) if layers else 16)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">',
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style>",
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        f'<text class="title" x="{LEFT}" y="24">{html.escape(title)}</text>',
        *_legend(report),
    ]
    for place, pair in enumerate(pairs):
        parts += _bars(pair, LEFT + place % COLUMNS * (COLUMN + 8), TOP + place // COLUMNS * row)
    if layers:
        parts += _layers(layers, below)
    return "\n".join([*parts, "</svg>", ""])


def _pairs(report: Mapping[str, Any]) -> list[Pair]:
    """What can be drawn of this report."""
    pairs = []
    if "perplexity" in report:
        pairs.append(
            Pair("perplexity", report.get("reference_perplexity"), report["perplexity"], "lower", ".2f")
        )
    for name, title in (("top1", "same likeliest token"), ("greedy_tokens", "same greedy tokens")):
        if name in report:
            pairs.append(Pair(title, 1.0, report[name], "higher", ".1%"))
    for name, title in (
        ("mean_cosine", "mean cosine"),
        ("retrieval", "same nearest sentence"),
        ("order", "same order"),
    ):
        if name in report:
            pairs.append(Pair(title, 1.0, report[name], "higher", ".4f"))
    for output, figures in report.get("outputs", {}).items():
        for name in ("accuracy", "mean_cosine"):
            if name in figures:
                before = figures.get("reference_accuracy") if name == "accuracy" else 1.0
                pairs.append(
                    Pair(f"{output}: {name.replace('_', ' ')}", before, figures[name], "higher", ".4f")
                )
    sides = report["candidate"], report.get("reference")
    for name, title, better in (
        ("bytes", "MiB", "lower"),
        ("tokens_per_second", "tokens/s in steps", "higher"),
    ):
        values = [None if side is None else side[name] / (2**20 if name == "bytes" else 1) for side in sides]
        if values[0]:
            pairs.append(Pair(title, values[1], values[0], better, ".1f" if name == "bytes" else ",.0f"))
    return pairs


def _legend(report: Mapping[str, Any]) -> list[str]:
    parts, x = [], LEFT
    for kind, side in (("before", report.get("reference")), ("after", report["candidate"])):
        if side is not None:
            parts.append(f'<rect class="{kind}" x="{x}" y="40" width="14" height="14"/>')
            parts.append(f'<text x="{x + 20}" y="52">{html.escape(str(side["name"]))}</text>')
            x += 320
    return parts


def _bars(pair: Pair, x: float, y: float) -> list[str]:
    """Two bars from zero, as long as their values."""
    values = (pair.before, pair.after)
    largest = max((v for v in values if v is not None and math.isfinite(v)), default=0.0) or 1.0
    room = COLUMN - 76
    parts = [
        f'<text class="head" x="{x}" y="{y + 6}">{html.escape(pair.title)}'
        f'<tspan class="small" font-weight="400"> ({pair.better} is better)</tspan></text>'
    ]
    for place, (kind, value) in enumerate(zip(("before", "after"), values, strict=True)):
        if value is None:
            continue
        top = y + 16 + place * (BAR + GAP)
        length = max(room * value / largest, 1.0) if math.isfinite(value) else room
        parts.append(f'<rect class="{kind}" x="{x}" y="{top}" width="{length:.1f}" height="{BAR}"/>')
        parts.append(f'<text x="{x + length + 6:.1f}" y="{top + 15}">{value:{pair.words}}</text>')
    return parts


def _layers(layers: Sequence[Mapping[str, Any]], y: float) -> list[str]:
    """The worst layers, longest bar first."""
    room = WIDTH - LAYER_LEFT - 80
    errors = [float(layer["error"]) for layer in layers]
    largest = max((error for error in errors if math.isfinite(error)), default=0.0) or 1.0
    parts = [
        f'<text class="head" x="{LEFT}" y="{y + 18}">Layers that lose most, each on float32 inputs</text>',
        f'<text class="small" x="{LEFT}" y="{y + 36}">largest difference of a row, relative to the rows\' size</text>',
    ]
    for place, (layer, error) in enumerate(zip(layers, errors, strict=True)):
        top = y + 46 + place * LAYER_HEIGHT
        length = max(room * error / largest, 1.0) if math.isfinite(error) else room
        name = str(layer["module"] or layer["tensor"])
        parts.append(f'<text x="{LEFT}" y="{top + 12}">{html.escape(name[:52])}</text>')
        parts.append(
            f'<rect class="worse" x="{LAYER_LEFT}" y="{top}" width="{length:.1f}" height="{LAYER_HEIGHT - 6}"/>'
        )
        parts.append(f'<text x="{LAYER_LEFT + length + 6:.1f}" y="{top + 12}">{error:.2g}</text>')
    return parts
