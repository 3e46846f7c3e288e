"""What a schema cannot say of an ArcticAblation."""

import math
from typing import get_args

from arctic_api.ablation import MAX_NAME, MAX_TRIALS, ArcticAblation, ArcticAblationSpec, Objective
from arctic_api.common import parse_tokens
from arctic_api.rule import Judge, Rule
from arctic_api.training import OWN_SUITES, Category, Suite

CATEGORIES = get_args(Category)
SUITES = tuple(suite for suite in get_args(Suite) if suite not in OWN_SUITES)
"""Of questions and answers."""


def _first_rung_has_tokens(spec: ArcticAblationSpec) -> bool:
    return spec.halving is None or parse_tokens(spec.halving.first) > 0


def _has_data_of_suites(spec: ArcticAblationSpec) -> bool:
    evaluation = spec.training.evaluation
    data = (evaluation.data if evaluation else None) or []
    return (spec.objective.suites or {}).keys() <= {one.name for one in data}


def _trials(spec: ArcticAblationSpec) -> int:
    """Return how many trainings a grid or a list of changes has."""
    variants = math.prod(len(axis.values) for axis in spec.grid or ()) if spec.grid else len(spec.changes or ()) + 1
    return variants * spec.seeds


ABLATION_RULES = (
    Rule(
        Objective,
        "has(self.perplexity) != has(self.suites)",
        lambda objective: (objective.perplexity is None) != (objective.suites is None),
        "write exactly one of perplexity and suites",
    ),
    Rule(
        Objective,
        f"!has(self.perplexity) || self.perplexity.all(name, name in [{', '.join(map(repr, CATEGORIES))}])",
        lambda objective: (objective.perplexity or {}).keys() <= set(CATEGORIES),
        f"there is no such category: write {', '.join(CATEGORIES[:-1])} or {CATEGORIES[-1]}",
        ".perplexity",
    ),
    Rule(
        Objective,
        f"!has(self.suites) || self.suites.all(name, name in [{', '.join(map(repr, SUITES))}])",
        lambda objective: (objective.suites or {}).keys() <= set(SUITES),
        f"there is no such suite: write {', '.join(SUITES[:-1])} or {SUITES[-1]}",
        ".suites",
    ),
    Rule(
        ArcticAblationSpec,
        "!has(self.objective.suites) || (has(self.training.evaluation) && has(self.training.evaluation.data) && "
        "self.objective.suites.all(name, self.training.evaluation.data.exists(one, one.name == name)))",
        _has_data_of_suites,
        "a suite takes data: write where they are in training.evaluation.data",
        ".objective.suites",
    ),
    Rule(
        ArcticAblation,
        f"size(self.metadata.name) <= {MAX_NAME}",
        lambda manifest: len(manifest.metadata.name) <= MAX_NAME,
        f"write at most {MAX_NAME} characters: its trainings' names append nine to it",
    ),
    Rule(
        ArcticAblationSpec,
        "[has(self.grid), has(self.changes), has(self.mixture)].filter(present, present).size() == 1",
        lambda spec: [spec.grid, spec.changes, spec.mixture].count(None) == 2,
        "write exactly one of grid, changes and mixture",
    ),
    Rule(
        ArcticAblationSpec,
        Judge.OPERATOR,  # CEL multiplies no list
        lambda spec: _trials(spec) <= MAX_TRIALS,
        f"write at most {MAX_TRIALS} trainings: fewer values, changes or seeds",
        ".seeds",
    ),
    Rule(
        ArcticAblationSpec,
        "!has(self.mixture) || !has(self.halving)",
        lambda spec: spec.mixture is None or spec.halving is None,
        "a swarm learns from whole runs, so none is stopped early: leave it out",
        ".halving",
    ),
    Rule(
        ArcticAblationSpec,
        "!has(self.mixture) || self.seeds == 1",
        lambda spec: spec.mixture is None or spec.seeds == 1,
        "each run of a swarm has a seed of its own: leave it out",
        ".seeds",
    ),
    Rule(
        ArcticAblationSpec,
        "!has(self.mixture) || !has(self.mixture.around) || "
        "self.mixture.around.all(name, self.training.data.sources.exists(source, source.name == name))",
        lambda spec: (
            spec.mixture is None
            or spec.mixture.around is None
            or spec.mixture.around.keys() <= {source.name for source in spec.training.data.sources}
        ),
        "there is no such source: write names of training.data.sources",
        ".mixture.around",
    ),
    Rule(
        ArcticAblationSpec,
        "!has(self.halving) || (type(self.halving.first) == int ? int(self.halving.first) > 0 : "
        "!self.halving.first.matches('^0+([.]0+)?[kMGT]?$'))",
        _first_rung_has_tokens,
        "a rung without tokens judges nothing: write at least the tokens of a step",
        ".halving.first",
    ),
)
