"""Charts of the report: a dot a variant with its interval, and what a source does in a stage."""

import math
from collections.abc import Mapping, Sequence
from html import escape

from arctic_workers.axes import axis_over

WIDTH, _LEFT, _RIGHT, _LINE = 760, 250, 74, 22
Interval = tuple[float, float, float]
"""A value, and the ends of its interval; without end where that is not known."""


def intervals(title: str, unit: str, rows: Sequence[tuple[str, Interval, Sequence[float]]]) -> str:
    """Return rows of a name, a value with its interval, and values that it is compared with; "" for no rows."""
    if not rows:
        return ""
    ends = [value for _, interval, others in rows for value in (*interval, *others) if math.isfinite(value)]
    axis = axis_over(ends, _LEFT, WIDTH - _RIGHT)
    height = _LINE * len(rows) + 34
    parts = []
    for tick in axis.ticks():
        x = axis.place(tick)
        parts.append(
            f'<path class="grid" d="M{x:.1f} 6V{height - 24}"/><text x="{x:.1f}" y="{height - 8}">{tick:.4g}</text>'
        )
    for line, (name, (value, low, high), others) in enumerate(rows):
        y = 8 + _LINE * line + _LINE / 2
        parts.append(f'<text class="end name" x="{_LEFT - 14}" y="{y + 4:.1f}">{escape(shortened(name))}</text>')
        if math.isfinite(low) and math.isfinite(high):
            bar = f"M{axis.place(low):.1f} {y:.1f}H{max(axis.place(high), axis.place(low) + 0.5):.1f}"
            parts.append(f'<path class="s0 bar" d="{bar}"><title>{low:.4f} to {high:.4f}</title></path>')
        parts.append(f'<circle class="s0 dot" cx="{axis.place(value):.1f}" cy="{y:.1f}" r="4.5"/>')
        parts += [
            f'<circle class="s1 dot" cx="{axis.place(other):.1f}" cy="{y:.1f}" r="3.5">'
            f"<title>{other:.4f}</title></circle>"
            for other in others
        ]
        parts.append(f'<text class="value" x="{WIDTH - _RIGHT + 10}" y="{y + 4:.1f}">{value:.4f}</text>')
    svg = f'<svg viewBox="0 0 {WIDTH} {height}" role="img">{"".join(parts)}</svg>'
    return f"<figure><figcaption>{escape(title)} <small>{escape(unit)}</small></figcaption>{svg}</figure>"


def shortened(name: str) -> str:
    """Return what of a name there is room for."""
    return name if len(name) <= 40 else f"{name[:39]}…"


def effects(rows: Mapping[str, Mapping[str, tuple[float, float]]], unit: str, *, more_is_better: bool) -> str:
    """Return a cell a stage and source: a change and its standard deviation, blue where it helps; "" for no rows."""
    if not rows:
        return ""
    columns = list(dict.fromkeys(source for row in rows.values() for source in row))
    most = max((abs(change) for row in rows.values() for change, _ in row.values()), default=0.0) or 1.0
    width, height = (WIDTH - 130 - 20) / len(columns), 40
    parts = [
        f'<text x="{130 + (number + 0.5) * width:.1f}" y="14">{escape(name)}</text>'
        for number, name in enumerate(columns)
    ]
    for line, (stage, row) in enumerate(rows.items()):
        y = 22 + line * height
        parts.append(f'<text class="end name" x="120" y="{y + height / 2 + 4:.1f}">{escape(stage)}</text>')
        for number, source in enumerate(columns):
            change, deviation = row[source]
            x = 130 + number * width
            kind = "more" if (change < 0) == more_is_better else "less"  # orange, or blue
            parts.append(
                f'<rect class="{kind}" x="{x:.1f}" y="{y}" width="{width - 2:.1f}" height="{height - 2}" '
                f'fill-opacity="{0.06 + 0.6 * abs(change) / most:.2f}"/>'
                f'<text x="{x + width / 2:.1f}" y="{y + height / 2 + 4:.1f}">{change:+.3f} ± {deviation:.3f}</text>'
            )
    svg = f'<svg viewBox="0 0 {WIDTH} {22 + height * len(rows)}" role="img">{"".join(parts)}</svg>'
    best = "more" if more_is_better else "less"
    said = f"What more of a source does in each stage <small>{escape(unit)}, {best} is better</small>"
    return f"<figure><figcaption>{said}</figcaption>{svg}</figure>"
