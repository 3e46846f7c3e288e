"""Charts of the report as SVG. Colours are the page's variables, so that they follow its light and dark."""

import math
from collections.abc import Mapping, Sequence
from html import escape

from arctic_workers.axes import Axis, axis_over

WIDTH, HEIGHT = 560, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 14, 20, 30
_MOST_POINTS = 400
"""Points of a line: more than that are drawn as the means of neighbours."""
COLOURS = 8
"""Series colours that the page has."""
Points = Sequence[tuple[float, float]]
UNITS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def short(value: float) -> str:
    """Return a number with few digits, in the units that manifests use."""
    for size, unit in UNITS:
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def thinned(points: Points) -> list[tuple[float, float]]:
    """Return the finite points, or the means of runs of them where there are many."""
    finite = [point for point in points if all(map(math.isfinite, point))]
    each = -(-len(finite) // _MOST_POINTS) or 1
    groups = [finite[start : start + each] for start in range(0, len(finite), each)]
    return [(sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups]


def lines(
    title: str,
    unit: str,
    series: Mapping[str, Points],
    bands: Mapping[str, tuple[float, float]] = {},
    marks: Sequence[float] = (),
) -> str:
    """Return a figure of lines over tokens, `bands` of which are named, `marks` pointed at; "" for nothing to draw."""
    drawn = {name: thin for name, points in series.items() if (thin := thinned(points))}
    if not drawn:
        return ""
    across = axis_over([x for points in drawn.values() for x, _ in points], _LEFT, WIDTH - _RIGHT)
    up = axis_over([y for points in drawn.values() for _, y in points], HEIGHT - _BOTTOM, _TOP)
    parts = [_band(across, place, name, number) for number, (name, place) in enumerate(bands.items())]
    parts += _axes(across, up)
    parts += [f'<path class="mark" d="M{_inside(across, mark):.1f} {_TOP}V{HEIGHT - _BOTTOM}"/>' for mark in marks]
    for number, (name, points) in enumerate(drawn.items()):
        path = " ".join(f"{across.place(x):.1f},{up.place(y):.1f}" for x, y in points)
        colour = f"s{number % COLOURS}"
        if len(points) == 1:
            x, y = path.split(",")
            parts.append(f'<circle class="{colour} dot" cx="{x}" cy="{y}" r="2.5"/>')
        parts.append(f'<polyline class="{colour}" points="{path}"><title>{escape(name)}</title></polyline>')
    legend = _legend(list(drawn)) if len(drawn) > 1 else ""
    return _figure(title, unit, f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">{"".join(parts)}</svg>', legend)


def _figure(title: str, unit: str, body: str, legend: str = "") -> str:
    unit = f" <small>{escape(unit)}</small>" if unit else ""
    return f"<figure><figcaption>{escape(title)}{unit}</figcaption>{body}{legend}</figure>"


def _legend(names: Sequence[str]) -> str:
    items = "".join(f'<li><i class="s{number % COLOURS}"></i>{escape(name)}</li>' for number, name in enumerate(names))
    return f'<ul class="legend">{items}</ul>'


def _inside(axis: Axis, value: float) -> float:
    return min(max(axis.place(value), _LEFT), WIDTH - _RIGHT)


def _band(across: Axis, place: tuple[float, float], name: str, number: int) -> str:
    left, right = (_inside(across, value) for value in place)
    shade = f'<rect class="band{number % 2}" x="{left:.1f}" y="{_TOP}" width="{max(0.0, right - left):.1f}" '
    shade += f'height="{HEIGHT - _BOTTOM - _TOP}"/>'
    if right - left < 7 * len(name):
        return f"{shade}"
    return f'{shade}<text class="name" x="{(left + right) / 2:.1f}" y="{_TOP - 7}">{escape(name)}</text>'


def _axes(across: Axis, up: Axis) -> list[str]:
    bottom, left = HEIGHT - _BOTTOM, _LEFT - 6
    tokens = [(across.place(value), short(value)) for value in across.ticks() if value >= 0]
    heights = [(up.place(value), short(value)) for value in up.ticks()]
    return [
        *(f'<text x="{x:.1f}" y="{bottom + 16}">{words}</text>' for x, words in tokens),
        *(f'<path class="grid" d="M{_LEFT} {y:.1f}H{WIDTH - _RIGHT}"/>' for y, _ in heights),
        *(f'<text class="end" x="{left}" y="{y + 4:.1f}">{words}</text>' for y, words in heights),
    ]


def shares(title: str, rows: Mapping[str, Mapping[str, float]]) -> str:
    """Return a figure with a bar a row, cut into the shares of its parts."""
    parts = list(dict.fromkeys(part for row in rows.values() for part, value in row.items() if value > 0))
    if not parts:
        return ""
    drawn, height = [], 26 * len(rows) + 4
    for line, (name, row) in enumerate(rows.items()):
        total, x, y = sum(row.values()) or 1.0, 92.0, 26 * line + 4
        drawn.append(f'<text class="end" x="84" y="{y + 14}">{escape(name)}</text>')
        for number, part in enumerate(parts):
            share = row.get(part, 0.0) / total
            width = share * (WIDTH - 92 - _RIGHT)
            words = f"{part} {share:.1%}, {row.get(part, 0.0):,.1f} s"
            place = f'x="{x:.1f}" y="{y}" width="{max(0.0, width - 1):.1f}" height="20"'
            drawn.append(f'<rect class="s{number % COLOURS} fill" {place}><title>{escape(words)}</title></rect>')
            if width > 40:
                drawn.append(f'<text class="inside" x="{x + width / 2:.1f}" y="{y + 14}">{share:.0%}</text>')
            x += width
    svg = f'<svg viewBox="0 0 {WIDTH} {height}" role="img">{"".join(drawn)}</svg>'
    return _figure(title, "", svg, _legend(parts))


def heat(title: str, unit: str, rows: Mapping[str, Sequence[float]]) -> str:
    """Return a figure with a cell a value: 1 is even, 0 is nothing, and above 2 all look alike."""
    if not rows:
        return ""
    columns = max(map(len, rows.values()))
    width, height = (WIDTH - 70 - _RIGHT) / columns, min(22.0, 400 / len(rows))
    drawn = []
    for line, (name, row) in enumerate(rows.items()):
        y = line * height
        if height > 10 or line % 4 == 0:
            drawn.append(f'<text class="end" x="62" y="{y + height / 2 + 4:.1f}">{escape(name)}</text>')
        for column, value in enumerate(row):
            words = f"{name}, expert {column}: {value:.2f}"
            kind = "none" if value == 0 else "less" if value < 1 else "more"
            strength = min(abs(value - 1), 1.0)
            drawn.append(
                f'<rect class="{kind}" x="{70 + column * width:.1f}" y="{y:.1f}" width="{max(width - 0.6, 0.4):.1f}" '
                f'height="{height - 0.6:.1f}" fill-opacity="{0.08 + 0.92 * strength:.2f}">'
                f"<title>{escape(words)}</title></rect>"
            )
    axis_y = len(rows) * height + 14
    drawn += [
        f'<text x="{70 + (column + 0.5) * width:.1f}" y="{axis_y:.0f}">{column}</text>'
        for column in range(0, columns, max(1, columns // 16))
    ]
    svg = f'<svg viewBox="0 0 {WIDTH} {axis_y + 6:.0f}" role="img">{"".join(drawn)}</svg>'
    keys = '<ul class="legend"><li><i class="k less"></i>less than even</li><li><i class="k more"></i>more</li>'
    return _figure(title, unit, svg, f'{keys}<li><i class="k none"></i>no token</li></ul>')
