"""Draws the dashboards' panels from what a Prometheus has recorded, where there is no Grafana to do so.

    python -m arctic_cli.dashboards.pictures http://127.0.0.1:9090 docs/dashboards --last 600 \\
        --training default/tiny --service default/tiny
"""

import argparse
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import dates
from matplotlib.figure import Figure

from arctic_cli.dashboards import DASHBOARDS
from arctic_cli.dashboards.asking import Series, Span, answers
from arctic_cli.dashboards.grafana import Dashboard, Panel

POINTS = 200
"""Points of a line."""
LEGENDS = 8
"""Names that fit below a panel."""
_UNITS = {"percentunit": "share", "s": "seconds", "reqps": "a second", "ops": "a second", "bytes": "bytes"}


def draw(url: str, folder: Path, span: Span, chosen: Mapping[str, Mapping[str, str]]) -> list[Path]:
    """Draw each dashboard into a file of a folder; `chosen` are their variables by uid."""
    folder.mkdir(parents=True, exist_ok=True)
    # Text as text, and the same file for the same data.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "arctic"}):
        return [_draw(url, folder, dashboard, span, chosen.get(uid, {})) for uid, dashboard in DASHBOARDS.items()]


def _draw(url: str, folder: Path, dashboard: Dashboard, span: Span, chosen: Mapping[str, str]) -> Path:
    figure = Figure(figsize=(16, 3 * len(dashboard.rows)), layout="constrained")
    figure.suptitle(" ".join([dashboard.title, "/".join(chosen.values())]))
    rows = figure.subfigures(len(dashboard.rows), 1, squeeze=False)
    for (place,), row in zip(rows, dashboard.rows, strict=True):
        for axes, panel in zip(place.subplots(1, len(row), squeeze=False)[0], row, strict=True):
            series = answers(url, panel, chosen, span)
            if panel.kind == "table":
                _table(axes, series)
            else:
                _lines(axes, panel, series)
            axes.set_title(panel.title, fontsize=9, loc="left")
    path = folder / f"{dashboard.uid}.svg"
    figure.savefig(path, metadata={"Date": None})
    return path


def _lines(axes: Any, panel: Panel, series: list[Series]) -> None:
    for each in series:
        moments = [datetime.fromtimestamp(at, UTC) for at in each.points]
        axes.plot(moments, list(each.points.values()), linewidth=1, label=each.legend)
    axes.xaxis.set_major_formatter(dates.DateFormatter("%H:%M"))  # type: ignore[no-untyped-call]
    axes.set_ylabel(_UNITS.get(panel.unit, ""), fontsize=7)
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.3)
    if series:
        handles, names = axes.get_legend_handles_labels()
        axes.legend(handles[:LEGENDS], names[:LEGENDS], fontsize=6, loc="upper left")


def _table(axes: Any, series: list[Series]) -> None:
    """Draw what a table shows at the end of the span."""
    axes.axis("off")
    end = max((at for each in series for at in each.points), default=0.0)
    rows = [dict(each.labels) for each in series if end in each.points]
    if rows:
        head = sorted(
            {name for row in rows for name in row}, key=lambda name: ("namespace", "name", "state").index(name)
        )
        axes.table(
            [[row.get(name, "") for name in head] for row in rows], colLabels=head, loc="upper left", cellLoc="left"
        )


def _object(text: str) -> dict[str, str]:
    namespace, _, name = text.partition("/")
    if not name:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAMESPACE/NAME")
    return {"namespace": namespace, "name": name}


def main() -> None:
    """Read the command line, draw, and say where."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", help="of the Prometheus")
    parser.add_argument("folder", type=Path, help="to write SVG files into")
    parser.add_argument("--last", type=float, default=3600.0, help="seconds up to now that are drawn")
    parser.add_argument("--training", type=_object, required=True, help="NAMESPACE/NAME of the training to draw")
    parser.add_argument("--service", type=_object, required=True, help="the same of the service")
    given = parser.parse_args()
    end = time.time()
    span = Span(end - given.last, end, max(1.0, given.last / POINTS))
    chosen = {"arctic-training": given.training, "arctic-service": given.service}
    for path in draw(given.url, given.folder, span, chosen):
        print(path)


if __name__ == "__main__":
    main()
