"""What an ablation has found, as plain data: for its report, its status and whoever reads it by a program."""

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, cast

from arctic_ablation.ranking import Rank, objective, unit
from arctic_ablation.scaling import fit
from arctic_ablation.study import Found, Study
from arctic_ablation.winner import best_manifest
from arctic_api.ablation import ArcticAblationSpec
from arctic_api.common import parse_tokens

if TYPE_CHECKING:
    from arctic_ablation.swarm.study import SwarmStudy  # which needs numpy

Results = dict[str, Any]


def results(name: str, spec: ArcticAblationSpec, study: Study, found: Mapping[str, Found], *, whole: bool) -> Results:
    """Return all that an ablation says; `whole` is whether nothing is left to be trained.

    Args:
        name: of the ablation.
        spec: its specification.
        study: of the ablation.
        found: what is known of its trainings.
    """
    runs, ranks = study.all_runs(found), study.ranks(found)
    made: Results = {
        "name": name,
        "whole": whole,
        "objective": dict(spec.objective.suites or spec.objective.perplexity or {}),
        "unit": unit(spec.objective),
        "more is better": spec.objective.more_is_better,
        "tokens": sum(each.tokens for each in found.values()),
        "tokens of all": study.grid_tokens(),
        "ranking": [_rank(rank) for rank in ranks],
        "curves": {
            f"{run.variant}, seed {run.seed}": [
                [point.tokens, objective(spec.objective, point.figures)] for point in found[run.name].points
            ]
            for run in runs
            if run.name in found
        },
        "failed": {run.name: found[run.name].failed for run in runs if run.name in found and found[run.name].failed},
        "best": best_manifest(name, spec, study, found),
        "scaling": _scaling(spec, study, ranks, found),
    }
    if spec.mixture is not None and cast("SwarmStudy", study).is_foretold(found):
        made["swarm"] = _swarm(cast("SwarmStudy", study), found)
    return made


def _rank(rank: Rank) -> Results:
    mean = rank.mean
    known = math.isfinite(mean.low)
    interval = [mean.low, mean.high] if known else None
    return {
        "variant": rank.variant,
        "tokens": rank.tokens,
        "objective": mean.value,
        "interval": interval,
        "seeds": mean.seeds,
    }


def _scaling(spec: ArcticAblationSpec, study: Study, ranks: list[Rank], found: Mapping[str, Found]) -> Results | None:
    """Return a power law through the curves of the best variant, and what it says of the target; of losses alone."""
    if not ranks or spec.objective.more_is_better:
        return None
    runs = [run for run in study.all_runs(found) if run.variant == ranks[0].variant and run.name in found]
    points = [
        (float(point.tokens), objective(spec.objective, point.figures))
        for run in runs
        for point in found[run.name].points
    ]
    law = fit(points)
    if law is None:
        return None
    made: Results = {
        "variant": ranks[0].variant,
        "floor": law.floor,
        "exponent": law.exponent,
        "exponent interval": law.exponent_interval(),
        "points": sorted(points),
        "line": [[tokens, *law.at(tokens)] for tokens in sorted({tokens for tokens, _ in points})],
    }
    if spec.target is not None:
        tokens = parse_tokens(spec.target.tokens)
        made["target"] = [tokens, *law.at(tokens)]
    return made


def _swarm(study: "SwarmStudy", found: Mapping[str, Found]) -> Results:
    outlook, tested = study.foretell("whole", found), study.tests(found)
    total = {name: runs[0].total for name, runs in tested.items()}
    confirmed = {
        name: [
            objective(study.spec.objective, point.figures)
            for run in runs
            if (point := found.get(run.name, Found()).at(total[name]))
        ]
        for name, runs in tested.items()
    }
    rows = zip(study.space.stages, outlook.weights, strict=True)
    return {
        "foretold": {stage: study.space.named(row) for stage, row in rows},
        "forecasts": {name: asdict(forecast) for name, forecast in outlook.forecasts.items()},
        "confirmed": confirmed,
        "errors": list(outlook.errors),
        "widening": outlook.widening,
        "effects": [asdict(effect) for effect in outlook.effects],
    }
