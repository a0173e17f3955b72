"""Memory over time of a build, a band for each stage, as SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

GIB = 2**30
WIDTH, HEIGHT, LEFT, TOP, GAP = 860, 150, 60, 40, 60
ANONYMOUS, WHOLE, LINE = "#c2410c", "#93c5fd", "#475569"


def draw(results: Mapping[str, Any], path: Path) -> None:
    """Writes one panel a model: whole memory behind, anonymous in front, a line at the weights' size."""
    total = TOP + len(results) * (HEIGHT + GAP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH + LEFT + 20} {total}" font-family="sans-serif" '
        'font-size="12">',
        f'<rect width="100%" height="{total}" fill="white"/>',
        f'<text x="{LEFT}" y="18"><tspan fill="{ANONYMOUS}">anonymous</tspan> memory and '
        f'<tspan fill="#2563eb">mapped files</tspan> of the whole process tree, GiB over seconds; dashed: the '
        "weights in float32</text>",
    ]
    for place, (name, result) in enumerate(results.items()):
        parts += _panel(name, result, TOP + place * (HEIGHT + GAP))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([*parts, "</svg>"]) + "\n", encoding="utf-8")


def _panel(name: str, result: Mapping[str, Any], top: int) -> list[str]:
    samples: Sequence[Sequence[float]] = result["samples"]
    begin, end = samples[0][0], samples[-1][0]
    most = 1.1 * max(result["weight_bytes"], max(sample[2] for sample in samples))
    bottom = top + HEIGHT

    def x(at: float) -> float:
        return LEFT + WIDTH * (at - begin) / (end - begin)

    def y(size: float) -> float:
        return bottom - (HEIGHT - 20) * size / most

    parts = [f'<text x="{LEFT}" y="{top + 4}" font-weight="bold">{escape(name)}</text>']
    for color, index in ((WHOLE, 2), (ANONYMOUS, 1)):
        points = " ".join(f"{x(sample[0]):.1f},{y(sample[index]):.1f}" for sample in samples)
        parts.append(
            f'<polygon fill="{color}" points="{LEFT},{bottom} {points} {x(end):.1f},{bottom}"/>',
        )
    weights = y(result["weight_bytes"])
    parts.append(
        f'<line x1="{LEFT}" x2="{LEFT + WIDTH}" y1="{weights:.1f}" y2="{weights:.1f}" stroke="{LINE}" '
        'stroke-dasharray="5 4"/>'
    )
    for size in (result["weight_bytes"], max(sample[2] for sample in samples)):
        parts.append(
            f'<text x="{LEFT - 6}" y="{y(size) + 4:.1f}" text-anchor="end" fill="{LINE}">{size / GIB:.1f}</text>'
        )
    for row, stage in enumerate(result["stages"]):
        start = max(x(stage["begin"]), LEFT)
        parts.append(
            f'<line x1="{start:.1f}" x2="{start:.1f}" y1="{top + 8}" y2="{bottom + 6 + 12 * (row % 3)}" '
            f'stroke="{LINE}" stroke-width="0.6"/>'
        )
        parts.append(
            f'<text x="{start + 3:.1f}" y="{bottom + 12 + 12 * (row % 3)}" font-size="10" fill="{LINE}">'
            f"{escape(stage['stage'])} {stage['seconds']:.0f} s</text>"
        )
    return parts
