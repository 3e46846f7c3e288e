"""Charts of lines as SVG: enough to see a curve, and nothing to install."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from arctic_workers.axes import axis_over

_WIDTH, _HEIGHT = 720, 400
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 20, 40, 50
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Of Okabe and Ito, which colour-blind people tell apart."""
Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Chart:
    """Lines over one pair of axes."""

    title: str
    x: str
    y: str
    lines: Mapping[str, Points]
    logarithmic: bool = False
    """Whether y is; all of its values are then above 0."""


def svg(chart: Chart) -> str:
    """Return the chart; each line has at least a point."""
    points = [point for line in chart.lines.values() for point in line]
    across = axis_over([x for x, _ in points], _LEFT, _WIDTH - _RIGHT)
    up = axis_over([y for _, y in points], _HEIGHT - _BOTTOM, _TOP, logarithmic=chart.logarithmic)
    drawn = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
        _text(_WIDTH / 2, 18, chart.title, size=14),
        _text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 12, chart.x),
        f'<g transform="rotate(-90 16 {_HEIGHT / 2})">{_text(16, _HEIGHT / 2, chart.y)}</g>',
    ]
    for value in across.ticks():
        x = across.place(value)
        drawn += [_rule(x, _TOP, x, _HEIGHT - _BOTTOM), _text(x, _HEIGHT - _BOTTOM + 16, f"{value:,g}")]
    for value in up.ticks():
        y = up.place(value)
        drawn += [_rule(_LEFT, y, _WIDTH - _RIGHT, y), _text(_LEFT - 6, y + 4, f"{value:,g}", anchor="end")]
    for number, (name, line) in enumerate(chart.lines.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        path = " ".join(f"{across.place(x):.1f},{up.place(y):.1f}" for x, y in line)
        drawn.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.8"/>')
        drawn.append(_text(_LEFT + 10, _TOP + 16 + 16 * number, name, anchor="start", colour=colour))
    return "\n".join([*drawn, "</svg>\n"])


def _text(x: float, y: float, words: str, *, size: int = 12, anchor: str = "middle", colour: str = "black") -> str:
    place = f'x="{x:.1f}" y="{y:.1f}"'
    return f'<text {place} font-size="{size}" text-anchor="{anchor}" fill="{colour}">{escape(words)}</text>'


def _rule(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="#dddddd"/>'
