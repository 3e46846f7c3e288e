"""`arctic ablate --dry-run`: runs, tokens, time and cost, before anything starts."""

from arctic_ablation.ranking import cost, figures_of
from arctic_ablation.study import Found, Point, Study, VariantStudy
from arctic_ablation.variants import total_tokens
from arctic_api.ablation import ArcticAblationSpec
from arctic_api.common import parse_tokens
from arctic_cli.forecast import device_time


def describe(spec: ArcticAblationSpec, study: Study, rate: float | None) -> str:
    """Return what an ablation will train and take.

    Args:
        spec: of the ablation.
        study: of the ablation.
        rate: tokens a second of one training; None where none is given.
    """
    most = study.grid_tokens()
    lines = _runs(spec, study)
    tokens = _with_halving(study) if isinstance(study, VariantStudy) and spec.halving else most
    if tokens < most:
        lines.append(f"{tokens:,} tokens of {most:,}, if the order at the first rung holds; it may change")
    else:
        lines.append(f"{most:,} tokens")
    if spec.budget is not None:
        tokens = min(tokens, parse_tokens(spec.budget))
        lines.append(f"at most {parse_tokens(spec.budget):,} tokens, as the budget says")
    if spec.objective.suites:
        lines.append(f"each is evaluated where it rests, which comes on top: {', '.join(spec.objective.suites)}")
    if rate is not None:
        hours = tokens / rate / 3600
        at_once = f"{hours / spec.parallelism:,.2f} hours, {spec.parallelism} at a time"
        lines.append(f"{at_once}; {device_time(spec.training, hours)}")
    return "\n".join(lines)


def _runs(spec: ArcticAblationSpec, study: Study) -> list[str]:
    if isinstance(study, VariantStudy):
        names = list(study.runs)
        shown = [f"{len(names)} variants with {spec.seeds} seeds each: {len(names) * spec.seeds} trainings"]
        shown += [f"  {name}" for name in names]
        if spec.halving is not None:
            shown.append("rungs at " + ", ".join(f"{rung:,}" for rung in study.rungs) + " tokens")
        return shown
    assert spec.mixture is not None
    each = total_tokens(spec.training.wire())
    return [
        f"a swarm of {spec.mixture.runs} trainings of {each:,} tokens, the second half around what the first "
        f"foretells, then {3 * spec.mixture.confirm} to confirm it"
    ]


def _with_halving(study: VariantStudy) -> int:
    """Return what halving takes if the first variants are the best at each rung: nobody is promoted in vain."""
    places = {run.name: place for place, runs in enumerate(study.runs.values()) for run in runs}
    found: dict[str, Found] = {}
    objective = study.spec.objective
    while steps := study.steps(found):
        step = steps[0]
        before = found.get(step.run.name, Found()).points
        told = figures_of(objective, cost(objective, places[step.run.name]))
        found[step.run.name] = Found((*before, Point(min(step.tokens, step.run.total), told)))
    return sum(each.tokens for each in found.values())
