"""One ablation as text: how far its trainings are, what is the best so far, what its swarm foretells. Pure."""

from collections import Counter
from collections.abc import Iterator, Sequence

from arctic_cli.status.text import Manifest, bar, pods_table, table, troubles

HEAD = ("ABLATION", "STATE", "TRAININGS", "TOKENS", "BEST")
BEST = 10
"""Variants of the ranking that are shown."""


def line_of_ablation(manifest: Manifest) -> tuple[str, ...]:
    """Return its line in a table of `HEAD`."""
    status = manifest.get("status", {})
    made = f"{_done(status)}/{status.get('planned', 0)}"
    return (
        manifest["metadata"]["name"],
        status.get("state", ""),
        made,
        f"{status.get('tokens', 0):,}",
        status.get("best", ""),
    )


def view_of_ablation(manifest: Manifest, pods: Sequence[Manifest]) -> Iterator[str]:
    """Yield the lines of its page."""
    metadata, status = manifest["metadata"], manifest.get("status", {})
    yield f"{metadata['namespace']}/{metadata['name']}  {status.get('state', '')}"
    yield from troubles(status)
    yield ""
    planned, states = status.get("planned") or 0, Counter(trial["state"] for trial in status.get("trials") or ())
    counts = ", ".join(f"{count} {state.lower()}" for state, count in states.items())
    yield f"trainings  {bar(_done(status) / planned) if planned else ''}  {counts or 'none yet'}, of {planned}"
    hours = status.get("gpuHours")
    yield f"tokens     {status.get('tokens', 0):,}{f', {hours} GPU hours' if hours else ''}"
    if folder := status.get("folder"):
        yield f"report     {folder}"
    yield from _foretold(status)
    yield ""
    ranking = status.get("ranking") or ()
    yield from table(("BEST", "OBJECTIVE", "95% INTERVAL", "TOKENS"), map(_rank, ranking[:BEST]))
    if pods:
        yield ""
        yield from pods_table(pods)


def _done(status: Manifest) -> int:
    return sum(trial["state"] == "Done" for trial in status.get("trials") or ())


def _foretold(status: Manifest) -> Iterator[str]:
    told = status.get("foretold") or ()
    if not told:
        return
    yield ""
    part = "the first half" if told[-1]["name"] == "half" else "the whole"
    yield f"foretold by {part} of the swarm"
    yield from table(("STAGE", "MIXTURE"), told[-1]["mixtures"].items())
    yield from table(
        ("CURRICULUM", "OBJECTIVE", "95% INTERVAL"),
        ((each["name"], each["objective"], each["interval"]) for each in told[-1]["forecasts"]),
    )


def _rank(rank: Manifest) -> tuple[str, ...]:
    return rank["name"], rank["objective"], rank.get("interval", ""), f"{rank['tokens']:,}"
