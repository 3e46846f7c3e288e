"""One inference service as text: groups, queue, latency, rollout, what is wrong. Pure."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from arctic_cli.status.text import Manifest, pods_table, troubles

HEAD = ("SERVICE", "STATE", "READY", "DESIRED", "TOKENS/S", "URL")


def line_of_service(manifest: Manifest) -> tuple[str, ...]:
    """Return its line in a table of `HEAD`."""
    status = manifest.get("status", {})
    fields = ("state", "readyReplicas", "desiredReplicas", "tokensPerSecond", "url")
    return (manifest["metadata"]["name"], *(_text(status.get(field)) for field in fields))


def view_of_service(manifest: Manifest, pods: Sequence[Manifest]) -> Iterator[str]:
    """Yield the lines of its page."""
    status = manifest.get("status", {})
    yield (
        f"{manifest['metadata']['namespace']}/{manifest['metadata']['name']}  {_text(status.get('state'))}"
        f"  {_text(status.get('url'))}"
    )
    yield from troubles(status)
    yield ""
    yield from (f"{name:<9}{value}" for name, value in _figures(status) if value)
    yield ""
    yield from pods_table(pods)


def _figures(status: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    groups = [
        f"{status.get(field) or 0} {word}"
        for field, word in (("readyReplicas", "ready"), ("replicas", "there"), ("desiredReplicas", "asked for"))
    ]
    updated = status.get("updatedReplicas") or 0
    if updated != (status.get("replicas") or 0):
        groups.append(f"{updated} of the newest revision")
    yield "groups", ", ".join(groups)
    yield "revision", _text(status.get("revision"))
    canary = status.get("canary")
    yield "canary", f"{canary['revision']} {canary['verdict']}: {canary['message']}" if canary else ""
    request = status.get("drainRequest") or {}
    yield "drain", request["message"] if request.get("state") == "Draining" else ""
    yield "requests", _with(status, ("requestsPerSecond", "{} a second"), ("queued", "{} waiting"))
    yield "latency", _with(status, ("ttftP99", "first token within {} (p99)"), ("tokensPerSecond", "{:,} tokens/s"))
    yield "cache", _with(status, ("kvCacheUtilization", "{} in use"))
    scaling = status.get("scaling")
    yield "scaling", f"{scaling['message']} ({scaling['reason']})" if scaling else ""


def _with(status: Mapping[str, Any], *parts: tuple[str, str]) -> str:
    return ", ".join(form.format(status[field]) for field, form in parts if status.get(field) is not None)


def _text(value: object) -> str:
    return "" if value is None else str(value)
