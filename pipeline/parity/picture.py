"""Error by depth as an SVG: every tensor of a graph in the order of computation, beside its partner."""

from __future__ import annotations

import html
import itertools
import math
import re
from collections.abc import Sequence
from pathlib import Path

from .walk import Step, Walk

WIDTH, HEIGHT = 960, 440
LEFT, RIGHT, TOP, BOTTOM = 72, 16, 64, 56
FLOOR, CEILING = -9.0, 1.0
"""Powers of ten at the bottom and the top; what is equal lies at the bottom, what is not finite at the top."""

_LAYER = re.compile(r"^(?P<layer>.*?\.\d+)(\.|$)")
_STYLE = (
    "text{font:12px sans-serif;fill:#24292f}.title{font-size:15px;font-weight:600}.axis{stroke:#8c959f}"
    ".grid{stroke:#d8dee4}.band{fill:#f3f5f7}.all{fill:none;stroke:#0969da;stroke-width:1.5}"
    ".own{fill:#bc4c00}.wrong{stroke:#cf222e;stroke-width:1.5;stroke-dasharray:4 3}.wrong-name{fill:#cf222e}"
)


def write_picture(path: Path, walk: Walk, title: str) -> None:
    """Writes the picture to `path`. Raises OSError when the disk refuses."""
    path.write_text(picture(walk, title), encoding="utf-8")


def picture(walk: Walk, title: str) -> str:
    """The SVG's text. A line: the error with all that comes before; points: of the node on right inputs; a dashed
    line: the first node that departs by itself. Shaded: every second layer."""
    steps = walk.steps
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">',
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        f'<text class="title" x="{LEFT}" y="22">{html.escape(title)}</text>',
        *_legend(),
        *_layers(steps),
        *_axes(len(steps)),
    ]
    places = [(_x(place, len(steps)), step) for place, step in enumerate(steps)]
    line = " ".join(f"{x:.1f},{_y(step.error):.1f}" for x, step in places)
    parts.append(f'<polyline class="all" points="{line}"/>')
    for x, step in places:
        parts.append(
            f'<circle class="own" cx="{x:.1f}" cy="{_y(step.own_error):.1f}" r="2.2"><title>'
            f"{html.escape(f'{step.tensor}: {step.own_error:.2g} by itself, {step.error:.2g} in all')}</title></circle>"
        )
    if walk.departures:
        first = walk.departures[0].step
        x = next(x for x, step in places if step.tensor == first.tensor)
        anchor = "end" if x > WIDTH / 2 else "start"
        shift = -6 if anchor == "end" else 6
        parts.append(f'<line class="wrong" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
        parts.append(
            f'<text class="wrong-name" x="{x + shift:.1f}" y="{TOP + 14}" text-anchor="{anchor}">'
            f"{html.escape(f'{first.node.operator} {first.node.name}')}</text>"
        )
    return "\n".join([*parts, "</svg>", ""])


def _legend() -> list[str]:
    x, y = LEFT, 42
    return [
        f'<line class="all" x1="{x}" x2="{x + 22}" y1="{y}" y2="{y}"/>',
        f'<text x="{x + 28}" y="{y + 4}">with all that comes before</text>',
        f'<circle class="own" cx="{x + 206}" cy="{y}" r="3"/>',
        f'<text x="{x + 216}" y="{y + 4}">of the node itself, on right inputs</text>',
    ]


def _layers(steps: Sequence[Step]) -> list[str]:
    """A shade behind every second layer, and the layers' numbers."""
    parts, shaded = [], False
    runs = itertools.groupby(enumerate(steps), key=lambda pair: _layer(pair[1]))
    for layer, run in runs:
        places = [place for place, _ in run]
        if not layer:
            continue
        begin, end = _x(places[0] - 0.5, len(steps)), _x(places[-1] + 0.5, len(steps))
        if shaded:
            parts.append(
                f'<rect class="band" x="{begin:.1f}" y="{TOP}" width="{end - begin:.1f}" '
                f'height="{HEIGHT - TOP - BOTTOM}"/>'
            )
        shaded = not shaded
        if end - begin > 14:
            number = layer.rpartition(".")[2]
            parts.append(
                f'<text x="{(begin + end) / 2:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{number}</text>'
            )
    return parts


def _layer(step: Step) -> str:
    """The numbered module that a tensor's node lies in, such as model.layers.3; '' outside of all."""
    module = step.node.module or step.partner.removeprefix("output of module ")
    match = _LAYER.match(module)
    return match["layer"] if match else ""


def _axes(count: int) -> list[str]:
    bottom = HEIGHT - BOTTOM
    parts = []
    for power in range(int(FLOOR), int(CEILING) + 1):
        y = _y(10.0**power)
        words = {int(FLOOR): "equal", int(CEILING): "not finite"}.get(power, f"1e{power}" if power else "1")
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{words}</text>')
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{LEFT}" y1="{TOP}" y2="{bottom}"/>')
    parts.append(
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 12}" text-anchor="middle">{count} tensors in the order '
        "of computation (numbers: layers); error: largest difference of a row, relative to the rows' size</text>"
    )
    return parts


def _x(place: float, count: int) -> float:
    return LEFT + (WIDTH - LEFT - RIGHT) * (place + 0.5) / max(count, 1)


def _y(error: float) -> float:
    power = CEILING if not math.isfinite(error) else FLOOR if error <= 0 else math.log10(error)
    share = (min(max(power, FLOOR), CEILING) - FLOOR) / (CEILING - FLOOR)
    return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * share
