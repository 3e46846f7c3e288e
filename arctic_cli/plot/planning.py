"""Memory, times and rates, from what `arctic plan -o json` has written."""

from collections.abc import Iterator, Sequence
from typing import Any

from matplotlib.figure import Figure

from arctic_cli.plot.form import axes, stacked

Report = dict[str, Any]
_GB = 1e9


def of_a_service(contents: Sequence[Report]) -> Iterator[tuple[str, Figure]]:
    """Yield the figures of a service's plan."""
    [report] = contents
    yield "memory", _memory_of_ranks(report)
    if report["batches"]:
        yield "throughput", _throughput(report)
        yield "latency", _latency(report)


def of_a_training(contents: Sequence[Report]) -> Iterator[tuple[str, Figure]]:
    """Yield the figures of a training's plan."""
    [report] = contents
    parts = {part: size / _GB for part, size in report["memory"].items()}
    yield "memory", _bars(f"{_on(report)}: memory of a rank", {"a rank": parts}, report["device"]["memory"])
    steps = {stage["name"]: stage["stepAtLeast"] for stage in report["stages"] if stage["stepAtLeast"]}
    if steps:
        yield "step", _steps(report, steps)


def _on(report: Report) -> str:
    return f"{report['name']} on {report['device']['title']}"


def _memory_of_ranks(report: Report) -> Figure:
    rows = {}
    for number, rank in enumerate(report["ranks"]):
        parts = rank["weights"] | {name: rank[name] for name in ("scales", "activations", "runtime")}
        parts["keys and values"] = max(0, rank["kvBytes"])
        first, last = rank["layers"]
        rows[f"rank {number}: {first}-{last}"] = {part: size / _GB for part, size in parts.items()}
    return _bars(f"{_on(report)}: memory of a device", rows, report["ranks"][0]["memory"])


def _bars(title: str, rows: dict[str, dict[str, float]], memory: float | None) -> Figure:
    figure, made = axes(title, "GB (1e9 bytes)", "", 2.6 + 0.3 * len(rows))
    if memory is not None:
        made.axvline(memory / _GB, color="black", linestyle="--", linewidth=1, label="there is")
    stacked(made, rows)
    return figure


def _throughput(report: Report) -> Figure:
    figure, made = axes(f"{_on(report)}: a group's rate, at most", "requests at once", "tokens/s")
    made.plot(*_points(report, "tokensPerSecondLimit"), color="0.8", zorder=0)
    for bound in ("memory", "arithmetic"):
        points = [each for each in report["batches"] if each["bound"] == bound]
        if points:
            found = zip(*((each["batch"], each["tokensPerSecondLimit"]) for each in points), strict=True)
            made.plot(*found, "o", label=f"bound by {bound}")
    made.set(xscale="log", yscale="log")
    made.legend()
    return figure


def _latency(report: Report) -> Figure:
    figure, made = axes(f"{_on(report)}: between a request's tokens, at least", "requests at once", "ms")
    batches, seconds = _points(report, "seconds")
    made.plot(batches, [1e3 * each for each in seconds], "o-", label="a step")
    _, between = _points(report, "lines")
    if any(between):
        made.plot(batches, [1e3 * each for each in between], "o-", label="of it between ranks")
    made.set(xscale="log")
    made.set_ylim(bottom=0)
    made.legend()
    return figure


def _points(report: Report, field: str) -> tuple[list[int], list[float]]:
    return [each["batch"] for each in report["batches"]], [each[field] for each in report["batches"]]


def _steps(report: Report, steps: dict[str, dict[str, float]]) -> Figure:
    called = {
        "compute": "arithmetic",
        "exposed": "experts' exchange that nothing hides",
        "sequence": "exchange of sequences",
        "reduction": "gradients and weights",
        "optimizer": "optimizer",
    }
    rows = {name: {words: step[part] for part, words in called.items()} for name, step in steps.items()}
    figure, made = axes(f"{_on(report)}: a step, at least", "seconds", "", 1.4 + 0.5 * len(rows))
    stacked(made, rows)
    return figure
