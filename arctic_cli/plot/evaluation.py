"""Scores and failures of models, from the `results.json` of their evaluations."""

from collections.abc import Iterator, Sequence
from typing import Any

from matplotlib.figure import Figure

from arctic_cli.plot.form import Interval, axes, intervals, stacked
from arctic_workers.evaluation.scores import TOTAL

Results = dict[str, Any]


def figures(contents: Sequence[Results]) -> Iterator[tuple[str, Figure]]:
    """Yield the figures of one model's evaluation, or of several models' side by side."""
    scores = {_called(number, each, contents): _scores(each) for number, each in enumerate(contents)}
    if any(scores.values()):
        yield "scores", _drawn("Scores, with 95% intervals over questions", "share of right answers", scores)
    read = {_called(number, each, contents): _perplexities(each) for number, each in enumerate(contents)}
    if any(read.values()):
        yield "perplexities", _drawn("Perplexities, with 95% intervals over texts", "perplexity, less is better", read)
    for number, each in enumerate(contents):
        failures = {name: suite["failures"] for name, suite in each["suites"].items() if suite.get("failures")}
        if failures:
            ending = f"-{number + 1}" if len(contents) > 1 else ""
            figure, made = axes(f"{each['model']}: failures by kind", "answers", "", 1.4 + 0.5 * len(failures))
            stacked(made, failures)
            yield f"failures{ending}", figure


def _called(number: int, results: Results, contents: Sequence[Results]) -> str:
    """Return a model's name, with a number where others are called so too."""
    name: str = results["model"]
    return name if [each["model"] for each in contents].count(name) == 1 else f"{name} ({number + 1})"


def _interval(score: Results) -> Interval:
    return score["value"], score["low"], score["high"]


def _scores(results: Results) -> dict[str, Interval]:
    asked = {name: suite for name, suite in results["suites"].items() if "main figure" in suite}
    rows = {
        f"{name}, {suite['main figure']}": _interval(suite["figures"][suite["main figure"]])
        for name, suite in asked.items()
    }
    total = results[TOTAL]
    return rows | ({TOTAL: _interval(total)} if "value" in total else {})


def _perplexities(results: Results) -> dict[str, Interval]:
    figures = results["suites"].get("perplexity", {}).get("figures", {})
    return {name: _interval(score) for name, score in figures.items()}


def _drawn(title: str, unit: str, models: dict[str, dict[str, Interval]]) -> Figure:
    """Return a figure in which models are side by side, where each has a figure of that name."""
    rows = list(dict.fromkeys(name for found in models.values() for name in found))
    figure, made = axes(title, unit, "", 1.2 + 0.3 * len(rows) * (1 + 0.3 * (len(models) - 1)))
    nothing = (float("nan"),) * 3
    for number, (model, found) in enumerate(models.items()):
        offset = 0.5 * ((number + 0.5) / len(models) - 0.5)
        intervals(made, {name: found.get(name, nothing) for name in rows}, model, offset)
    if len(models) > 1:
        made.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return figure
