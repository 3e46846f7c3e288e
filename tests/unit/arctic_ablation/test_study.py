"""What an ablation trains next, over whole lives with made-up losses, interrupted anywhere."""

import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from arctic_ablation.ranking import Mean, objective, ranking, why_unjudged
from arctic_ablation.scaling import fit
from arctic_ablation.study import Found, Point, VariantStudy, affordable
from arctic_ablation.variants import VariantError
from arctic_api.ablation import ArcticAblationSpec, Objective
from arctic_workers.evaluation.scores import ENTERPRISE, Parts, enterprise_intelligence


def advance(study: VariantStudy, found: dict[str, Found], losses: dict[str, float]) -> bool:
    """Take the step that is wanted most; returns whether there was one."""
    steps = study.steps(found)
    if not steps:
        return False
    step = steps[0]
    loss = losses[step.run.variant] + 0.01 * step.run.seed + 1e4 / step.tokens
    point = Point(step.tokens, {"perplexity/sql": math.exp(loss)})
    found[step.run.name] = Found((*found.get(step.run.name, Found()).points, point))
    return True


def finished(study: VariantStudy, losses: dict[str, float]) -> dict[str, Found]:
    found: dict[str, Found] = {}
    while advance(study, found, losses):
        pass
    return found


def make_names(spec: ArcticAblationSpec) -> list[str]:
    return [run.name for run in VariantStudy("rates", spec).all_runs({})]


def losses_of(study: VariantStudy, values: list[float]) -> dict[str, float]:
    return dict(zip(study.runs, values, strict=False))


def twelve(make, **fields) -> VariantStudy:
    grid = [{"field": "optimizer.weightDecay", "values": list(range(12))}]
    return VariantStudy("rates", make(grid=grid, halving={"first": 8192, "factor": 3}, **fields))


def test_all_are_trained_to_their_end_without_halving(make):
    study = VariantStudy("rates", make(seeds=2))
    steps = study.steps({})
    assert len(steps) == 6
    assert all("suspendAt" not in step.specification for step in steps)
    assert len({step.run.name for step in steps}) == 6


def test_halving_finds_the_best_of_twelve_in_less_than_half_the_tokens(make):
    study = twelve(make)
    found = finished(study, losses_of(study, [3, 5, 2, 7, 1.5, 6, 4, 1, 8, 9, 2.5, 3.5]))
    assert study.ranks(found)[0].variant == "weightDecay=7"
    assert sum(each.tokens for each in found.values()) < study.grid_tokens() / 2


def test_a_training_rests_at_its_rung_and_goes_on_from_there(make):
    study = twelve(make)
    found: dict[str, Found] = {}
    losses = losses_of(study, [float(number) for number in range(12)])
    assert study.steps(found)[0].specification["suspendAt"] == 8192
    for _ in range(3):
        advance(study, found, losses)
    step = study.steps(found)[0]
    assert (step.run.variant, step.specification["suspendAt"]) == ("weightDecay=0", 24_576)
    assert step.cost(found) == 24_576 - 8192


@settings(max_examples=10, suppress_health_check=list(HealthCheck))
@given(values=st.permutations([float(number) for number in range(12)]), after=st.integers(1, 20))
def test_whoever_begins_anew_is_told_the_same(make, values, after):
    study, found = twelve(make), {}
    for _ in range(after):
        advance(study, found, losses_of(study, values))
    again = VariantStudy("rates", ArcticAblationSpec.model_validate(study.spec.wire()))
    assert [(s.run.name, s.tokens) for s in again.steps(found)] == [(s.run.name, s.tokens) for s in study.steps(found)]


def test_a_variant_of_which_a_training_failed_goes_no_further(make):
    study = twelve(make)
    broken = study.runs["weightDecay=0"][0].name
    found = {broken: Found(failed="Diverged")}
    assert broken not in [step.run.name for step in study.steps(found)]


def test_variants_that_are_the_same_training_are_refused(make):
    with pytest.raises(VariantError, match="'seed=1' and 'seed=2' are the same training"):
        VariantStudy("rates", make(grid=[{"field": "seed", "values": [1, 2]}])).steps({})


def test_seeds_of_a_variant_go_on_together(make):
    study = VariantStudy("rates", make(seeds=2, halving={"first": 8192}))
    losses, found = losses_of(study, [1, 2, 3]), {}
    for _ in range(6):
        advance(study, found, losses)
    assert [step.run.seed for step in study.steps(found)] == [0, 1]


