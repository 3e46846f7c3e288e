"""Dashboards as plain values, and their JSON as Grafana 10 and newer read it (schema version 39)."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

WIDTH, HEIGHT = 24, 8
"""Columns of Grafana's grid, and rows of it that a panel takes."""
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
TAG = "arctic"

Json = dict[str, Any]


@dataclass(frozen=True)
class Query:
    """What Prometheus is asked, and what a series is called: text with `{{label}}` in it."""

    expr: str
    legend: str = ""


@dataclass(frozen=True)
class Link:
    """Leads from a row or series to the dashboard of its object, by the labels `namespace` and `name`."""

    title: str
    uid: str


@dataclass(frozen=True)
class Panel:
    """One picture. `unit` is one of Grafana's; a table shows the labels of its one query, as of now."""

    title: str
    queries: tuple[Query, ...]
    unit: str = "short"
    kind: Literal["timeseries", "stat", "table"] = "timeseries"
    description: str = ""
    stacked: bool = False
    link: Link | None = None


@dataclass(frozen=True)
class Variable:
    """A choice at the top of a dashboard, made of the values of a label."""

    name: str
    metric: str


@dataclass(frozen=True)
class Dashboard:
    """Rows of panels; those of one row share its width."""

    uid: str
    title: str
    description: str
    rows: tuple[tuple[Panel, ...], ...]
    variables: tuple[Variable, ...] = field(default=())

    @property
    def panels(self) -> Sequence[Panel]:
        """All panels."""
        return [panel for row in self.rows for panel in row]

    def text(self) -> str:
        """Return the JSON that Grafana reads."""
        return json.dumps(self._json(), indent=2) + "\n"

    def _json(self) -> Json:
        return {
            "uid": self.uid,
            "title": self.title,
            "description": self.description,
            "tags": [TAG],
            "schemaVersion": 39,
            "editable": True,
            "refresh": "30s",
            "time": {"from": "now-1h", "to": "now"},
            "templating": {"list": list(self._variables())},
            # To all others, with what is chosen here.
            "links": [
                {
                    "title": "Arctic",
                    "type": "dashboards",
                    "tags": [TAG],
                    "includeVars": True,
                    "keepTime": True,
                    "asDropdown": False,
                }
            ],
            "panels": list(self._panels()),
        }

    def _variables(self) -> Iterator[Json]:
        yield {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus"}
        chosen = ""
        for variable in self.variables:
            query = f"label_values({variable.metric}{{{chosen}}}, {variable.name})"
            yield {
                "name": variable.name,
                "type": "query",
                "datasource": DATASOURCE,
                "query": {"query": query, "refId": variable.name},
                "refresh": 2,
                "sort": 1,
            }
            chosen += f'{variable.name}="${variable.name}",'

    def _panels(self) -> Iterator[Json]:
        number = 0
        for y, row in enumerate(self.rows):
            for x, panel in enumerate(row):
                number += 1
                width = WIDTH // len(row)
                place = {"x": x * width, "y": y * HEIGHT, "w": width, "h": HEIGHT}
                yield {"id": number, "gridPos": place, "datasource": DATASOURCE, **_panel(panel)}


def _panel(panel: Panel) -> Json:
    table = panel.kind == "table"
    defaults: Json = {"unit": panel.unit}
    if panel.kind == "timeseries":
        defaults["custom"] = {"fillOpacity": 30 if panel.stacked else 0, "stacking": {"mode": _stacking(panel)}}
    if panel.link:
        defaults["links"] = [{"title": panel.link.title, "url": _url(panel.link, table=table)}]
    shown: Json = {
        "title": panel.title,
        "description": panel.description,
        "type": panel.kind,
        "targets": [_target(number, query, table=table) for number, query in enumerate(panel.queries)],
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": {},
    }
    if table:
        hidden = dict.fromkeys(("Time", "Value", "__name__", *_OF_THE_POD), True)
        shown["transformations"] = [{"id": "organize", "options": {"excludeByName": hidden}}]
    return shown


_OF_THE_POD = ("container", "endpoint", "instance", "job", "pod", "service")


def _stacking(panel: Panel) -> str:
    return "normal" if panel.stacked else "none"


def _target(number: int, query: Query, *, table: bool) -> Json:
    return {
        "refId": chr(ord("A") + number),
        "datasource": DATASOURCE,
        "expr": query.expr,
        "legendFormat": query.legend or "__auto",
        "instant": table,
        "range": not table,
        "format": "table" if table else "time_series",
    }


def _url(link: Link, *, table: bool) -> str:
    labels = "__data.fields" if table else "__field.labels"
    chosen = "&".join(f"var-{name}=${{{labels}.{name}}}" for name in ("namespace", "name"))
    return f"/d/{link.uid}?{chosen}&${{__url_time_range}}"
