"""Swarms of mixtures on made-up losses, of which the truth is known."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from arctic_ablation.results import results
from arctic_ablation.study import Found, Point, Run, TooFew
from arctic_ablation.swarm.draws import BY_HAND, FORETOLD, PROPORTIONAL, Space, rounded
from arctic_ablation.swarm.regression import Curve, Regression
from arctic_ablation.swarm.study import SwarmStudy

SHARES = np.array([0.5, 0.5])
WANTED = np.array([0.0, 0.7, 0.3])
"""What the objective is made of, by source: nothing of books, most of python."""
NOISE = 0.01


def truth(weights: np.ndarray, share: float) -> float:
    """The loss after a share of a run: what is read late counts for more."""
    done = np.clip(share - np.array([0.0, 0.5]), 0, SHARES)
    read = (done[:, None] * weights * np.array([[0.7], [1.3]])).sum(axis=0)
    return float(1 + WANTED @ (0.8 * (0.03 + read) ** -0.25))


def curve(weights: np.ndarray, seed: int) -> list[tuple[float, float]]:
    generator = np.random.default_rng(seed)
    own = generator.normal(0, NOISE)
    shares = (0.25, 0.5, 0.75, 1.0)
    return [(share, truth(weights, share) + own + generator.normal(0, NOISE / 4)) for share in shares]


def weights_of(study: SwarmStudy, run: Run) -> np.ndarray:
    """The mixtures of a training, [stages, sources]."""
    stages = run.training["curriculum"]["stages"]
    weights = np.array([[stage["mixture"].get(name, 0) for name in study.space.sources] for stage in stages])
    return weights / weights.sum(axis=1, keepdims=True)


def train(study: SwarmStudy, found: dict[str, Found], failing: str = "") -> None:
    """Train what a study wants, until it wants nothing; one variant fails after its first evaluation."""
    while steps := study.steps(found):
        for step in steps:
            points = curve(weights_of(study, step.run), step.run.seed)
            told = [Point(round(share * step.run.total), {"perplexity/sql": math.exp(loss)}) for share, loss in points]
            failed = step.run.variant == failing
            found[step.run.name] = Found(told[:1], "Diverged") if failed else Found(told)


@pytest.fixture(scope="module")
def searched(make):
    """A finished search, and what it found."""
    spec = make(mixture={"runs": 16})
    study, found = SwarmStudy("search", spec), {}
    train(study, found)
    return spec, study, found


def test_the_foretold_curriculum_is_better_and_its_loss_within_the_interval(searched):
    spec, study, found = searched
    made = results("search", spec, study, found, whole=True)
    assert made["ranking"][0]["variant"] == FORETOLD
    forecast = made["swarm"]["forecasts"][FORETOLD]
    assert all(forecast["low"] <= value <= forecast["high"] for value in made["swarm"]["confirmed"][FORETOLD])
    best = min(truth(weights, 1.0) for weights in study.space.candidates(1000, 0))
    gained = truth(study.space.proportional(), 1.0) - truth(study.foretell("whole", found).weights, 1.0)
    assert gained > 2 / 3 * (truth(study.space.proportional(), 1.0) - best)


def test_the_interval_holds_at_what_was_chosen_and_is_no_wider_than_it_must_be(make):
    training = make().training.wire()
    inside, widths = 0, []
    for seed in (0, 100, 200):
        spec = make(training=training | {"seed": seed}, mixture={"runs": 10, "confirm": 8})
        study, found = SwarmStudy("search", spec), {}
        train(study, found)
        made = results("search", spec, study, found, whole=True)["swarm"]
        forecast = made["forecasts"][FORETOLD]
        inside += sum(forecast["low"] <= value <= forecast["high"] for value in made["confirmed"][FORETOLD])
        widths.append((forecast["high"] - forecast["low"]) / 2)
    assert inside >= 23, "of 24: the eight of a search are foretold to be inside together, by 95%"
    assert np.median(widths) < 10 * NOISE


def test_more_of_what_the_objective_is_made_of_helps_and_of_other_text_hurts(searched):
    _, study, found = searched
    effects = {(effect.stage, effect.source): effect for effect in study.foretell("whole", found).effects}
    assert effects["late", "python"].change < 0 < effects["late", "books"].change


def test_the_winner_is_a_training_with_the_foretold_mixtures(searched):
    spec, study, found = searched
    best = results("search", spec, study, found, whole=True)["best"]
    mixtures = [stage["mixture"] for stage in best["spec"]["curriculum"]["stages"]]
    assert mixtures == [study.space.named(row) for row in study.foretell("whole", found).weights]
    assert best["spec"]["seed"] == 0
    assert "evaluation" not in best["spec"]


def test_seeds_that_confirm_are_none_of_the_swarm(searched):
    _, study, found = searched
    swarm = {run.seed for run, _ in study.swarm(found)}
    tested = {run.seed for runs in study.tests(found).values() for run in runs}
    assert len(swarm) == 16
    assert not swarm & tested


def test_whoever_begins_anew_goes_on_with_the_same(searched):
    spec, study, found = searched
    again = SwarmStudy("search", spec)
    assert [run.name for run in again.all_runs(found)] == [run.name for run in study.all_runs(found)]
    assert again.steps(found) == []


@pytest.mark.parametrize("failing", ["drawn 2", "near 1"])
def test_runs_that_failed_are_left_out(make, failing):
    study, found = SwarmStudy("search", make(mixture={"runs": 8})), {}
    train(study, found, failing)
    assert study.is_foretold(found)
    assert len(study.foretell("whole", found).errors) == 7


def test_a_swarm_of_which_too_few_came_to_their_end_says_so(make):
    study = SwarmStudy("search", make(mixture={"runs": 8}))
    found = {run.name: Found(failed="Diverged") for run, _ in study.first}
    with pytest.raises(TooFew, match="0 trainings of the swarm came to their end, and it takes 3"):
        study.steps(found)


def test_the_second_half_lies_around_what_the_first_foretells(searched):
    _, study, found = searched
    first = {run.name: found[run.name] for run, _ in study.first}
    second = [(run, weights) for run, weights in study.swarm(first) if run.name not in first]
    (twin, best), (other, same), *near = second
    assert (best == same).all()
    assert twin.seed != other.seed
    around = np.mean([np.abs(weights - best).sum(axis=1) / 2 for _, weights in near])
    drawn = np.mean([np.abs(weights - best).sum(axis=1) / 2 for _, weights in study.first])
    assert around < drawn / 2


def test_the_interval_holds_for_runs_that_were_not_seen():
    generator = np.random.default_rng(1)
    curves = [Curve(*_features(generator.dirichlet(np.ones(3), 2), seed)) for seed in range(16)]
    regression = Regression(curves)
    inside = 0
    for seed in range(100, 160):
        weights = generator.dirichlet(np.ones(3), 2)
        read, values = _features(weights, seed)
        forecast = regression.forecast(read[-1])
        inside += forecast.low <= values[-1] <= forecast.high
    assert inside >= 50


def _features(weights: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    points = curve(weights, seed)
    done = np.stack([np.clip(share - np.array([0.0, 0.5]), 0, SHARES) for share, _ in points])
    return (done[:, :, None] * weights).reshape(len(points), -1), np.array([loss for _, loss in points])


@settings(max_examples=20, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 1000), concentration=st.floats(0.1, 20))
def test_drawn_mixtures_are_mixtures_and_the_same_for_a_seed(make, seed, concentration):
    spec = make(mixture={"concentration": concentration})
    space = Space(spec.mixture, spec.training.wire())
    for weights, again in zip(space.drawn(4, seed), space.drawn(4, seed), strict=True):
        assert (weights == again).all()
        assert weights.sum(axis=1) == pytest.approx(1)
        assert (weights >= 0).all()
        assert (weights == rounded(weights)).all()


def test_what_is_drawn_lies_around_the_proportional_mixture(make):
    spec = make(mixture={"around": {"books": 6, "python": 3, "proofs": 1}, "concentration": 5})
    space = Space(spec.mixture, spec.training.wire())
    mean = np.mean(space.drawn(400, 0), axis=0)
    assert mean == pytest.approx(np.tile([0.6, 0.3, 0.1], (2, 1)), abs=0.03)


def test_the_swarm_begins_with_what_is_there(make):
    study = SwarmStudy("search", make(mixture={"runs": 8}))
    names = [run.variant for run, _ in study.first]
    assert names[:2] == [BY_HAND, PROPORTIONAL]
    assert len({run.name for run in study.all_runs({})}) == 4


def by_suites(make, told: Callable[[np.ndarray], float]) -> tuple[SwarmStudy, dict[str, Found]]:
    """A search of which suites judge each training at its end."""
    data = [{"name": "ifeval", "uri": "file:///ifeval"}]
    training = make().training.wire() | {"evaluation": {"suites": ["ifeval"], "data": data}}
    spec = make(training=training, mixture={"runs": 12}, objective={"suites": {"ifeval": 1}})
    study, found = SwarmStudy("search", spec), {}
    while steps := study.steps(found):
        for step in steps:
            found[step.run.name] = Found([Point(step.run.total, {"ifeval": told(weights_of(study, step.run))})])
    return study, found


def test_a_swarm_that_suites_judge_foretells_the_most(make):
    study, found = by_suites(make, lambda weights: 1 - truth(weights, 1.0) / 5)
    made = results("search", study.spec, study, found, whole=True)
    assert made["ranking"][0]["variant"] == FORETOLD
    forecasts = made["swarm"]["forecasts"]
    assert forecasts[FORETOLD]["value"] > forecasts[PROPORTIONAL]["value"]
    assert all(each["low"] <= each["value"] <= each["high"] for each in forecasts.values())
    effects = {(effect["stage"], effect["source"]): effect["change"] for effect in made["swarm"]["effects"]}
    assert effects["late", "python"] > 0 > effects["late", "books"]


def test_of_a_swarm_that_came_to_one_value_nothing_is_foretold(make):
    with pytest.raises(TooFew, match=r"all 6 trainings of the swarm came to the same end, 0: nothing follows"):
        by_suites(make, lambda _: 0.0)
