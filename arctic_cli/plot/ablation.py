"""An ablation's ranking, curves, power law, forecasts and effects, from its `results.json`."""

from collections.abc import Iterator, Sequence
from typing import Any

from matplotlib.figure import Figure

from arctic_cli.plot.form import axes, intervals, names

Results = dict[str, Any]
_RANKED, _CURVES = 20, 8
"""Variants, and curves, that a figure has room for: the best."""


def figures(contents: Sequence[Results]) -> Iterator[tuple[str, Figure]]:
    """Yield the figures of one ablation."""
    [results] = contents
    if results["ranking"]:
        yield "ranking", _ranking(results)
    if any(results["curves"].values()):
        yield "curves", _curves(results)
    if results["scaling"]:
        yield "scaling", _scaling(results)
    if "swarm" in results:
        yield "foretold", _foretold(results)
        yield "effects", _effects(results)


def _ranking(results: Results) -> Figure:
    furthest = results["ranking"][0]["tokens"]
    ranks = [rank for rank in results["ranking"] if rank["tokens"] == furthest][:_RANKED]
    rows = {rank["variant"]: (rank["objective"], *(rank["interval"] or [rank["objective"]] * 2)) for rank in ranks}
    title = f"{results['name']}: after {furthest:,} tokens, with 95% intervals over seeds"
    figure, made = axes(title, _objective(results), "", 1.2 + 0.28 * len(rows))
    intervals(made, rows)
    return figure


def _objective(results: Results) -> str:
    weights = ", ".join(f"{name} x {weight:g}" for name, weight in results["objective"].items())
    return f"{results['unit']}: {weights}"


def _curves(results: Results) -> Figure:
    sign = -1 if results["more is better"] else 1
    there = {name: points for name, points in results["curves"].items() if points}
    best = sorted(there.items(), key=lambda item: (-len(item[1]), sign * item[1][-1][1]))[:_CURVES]
    title = f"{results['name']}: {len(best)} of {len(results['curves'])} trainings"
    figure, made = axes(title, "tokens", _objective(results))
    for name, points in best:
        made.plot(*zip(*points, strict=True), label=name, marker=".")
    made.legend(fontsize="small")
    return figure


def _scaling(results: Results) -> Figure:
    law = results["scaling"]
    figure, made = axes(f"{results['name']}: a power law through {law['variant']}", "tokens", _objective(results))
    made.plot(*zip(*law["points"], strict=True), ".", label="trained")
    line = law["line"] + ([law["target"]] if "target" in law else [])
    tokens, values, low, high = zip(*sorted(line), strict=True)
    made.plot(tokens, values, label=f"{law['floor']:.3g} + c x tokens ^ -{law['exponent']:.3g}")
    made.fill_between(tokens, low, high, alpha=0.2, label="95% interval")
    made.set_xscale("log")
    made.legend()
    return figure


def _foretold(results: Results) -> Figure:
    forecasts, confirmed = results["swarm"]["forecasts"], results["swarm"]["confirmed"]
    title = f"{results['name']}: foretold, and what runs with other seeds came to"
    figure, made = axes(title, _objective(results), "", 1.8)
    intervals(made, {name: (one["value"], one["low"], one["high"]) for name, one in forecasts.items()}, "foretold")
    came = [(value, place) for place, name in enumerate(forecasts) for value in confirmed.get(name, ())]
    if came:
        made.plot(*zip(*came, strict=True), "D", markersize=4, label="came to")
    made.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def _effects(results: Results) -> Figure:
    told = results["swarm"]["effects"]
    stages, sources = (list(dict.fromkeys(each[part] for each in told)) for part in ("stage", "source"))
    cells = {(each["stage"], each["source"]): each for each in told}
    changes = [[cells[stage, source]["change"] for source in sources] for stage in stages]
    most = max(abs(change) for row in changes for change in row) or 1.0
    title = f"{results['name']}: what more of a source in a stage changes ({results['unit']})"
    figure, made = axes(title, "", "", 1.0 + 0.5 * len(stages))
    helps = "RdBu" if results["more is better"] else "RdBu_r"
    made.imshow(changes, cmap=helps, vmin=-most, vmax=most, aspect="auto", alpha=0.7)
    made.set_xticks(range(len(sources)), sources)
    names(made, stages)
    for row, stage in enumerate(stages):
        for column, source in enumerate(sources):
            cell = cells[stage, source]
            words = f"{cell['change']:+.3f}\n± {cell['deviation']:.3f}"
            made.text(column, row, words, ha="center", va="center", fontsize="small")
    return figure
