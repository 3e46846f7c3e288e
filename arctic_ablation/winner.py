"""The manifest of the best variant, as a training in its own right."""

import copy
from collections.abc import Mapping

from arctic_ablation.study import Found, Study
from arctic_ablation.variants import Wire, total_tokens, training_manifest
from arctic_api.ablation import ArcticAblationSpec
from arctic_api.common import parse_tokens


def best_manifest(name: str, spec: ArcticAblationSpec, study: Study, found: Mapping[str, Found]) -> Wire | None:
    """Return the manifest of the best variant, as the ablation's own training is but for what was varied.

    Args:
        name: of the ablation.
        spec: its specification.
        study: of the ablation.
        found: what is known of its trainings; None is returned while no variant was judged.
    """
    ranks = study.ranks(found)
    if not ranks:
        return None
    run = next(run for run in study.all_runs(found) if run.variant == ranks[0].variant)
    base = spec.training.wire()
    kept = {field: base[field] for field in ("seed", "checkpoint", "evaluation") if field in base}
    training = {
        field: value for field, value in run.training.items() if field not in ("evaluation", "suspendAt")
    } | kept
    return winner(name, training, parse_tokens(spec.target.tokens) if spec.target else None)


def winner(name: str, training: Wire, target: int | None) -> Wire:
    """Return the manifest of a training with what was found best, its stages stretched to a target budget if given."""
    made = copy.deepcopy(training)
    if target is not None:
        factor = target / total_tokens(made)
        made["data"].pop("simulatedTokens", None)
        for stage in made["curriculum"]["stages"]:
            stage["tokens"] = round(parse_tokens(stage["tokens"]) * factor)
            rate = stage["learningRate"]
            if parse_tokens(rate.get("warmupTokens", 0)):
                rate["warmupTokens"] = round(parse_tokens(rate["warmupTokens"]) * factor)
    return training_manifest(f"{name}-best", made)
