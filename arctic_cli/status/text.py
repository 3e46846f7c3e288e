"""Tables and lines for people. Pure."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from arctic_api.world import Label

Manifest = Mapping[str, Any]
GOOD = {"Degraded": "False"}
"""Status of a condition in which nothing is to be said of it, where that is not True."""
BAR = 20


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Yield the lines of a table; nothing if it has no rows."""
    lines = [list(row) for row in rows]
    if not lines:
        return
    widths = [max(len(line[column]) for line in [list(head), *lines]) for column in range(len(head))]
    for line in [list(head), *lines]:
        yield "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()


def bar(share: float) -> str:
    """Return a bar of which a share, from 0 to 1, is full."""
    full = round(min(1.0, max(0.0, share)) * BAR)
    return "#" * full + "." * (BAR - full)


def ago(moment: str, now: datetime) -> str:
    """Return how long ago a time of Kubernetes' is."""
    return f"{short(now - datetime.fromisoformat(moment))} ago"


def short(span: timedelta) -> str:
    """Return a duration in its two largest units."""
    seconds = max(0, int(span.total_seconds()))
    parts = [(seconds // 86400, "d"), (seconds // 3600 % 24, "h"), (seconds // 60 % 60, "m"), (seconds % 60, "s")]
    first = next((number for number, (amount, _) in enumerate(parts) if amount), len(parts) - 1)
    return " ".join(f"{amount}{unit}" for amount, unit in parts[first : first + 2] if amount or unit == "s")


def troubles(status: Manifest) -> Iterator[str]:
    """Yield what conditions say that a person should read: what is wrong, or how it ended."""
    for condition in status.get("conditions") or ():
        kind, holds = condition["type"], condition["status"]
        if kind in ("Degraded", "Failed") and holds == "True":
            yield f"{kind} ({condition['reason']}): {condition.get('message', '')}"


def pods_table(pods: Iterable[Manifest]) -> Iterator[str]:
    """Yield a table of pods."""
    yield from table(("POD", "ROLE", "NODE", "PHASE", "READY"), (_pod(pod) for pod in pods))


def _pod(pod: Manifest) -> tuple[str, ...]:
    status = pod.get("status", {})
    ready = any(each["type"] == "Ready" and each["status"] == "True" for each in status.get("conditions") or ())
    labels = pod["metadata"].get("labels", {})
    return (
        pod["metadata"]["name"],
        labels.get(Label.ROLE, ""),
        pod.get("spec", {}).get("nodeName", ""),
        status.get("phase", ""),
        "yes" if ready else "no",
    )
