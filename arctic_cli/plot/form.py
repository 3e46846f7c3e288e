"""What all figures share."""

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from arctic_workers.ablation.drawing import shortened

WIDTH = 6.4
Interval = tuple[float, float, float]
"""A value, and the ends of its interval."""


def axes(title: str, x: str, y: str, height: float = 3.6) -> tuple[Figure, Axes]:
    """Return a new figure and its only axes; heights are in inches."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    made = figure.add_subplot()
    made.set(title=title, xlabel=x, ylabel=y)
    return figure, made


def intervals(
    made: Axes, rows: Mapping[str, Interval], label: str | None = None, offset: float = 0.0, marker: str = "o"
) -> None:
    """Draw a line a name, the first at the top, with a dot at the value and a bar over the interval."""
    values = [value for value, _, _ in rows.values()]
    errors = [[value - low for value, low, _ in rows.values()], [high - value for value, _, high in rows.values()]]
    places = [place + offset for place in range(len(rows))]
    made.errorbar(values, places, xerr=errors, fmt=marker, capsize=3, markersize=5, label=label)
    names(made, list(rows))


def names(made: Axes, rows: Sequence[str]) -> None:
    """Name the lines of a figure, from the top."""
    made.set_yticks(range(len(rows)), [shortened(row) for row in rows])
    made.set_ylim(len(rows) - 0.5, -0.5)


def stacked(made: Axes, rows: Mapping[str, Mapping[str, float]]) -> None:
    """Draw a bar a name, the first at the top, made of its parts."""
    parts = list(dict.fromkeys(part for row in rows.values() for part, value in row.items() if value))
    begin = [0.0] * len(rows)
    for part in parts:
        widths = [row.get(part, 0.0) for row in rows.values()]
        made.barh(range(len(rows)), widths, left=begin, height=0.6, label=part)
        begin = [left + width for left, width in zip(begin, widths, strict=True)]
    names(made, list(rows))
    made.legend(loc="upper left", bbox_to_anchor=(1, 1))
