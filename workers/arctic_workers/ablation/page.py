"""An ablation as one HTML page, with nothing outside it."""

import io
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from arctic_workers import evaluation, training
from arctic_workers.ablation.drawing import effects, intervals
from arctic_workers.training.report.drawing import lines, short
from arctic_workers.training.report.page import table

_STYLES = tuple(Path(room.__path__[0]) / "report" / "style.css" for room in (training, evaluation))
_DRAWN = 8
"""Curves of a figure: those that came furthest."""

Results = Mapping[str, Any]


def page(results: Results) -> str:
    """Return what `arctic_ablation.results` found as HTML."""
    style = "".join(path.read_text() for path in _STYLES)
    sections = [
        _tiles(results),
        _section("Ranking", [_ranking(results), _ranks(results)]),
        _section("Foretold and confirmed", _swarm(results)),
        _section("Curves", [_curves(results)]),
        _section("More tokens", _scaling(results)),
        _section("Failed", [_failed(results)]),
        _section("The best as a training", [_best(results)]),
    ]
    name = escape(results["name"])
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{name}</title><style>{style}</style></head><body><h1>{name}</h1><p>{escape(_judged_by(results))}</p>"
        f"{''.join(sections)}</body></html>\n"
    )


def _section(title: str, parts: Sequence[str]) -> str:
    body = "".join(part for part in parts if part)
    return f"<h2>{escape(title)}</h2>{body}" if body else ""


def _judged_by(results: Results) -> str:
    weights = ", ".join(f"{category} x {weight:g}" for category, weight in results["objective"].items())
    state = "" if results["whole"] else " Not all is trained yet."
    if results["more is better"]:
        return f"The objective is the mean of the suites' figures, from 0 to 1: {weights}. More is better.{state}"
    objective = "The objective is the mean of log perplexity on held-out text, in nats a token"
    return f"{objective}: {weights}. Less is better.{state}"


def _tiles(results: Results) -> str:
    tiles = {
        "tokens trained": short(results["tokens"]),
        "if nothing were stopped early": short(results["tokens of all"]),
    }
    if results["ranking"]:
        best = results["ranking"][0]
        tiles = {f"best: {best['variant']}": f"{best['objective']:.4f}", **tiles}
    drawn = "".join(f"<div><b>{escape(value)}</b><span>{escape(name)}</span></div>" for name, value in tiles.items())
    return f'<div class="tiles">{drawn}</div>'


def _ranking(results: Results) -> str:
    furthest = max((rank["tokens"] for rank in results["ranking"]), default=0)
    there = [rank for rank in results["ranking"] if rank["tokens"] == furthest]
    rows = [(rank["variant"], (rank["objective"], *(rank["interval"] or (-math.inf, math.inf))), ()) for rank in there]
    return intervals(f"After {furthest:,} tokens", f"{results['unit']}, with 95% intervals over seeds", rows)


def _ranks(results: Results) -> str:
    rows = [
        [
            rank["variant"],
            f"{rank['tokens']:,}",
            f"{rank['objective']:.4f}",
            _interval(rank["interval"]),
            str(rank["seeds"]),
        ]
        for rank in results["ranking"]
    ]
    return table(["variant", "tokens", "objective", "95% interval", "seeds"], rows, (1, 2, 3, 4))


def _interval(ends: Sequence[float] | None) -> str:
    return f"{ends[0]:.4f} to {ends[1]:.4f}" if ends else "one seed"


def _swarm(results: Results) -> list[str]:
    swarm = results.get("swarm")
    if swarm is None:
        return []
    forecasts = swarm["forecasts"]
    rows = [
        (name, (each["value"], each["low"], each["high"]), swarm["confirmed"].get(name, ()))
        for name, each in forecasts.items()
    ]
    sources = list(next(iter(swarm["foretold"].values())))
    mixtures = [[stage, *(f"{weight:.0%}" for weight in row.values())] for stage, row in swarm["foretold"].items()]
    by_stage: dict[str, dict[str, tuple[float, float]]] = {}
    for effect in swarm["effects"]:
        by_stage.setdefault(effect["stage"], {})[effect["source"]] = (effect["change"], effect["deviation"])
    errors = swarm["errors"]
    within = sum(abs(error) <= 1.96 * swarm["widening"] for error in errors)
    test = (
        f"Each of {len(errors)} runs foretold by a fit that has not seen it: {within} within 1.96 standard deviations, "
        f"which were made {swarm['widening']:.2f} times as large for that."
    )
    return [
        intervals("Foretold", "with 95% intervals of all runs that confirm; orange: these runs", rows),
        f"<p>{escape(test)}</p>",
        table(["foretold as the best: stage", *sources], mixtures, range(1, 1 + len(sources))),
        effects(by_stage, results["unit"], more_is_better=results["more is better"]),
    ]


def _curves(results: Results) -> str:
    sign = -1 if results["more is better"] else 1
    furthest = sorted(
        results["curves"].items(), key=lambda item: (-len(item[1]), sign * item[1][-1][1] if item[1] else 0.0)
    )
    series = {name: [(tokens, value) for tokens, value in points] for name, points in furthest[:_DRAWN]}
    drawn = f"{results['unit']}, over tokens; {len(series)} of {len(results['curves'])} trainings"
    return lines("Objective", drawn, series)


def _scaling(results: Results) -> list[str]:
    law = results["scaling"]
    if law is None:
        return []
    low, high = law["exponent interval"]
    said = (
        f"A power law through the curve of {law['variant']}: {law['floor']:.4f} + c x tokens ^ -{law['exponent']:.3f}, "
        f"the exponent between {low:.3f} and {high:.3f}."
    )
    if "target" in law:
        tokens, value, least, most = law["target"]
        said += f" With {tokens:,} tokens it says {value:.4f}, between {least:.4f} and {most:.4f}."
    said += " Points of one training have not come to the end of its learning rate: it says less than that end will."
    series = {
        "trained": [(tokens, value) for tokens, value in law["points"]],
        "law": [(tokens, value) for tokens, value, _, _ in law["line"]],
    }
    return [lines("Power law", "nats a token, over tokens", series), f"<p>{escape(said)}</p>"]


def _failed(results: Results) -> str:
    return table(["training", "why"], [[name, why] for name, why in results["failed"].items()])


def _best(results: Results) -> str:
    if results["best"] is None:
        return ""
    stream = io.StringIO()
    YAML(typ="safe", pure=True).dump(results["best"], stream)
    return f"<pre>{escape(stream.getvalue())}</pre>"
