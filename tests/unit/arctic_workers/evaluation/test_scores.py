import itertools
import random
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arctic_workers.evaluation.scores import Parts, enterprise_intelligence, pass_at, pass_at_k, score, share
from arctic_workers.evaluation.verdict import Verdict


@settings(max_examples=50)
@given(st.integers(1, 8), st.data())
def test_pass_at_k_is_the_share_of_draws_with_a_right_sample(samples: int, data: st.DataObject) -> None:
    right, k = data.draw(st.integers(0, samples)), data.draw(st.integers(1, samples))
    draws = list(itertools.combinations([True] * right + [False] * (samples - right), k))
    assert pass_at_k(samples, right, k) == pytest.approx(float(Fraction(sum(map(any, draws)), len(draws))))


def test_pass_at_k_asks_for_as_many_samples() -> None:
    with pytest.raises(ValueError, match="takes at least 10 samples a question: there are 3"):
        pass_at_k(3, 1, 10)


def verdicts(*marks: list[tuple[int, int]]) -> dict[str, list[Verdict]]:
    return {str(n): [Verdict("", marks={"it": mark}) for mark in each] for n, each in enumerate(marks)}


def test_a_sample_counts_where_all_of_it_is_right() -> None:
    found = verdicts([(1, 1), (0, 1)], [(0, 1), (0, 1)])
    assert pass_at(found, "it", 1).mean() == 0.25
    assert pass_at(found, "it", 2).mean() == 0.5


def test_instructions_weigh_as_many_as_there_are_of_a_prompt() -> None:
    assert share(verdicts([(3, 3)], [(0, 1)]), "it").mean() == 0.75


def parts(right: int, of: int) -> Parts:
    values = [1.0] * right + [0.0] * (of - right)
    random.Random(0).shuffle(values)
    return Parts(tuple(values), (1.0,) * of)


def test_the_interval_holds_the_score_and_narrows_with_more_questions() -> None:
    few, many = score(parts(30, 60)), score(parts(300, 600))
    assert few.low < few.value == 0.5 < few.high
    assert many.high - many.low < 0.5 * (few.high - few.low)
    assert score(parts(30, 60)) == few
    assert score(parts(60, 60)) == type(few)(1.0, 1.0, 1.0)


SUITES = {
    ("humaneval-plus", "pass@1"): parts(20, 40),
    ("mbpp-plus", "pass@1"): parts(40, 40),
    ("spider", "execution"): parts(10, 40),
    ("ifeval", "prompt strict"): parts(30, 40),
}


def test_enterprise_intelligence_is_the_mean_of_three_kinds_the_first_of_which_is_a_mean_itself() -> None:
    found = enterprise_intelligence(SUITES)
    assert found is not None
    assert found.value == pytest.approx((0.75 + 0.25 + 0.75) / 3)
    assert found.low < found.value < found.high


@pytest.mark.parametrize("missing", SUITES)
def test_there_is_no_mean_where_a_suite_was_not_run(missing: tuple[str, str]) -> None:
    assert enterprise_intelligence({name: part for name, part in SUITES.items() if name != missing}) is None
