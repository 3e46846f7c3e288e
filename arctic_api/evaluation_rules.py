"""What a schema cannot say of an ArcticEvaluation."""

from arctic_api.evaluation import ArcticEvaluationSpec, EvaluatedModel
from arctic_api.rule import Rule

_FIXED = ("model", "suites", "samples", "temperature", "seed", "results")
"""What scores follow from, and is always there."""


def _asks_the_same(new: ArcticEvaluationSpec, old: ArcticEvaluationSpec) -> bool:
    return all(getattr(new, field) == getattr(old, field) for field in (*_FIXED, "api"))


EVALUATION_RULES = (
    Rule(
        EvaluatedModel,
        "[has(self.training), has(self.uri), has(self.service), has(self.endpoint)]"
        ".filter(present, present).size() == 1",
        lambda model: [model.training, model.uri, model.service, model.endpoint].count(None) == 3,
        "write exactly one of training, uri, service and endpoint",
    ),
    Rule(
        EvaluatedModel,
        "!has(self.stage) || has(self.training)",
        lambda model: model.stage is None or model.training is not None,
        "a stage is one of a training: name that too, or leave it out",
        ".stage",
    ),
    Rule(
        EvaluatedModel,
        "!has(self.credentials) || has(self.service) || has(self.endpoint)",
        lambda model: model.credentials is None or model.service is not None or model.endpoint is not None,
        "weights take no key: leave it out",
        ".credentials",
    ),
    Rule(
        ArcticEvaluationSpec,
        "self.samples == 1 || self.temperature > 0.0",
        lambda spec: spec.samples == 1 or spec.temperature > 0,
        "several samples take a temperature above 0: answers are all alike there",
        ".temperature",
    ),
    Rule(
        ArcticEvaluationSpec,
        " && ".join(f"self.{field} == oldSelf.{field}" for field in _FIXED)
        + " && (has(self.api) ? has(oldSelf.api) && self.api == oldSelf.api : !has(oldSelf.api))",
        _asks_the_same,
        "what scores follow from can't change: make another object",
        transition=True,
    ),
)
