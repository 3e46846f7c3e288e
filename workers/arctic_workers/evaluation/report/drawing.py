"""The chart of scores: a row a figure, a dot a model, and the interval around it."""

from collections.abc import Mapping, Sequence
from html import escape

WIDTH, _LEFT, _RIGHT, _LINE, _PAD = 760, 210, 60, 18, 14
COLOURS = 8
Point = tuple[float, float, float]
"""A score, and the ends of its interval."""


def intervals(rows: Mapping[str, Sequence[Point | None]], models: Sequence[str]) -> str:
    """Return scores between 0 and 1 as a figure of SVG; `rows` has, by name, a point or nothing a model."""
    if not rows:
        return ""
    height_of_row = _LINE * len(models) + _PAD
    height = height_of_row * len(rows) + 34
    parts = []
    for tenth in range(0, 11, 2):
        x = _place(tenth / 10)
        parts.append(f'<path class="grid" d="M{x:.1f} 6V{height - 24}"/>')
        parts.append(f'<text x="{x:.1f}" y="{height - 8}">{tenth / 10:.1f}</text>')
    for line, (name, points) in enumerate(rows.items()):
        top = 8 + line * height_of_row
        middle = top + (height_of_row - _PAD) / 2
        parts.append(f'<text class="end name" x="{_LEFT - 14}" y="{middle + 4:.1f}">{escape(name)}</text>')
        for number, (model, point) in enumerate(zip(models, points, strict=True)):
            if point is not None:
                parts.append(_point(point, model, number, top + _LINE * number + _LINE / 2))
    svg = f'<svg viewBox="0 0 {WIDTH} {height}" role="img">{"".join(parts)}</svg>'
    caption = "<figcaption>Scores <small>with 95% intervals over questions</small></figcaption>"
    return f"<figure>{caption}{svg}{_legend(models)}</figure>"


def _point(point: Point, model: str, number: int, y: float) -> str:
    value, low, high = (_place(each) for each in point)
    words = f"{model}: {point[0]:.3f}, {point[1]:.3f} to {point[2]:.3f}"
    colour = f"s{number % COLOURS}"
    label = f'<text class="value" x="{max(value, high) + 8:.1f}" y="{y + 4:.1f}">{point[0]:.3f}</text>'
    bar = f'<path class="{colour} bar" d="M{low:.1f} {y:.1f}H{max(high, low + 0.5):.1f}"/>'
    return (
        f"<g><title>{escape(words)}</title>{bar}"
        f'<circle class="{colour} dot" cx="{value:.1f}" cy="{y:.1f}" r="4.5"/>{label}</g>'
    )


def _place(score: float) -> float:
    return _LEFT + (WIDTH - _LEFT - _RIGHT) * score


def _legend(models: Sequence[str]) -> str:
    items = "".join(f'<li><i class="s{number % COLOURS}"></i>{escape(name)}</li>' for number, name in enumerate(models))
    return f'<ul class="legend">{items}</ul>'
