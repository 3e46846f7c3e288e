"""One training as text: stages, loss, speed, checkpoint, what is wrong. Pure."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from arctic_api.training import Restart
from arctic_cli.status.text import Manifest, ago, bar, pods_table, short, table, troubles

HEAD = ("TRAINING", "STATE", "STAGE", "STEP", "LOSS", "TOKENS/S")


def line_of_training(manifest: Manifest) -> tuple[str, ...]:
    """Return its line in a table of `HEAD`."""
    status = manifest.get("status", {})
    fields = ("state", "stage", "step", "loss", "tokensPerSecond")
    return (manifest["metadata"]["name"], *(_text(status.get(field)) for field in fields))


def view_of_training(manifest: Manifest, pods: Sequence[Manifest], now: datetime) -> Iterator[str]:
    """Yield the lines of its page."""
    status, spec = manifest.get("status", {}), manifest["spec"]
    limit = spec.get("restart", {}).get("limit", Restart().limit)
    yield (
        f"{manifest['metadata']['namespace']}/{manifest['metadata']['name']}  {_text(status.get('state'))}"
        f"  attempt {_text(status.get('attempt'))}, {status.get('restarts') or 0} of {limit} restarts"
    )
    yield from troubles(status)
    yield ""
    yield from table(("STAGE", "TOKENS", "OF", "", "HELD-OUT LOSS"), map(_stage, status.get("stages") or ()))
    yield ""
    yield from (f"{name:<11}{value}" for name, value in _figures(status, now) if value)
    yield ""
    yield from pods_table(pods)


def _stage(stage: Mapping[str, Any]) -> tuple[str, ...]:
    done, budget = stage.get("tokens", 0), stage["budget"]
    losses = [stage[field] for field in ("initialValidationLoss", "validationLoss") if field in stage]
    return stage["name"], f"{done:,}", f"{budget:,}", bar(done / budget), " -> ".join(losses)


def _figures(status: Mapping[str, Any], now: datetime) -> Iterator[tuple[str, str]]:
    sources = ", ".join(f"{each['name']} {each['loss']}" for each in status.get("lossBySource") or ())
    yield "loss", _joined(status.get("loss"), sources and f"({sources})")
    yield (
        "speed",
        _joined(
            _unit(status.get("tokensPerSecond"), "tokens/s"),
            status.get("mfu") and f"MFU {status['mfu']}",
            status.get("eta") and f"done in {short(datetime.fromisoformat(status['eta']) - now)}",
        ),
    )
    shares = sorted((status.get("timeShares") or {}).items(), key=lambda item: -float(item[1]))
    yield "time", ", ".join(f"{part} {float(share):.0%}" for part, share in shares if float(share) >= 0.005)
    yield "planned", _planned(status)
    yield "cost", _joined(_unit(status.get("gpuHours"), "GPU hours"), _unit(status.get("costUSD"), "USD"))
    last = status.get("lastCheckpoint")
    yield "checkpoint", f"step {last['step']}, {ago(last['time'], now)}: {last['uri']}" if last else ""
    yield "export", (status.get("export") or {}).get("uri", "")


def _planned(status: Mapping[str, Any]) -> str:
    """Return what it was to take, as it was said before the start."""
    tokens, memory = status.get("plannedTokens"), status.get("plannedMemory")
    return _joined(
        tokens and f"{tokens:,} tokens in {status['plannedSteps']:,} steps",
        memory and f"{memory} a rank",
        status.get("plannedTime"),
        _unit(status.get("plannedCostUSD"), "USD"),
    )


def _unit(value: object, unit: str) -> str:
    return f"{value:,} {unit}" if isinstance(value, int) else f"{value} {unit}" if value else ""


def _joined(*parts: str | None) -> str:
    return "  ".join(part for part in parts if part)


def _text(value: object) -> str:
    return "" if value is None else str(value)
