"""One evaluation as text: how far each suite is, what it found, what is wrong. Pure."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from arctic_cli.status.text import Manifest, bar, pods_table, table, troubles

HEAD = ("EVALUATION", "STATE", "SCORE", "SUITES")


def line_of_evaluation(manifest: Manifest) -> tuple[str, ...]:
    """Return its line in a table of `HEAD`."""
    status = manifest.get("status", {})
    suites = status.get("suites") or ()
    done = sum(suite["state"] == "Done" for suite in suites)
    score = (status.get("enterpriseIntelligence") or {}).get("value", "")
    return manifest["metadata"]["name"], status.get("state", ""), score, f"{done}/{len(suites)}"


def view_of_evaluation(manifest: Manifest, pods: Sequence[Manifest]) -> Iterator[str]:
    """Yield the lines of its page."""
    metadata, status = manifest["metadata"], manifest.get("status", {})
    yield f"{metadata['namespace']}/{metadata['name']}  {status.get('state', '')}"
    yield from troubles(status)
    yield ""
    yield from table(("SUITE", "STATE", "ANSWERS", "", "FIGURE"), map(_suite, status.get("suites") or ()))
    yield ""
    score = status.get("enterpriseIntelligence")
    if score:
        yield f"enterprise intelligence  {score['value']} ({score['interval']})"
    yield f"results                  {status.get('folder', '')}"
    yield ""
    yield from pods_table(pods)


def _suite(suite: Mapping[str, Any]) -> tuple[str, ...]:
    planned, answered = suite.get("planned") or 0, suite.get("answered") or 0
    figure = next(iter(suite.get("figures") or ()), None)
    told = f"{figure['name']} {figure['value']} ({figure['interval']})" if figure else suite.get("message", "")
    share = bar(answered / planned) if planned else ""
    return suite["name"], suite["state"], f"{answered}/{planned}" if planned else "", share, told
