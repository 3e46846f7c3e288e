"""Statistics of canaries against what they promise: known values, exact coverage, false rates of simulated traffic."""

import math

import numpy as np
import pytest

from arctic_operator.live import Figures, LogSums
from arctic_operator.plan.comparison import Comparison, _sigmas, agresti_caffo, judge, welch

RUNS = 200
SPREAD = 0.6
"""Standard deviation of the logarithms of latencies, much as of a service whose prompts differ."""


def log_sums(logs):
    return LogSums(len(logs), float(logs.sum()), float((logs**2).sum()))


def figures(generator, requests, slower=0.0, failing=0.02):
    """What a leader counts of so many requests that take `slower` more time, of which a share fails."""
    failed = int(generator.binomial(requests, failing))
    ttft, per_token = (log_sums(generator.normal(math.log1p(slower), SPREAD, requests)) for _ in range(2))
    return Figures(requests, failed, ttft, per_token)


def verdicts(new, old):
    return [each.verdict for each in judge(new, old, 0.1, 0.01)]


@pytest.mark.parametrize(("t", "freedom", "sigmas"), [(2.764, 10, 2.326), (3.365, 5, 2.326), (-1.812, 10, -1.645)])
def test_a_t_is_as_improbable_as_its_sigmas(t, freedom, sigmas):
    assert _sigmas(t, freedom) == pytest.approx(sigmas, abs=0.03)


def test_welch_is_that_of_the_textbook():
    # numpy's own mean and variance, and Welch's formulas written out.
    generator = np.random.default_rng(1)
    new, old = generator.normal(0.1, 1, 40), generator.normal(0, 2, 70)
    found = welch(log_sums(new), log_sums(old))
    parts = new.var(ddof=1) / 40, old.var(ddof=1) / 70
    assert found.value == pytest.approx(new.mean() - old.mean())
    assert found.error == pytest.approx(math.sqrt(sum(parts)))
    assert found.freedom == pytest.approx(sum(parts) ** 2 / (parts[0] ** 2 / 39 + parts[1] ** 2 / 69))


@pytest.mark.parametrize(
    ("p_new", "p_old", "numbers"), [(0.1, 0.1, (20, 40)), (0.02, 0.02, (30, 200)), (0.3, 0.1, (15, 15))]
)
def test_the_interval_of_shares_covers_the_truth_as_often_as_it_says(p_new, p_old, numbers):
    """Over all outcomes with their probabilities, not a sample of them."""
    chances = [
        [math.comb(number, failed) * p**failed * (1 - p) ** (number - failed) for failed in range(number + 1)]
        for p, number in ((p_new, numbers[0]), (p_old, numbers[1]))
    ]
    covered = 0.0
    for new_failed, new_chance in enumerate(chances[0]):
        for old_failed, old_chance in enumerate(chances[1]):
            found = agresti_caffo(new_failed, numbers[0], old_failed, numbers[1])
            if abs(found.above(p_new - p_old)) <= 1.96:
                covered += new_chance * old_chance
    assert covered >= 0.93


def test_a_canary_that_is_no_worse_is_hardly_ever_rolled_back_however_often_one_looks():
    generator, alarms, promoted = np.random.default_rng(2), 0, 0
    for _ in range(RUNS):
        new = old = Figures()
        alarmed = False
        for _ in range(40):
            new, old = new.plus(figures(generator, 15)), old.plus(figures(generator, 60))
            alarmed |= "worse" in verdicts(new, old)
        alarms += alarmed
        promoted += verdicts(new, old)[1:] == ["fine", "fine"]
    assert alarms / RUNS <= 0.01
    assert promoted / RUNS >= 0.65


@pytest.mark.parametrize("change", [{"slower": 0.3}, {"failing": 0.15}])
def test_a_canary_that_is_worse_is_rolled_back(change):
    generator = np.random.default_rng(3)
    caught = sum("worse" in verdicts(figures(generator, 600, **change), figures(generator, 2400)) for _ in range(RUNS))
    assert caught / RUNS >= 0.99


def test_a_canary_at_its_margin_hardly_ever_takes_over_and_one_within_it_is_no_alarm():
    generator = np.random.default_rng(4)
    at_margin = sum(
        verdicts(figures(generator, 600, slower=0.1), figures(generator, 2400))[1] == "fine" for _ in range(3 * RUNS)
    )
    assert at_margin / RUNS / 3 <= 0.025, "2.33 sigma is 1%"
    surely_slower = judge(figures(generator, 90_000, slower=0.04), figures(generator, 90_000), 0.1, 0.01)
    assert [each.verdict for each in surely_slower[1:]] == ["fine", "fine"]
    assert "+4" in surely_slower[1].sentence


def test_few_requests_tell_nothing_but_that_nearly_all_fail():
    generator = np.random.default_rng(5)
    assert verdicts(figures(generator, 20), figures(generator, 2000)) == ["few", "few", "few"]
    assert verdicts(Figures(), Figures()) == ["few", "few", "few"]
    assert verdicts(Figures(10, 9), figures(generator, 100))[0] == "worse"


def test_what_a_leader_counted_before_is_not_the_canarys_doing_nor_what_it_counts_anew():
    sums = LogSums(3, 1.0, 1.0)
    known = Figures(3, 1, sums, sums)
    comparison = Comparison("new", 10).with_figures({"a": known, "b": known}, frozenset({"a"}))
    assert (comparison.new, comparison.old) == (Figures(), Figures())
    more = known.plus(Figures(2, 0, LogSums(2, 0.5, 0.25), LogSums()))
    began_anew = Figures(1, 0, LogSums(1, 0.1, 0.01), LogSums())
    comparison = comparison.with_figures({"a": more, "b": began_anew, "c": known}, frozenset({"a"}))
    assert comparison.new == Figures(2, 0, LogSums(2, 0.5, 0.25), LogSums())
    assert comparison.old == began_anew