def test_nothing_begins_that_the_budget_has_no_room_for(make):
    study = VariantStudy("rates", make())
    steps = study.steps({})
    assert len(affordable(steps, {}, 200_000, 0)) == 2
    assert len(affordable(steps, {}, 200_000, 100_000)) == 1
    assert affordable(steps, {}, None, 10**12) == steps


def test_the_objective_is_the_weighted_mean_of_losses(make):
    wanted = make(objective={"perplexity": {"sql": 3, "code": 1}}).objective
    figures = {"perplexity/sql": math.exp(2), "perplexity/code": math.exp(4), "perplexity/math": 1.0}
    assert objective(wanted, figures) == pytest.approx(2.5)
    assert why_unjudged(wanted, figures) == ""
    del figures["perplexity/code"]
    why = why_unjudged(wanted, figures)
    assert why.startswith("it has no perplexity/code: lower the learning rate")
    assert why.endswith("(of perplexity/math, perplexity/sql there is)")


@given(shares=st.lists(st.floats(0, 1), min_size=4, max_size=4))
def test_enterprise_intelligence_is_an_objective_by_its_weights(shares):
    wanted = Objective(suites={"humaneval-plus": 1, "mbpp-plus": 1, "spider": 2, "ifeval": 2})
    figures = [figure for kind in ENTERPRISE.values() for figure in kind]
    parts = {figure: Parts((share,), (1.0,)) for figure, share in zip(figures, shares, strict=True)}
    mean = enterprise_intelligence(parts)
    assert mean is not None
    told = {suite: share for (suite, _), share in zip(figures, shares, strict=True)}
    assert objective(wanted, told) == pytest.approx(mean.value)


def test_halving_by_suites_finds_the_most(make):
    data = [{"name": "gsm8k", "uri": "file:///gsm8k"}]
    training = make().training.wire() | {"evaluation": {"suites": ["gsm8k"], "data": data}}
    study = twelve(make, training=training, objective={"suites": {"gsm8k": 1}})
    found: dict[str, Found] = {}
    while steps := study.steps(found):
        decay = steps[0].run.training["optimizer"]["weightDecay"]
        point = Point(steps[0].tokens, {"gsm8k": 1 - abs(7 - decay) / 12})
        found[steps[0].run.name] = Found((*found.get(steps[0].run.name, Found()).points, point))
    assert study.ranks(found)[0].variant == "weightDecay=7"
    assert sum(each.tokens for each in found.values()) < study.grid_tokens() / 2


def test_another_objective_makes_other_trainings(make):
    names = [make_names(make(objective={"perplexity": {"sql": weight}})) for weight in (1, 1.0, 2)]
    assert names[0] == names[1]
    assert not set(names[0]) & set(names[2])


def test_those_that_came_furthest_lead_the_ranking():
    judged = {"short": (10, [1.0]), "long": (20, [3.0]), "other": (20, [2.0, 2.2])}
    names = [rank.variant for rank in ranking(Objective(perplexity={"sql": 1}), judged)]
    assert names == ["other", "long", "short"]
    names = [rank.variant for rank in ranking(Objective(suites={"ifeval": 1}), judged)]
    assert names == ["long", "other", "short"], "of suites more is better"


def test_an_interval_is_that_of_students_t():
    mean = Mean.of([1.0, 2.0, 3.0])
    assert (mean.value, mean.low, mean.high) == pytest.approx((2.0, 2 - 4.303 / 3**0.5, 2 + 4.303 / 3**0.5))
    assert Mean.of([1.0]).high == math.inf


def test_a_power_law_is_found_again_and_foretells():
    law = fit([(tokens, 1.5 + 2 * (tokens / 1000) ** -0.4) for tokens in (1000, 2000, 4000, 8000, 16000)])
    assert law is not None
    assert law.exponent == pytest.approx(0.4, abs=3e-3)
    value, low, high = law.at(1e6)
    assert low <= value <= high
    assert value == pytest.approx(1.5 + 2 * 1000**-0.4, abs=0.01)


def test_what_is_far_away_is_less_certain():
    noise = (0.02, -0.03, 0.01, 0.02, -0.02, 0.01)
    law = fit([(1000 * 2**k, 1.5 + 2 * 2 ** (-0.4 * k) + error) for k, error in enumerate(noise)])
    assert law is not None
    near, far = (high - low for _, low, high in (law.at(32_000), law.at(32_000_000)))
    assert far > near > 0


def test_three_points_make_no_law():
    assert fit([(1, 3.0), (2, 2.0), (3, 1.5)]) is None
