"""What a Prometheus answers to the queries of a panel. No Grafana: its variables are filled in here."""

import json
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from arctic_cli.dashboards.grafana import Panel

_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
SECONDS = 60


@dataclass(frozen=True)
class Span:
    """From when to when, in seconds since 1970, and the seconds between two points."""

    start: float
    end: float
    step: float


@dataclass(frozen=True)
class Series:
    """One line of a panel: what it is called, and its points by their time."""

    legend: str
    labels: Mapping[str, str]
    points: Mapping[float, float]


def answers(url: str, panel: Panel, chosen: Mapping[str, str], span: Span) -> list[Series]:
    """Return the series of a panel. `chosen` are the variables of its dashboard; RuntimeError if a query fails."""
    return [
        Series(
            _legend(query.legend, found["metric"]), found["metric"], {at: float(value) for at, value in found["values"]}
        )
        for query in panel.queries
        for found in _ask(url, filled(query.expr, chosen, span), span)
    ]


def filled(expr: str, chosen: Mapping[str, str], span: Span) -> str:
    """Return a query with what Grafana would put into it."""
    known = {"__rate_interval": f"{max(15, round(4 * span.step))}s", **chosen}
    return re.sub(r"\$(\w+)", lambda found: known[found[1]], expr)


def _legend(form: str, labels: Mapping[str, str]) -> str:
    if not form:
        return ", ".join(f"{name}={value}" for name, value in sorted(labels.items()))
    return re.sub(r"\{\{(\w+)\}\}", lambda found: labels.get(found[1], ""), form)


def _ask(url: str, expr: str, span: Span) -> list[dict[str, Any]]:
    parameters = urllib.parse.urlencode({"query": expr, "start": span.start, "end": span.end, "step": span.step})
    try:
        with _DIRECT.open(f"{url}/api/v1/query_range?{parameters}", timeout=SECONDS) as answer:
            found: list[dict[str, Any]] = json.load(answer)["data"]["result"]
            return found
    except urllib.error.HTTPError as error:
        raise RuntimeError(f"{expr}: {json.load(error)['error']}") from None
