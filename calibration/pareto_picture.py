"""Loss over bytes as an SVG: the frontier of mixed precisions, uniform precisions and the allocation chosen."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import NamedTuple

WIDTH, HEIGHT = 860, 460
LEFT, RIGHT, TOP, BOTTOM = 84, 24, 56, 52
_STYLE = (
    "text{font:12px sans-serif;fill:#24292f}.title{font-size:15px;font-weight:600}.grid{stroke:#d8dee4}"
    ".frontier{fill:none;stroke:#0969da;stroke-width:1.5}.uniform{fill:#bc4c00}.random{fill:#8c959f}.chosen{fill:#1a7f37}"
)


class Point(NamedTuple):
    """One allocation of precisions."""

    kind: str  # uniform, random or chosen
    label: str
    num_bytes: int
    loss: float


def picture(frontier: Sequence[tuple[int, float]], points: Sequence[Point], title: str) -> str:
    """The SVG's text. `frontier`: bytes and expected loss (sum over layers); `points`: measured. Both axes are
    logarithmic; a loss of zero lies at the bottom."""
    losses = [loss for _, loss in frontier] + [point.loss for point in points]
    above = [loss for loss in losses if loss > 0] or [1.0]
    low, high = math.log10(min(above)) - 0.1, math.log10(max(above)) + 0.1
    sizes = [size for size, _ in frontier] + [point.num_bytes for point in points]
    left, right = math.log10(min(sizes)) - 0.01, math.log10(max(sizes)) + 0.01

    def x(size: int) -> float:
        return LEFT + (math.log10(size) - left) / (right - left) * (WIDTH - LEFT - RIGHT)

    def y(loss: float) -> float:
        share = 0.0 if loss <= 0 else (math.log10(loss) - low) / (high - low)
        return HEIGHT - BOTTOM - max(share, 0.0) * (HEIGHT - TOP - BOTTOM)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">',
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        f'<text class="title" x="{LEFT}" y="24">{html.escape(title)}</text>',
    ]
    for power in range(math.ceil(low), math.floor(high) + 1):
        height = y(10.0**power)
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{height:.1f}" y2="{height:.1f}"/>'
        )
        parts.append(f'<text x="{LEFT - 8}" y="{height + 4:.1f}" text-anchor="end">1e{power}</text>')
    for share in range(5):
        size = round(10 ** (left + (right - left) * share / 4))
        parts.append(
            f'<text x="{x(size):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{size / 2**20:.3g} MiB</text>'
        )
    parts.append(f'<text x="{WIDTH / 2}" y="{HEIGHT - 10}" text-anchor="middle">bytes of the layers</text>')
    line = " ".join(f"{x(size):.1f},{y(loss):.1f}" for size, loss in frontier)
    parts.append(f'<polyline class="frontier" points="{line}"/>')
    for point in points:
        name = html.escape(f"{point.label}: {point.num_bytes} bytes, loss {point.loss:.3g}")
        parts.append(
            f'<circle class="{point.kind}" cx="{x(point.num_bytes):.1f}" cy="{y(point.loss):.1f}" '
            f'r="{3 if point.kind == "random" else 5}"><title>{name}</title></circle>'
        )
        if point.kind != "random":
            parts.append(
                f'<text x="{x(point.num_bytes) + 8:.1f}" y="{y(point.loss) - 6:.1f}">{html.escape(point.label)}</text>'
            )
    return "\n".join([*parts, "</svg>", ""])
