"""The budget of a step, with steps whose time is a function of their tokens."""

from hypothesis import given
from hypothesis import strategies as st

from arctic_workers.inference.engines.native.budget import LEAST_OF_PROMPTS, StepTimes, TokenBudget

MOST = 4096


def learned(budget: TokenBudget, generating: int, fixed: float, each: float) -> list[tuple[int, float]]:
    """Let prompts fill every step for a while; return the later steps' tokens and times."""
    budget.times.observe(512, fixed + 512 * each)
    steps = []
    for _ in range(60):
        tokens = budget.tokens(generating)
        steps.append((tokens, fixed + tokens * each))
        budget.times.observe(*steps[-1])
    return steps[20:]


@given(
    generating=st.integers(1, 64),
    fixed=st.floats(0.001, 0.2),
    each=st.floats(0.0001, 0.01),
    target=st.floats(0.01, 2.0),
)
def test_steps_keep_to_the_target_and_fill_it(generating: int, fixed: float, each: float, target: float) -> None:
    least = generating + LEAST_OF_PROMPTS
    for tokens, seconds in learned(TokenBudget(MOST, target), generating, fixed, each):
        assert least <= tokens <= MOST
        assert tokens == least or seconds <= target * 1.01
    right = min(max((target - fixed) / each, least), MOST)
    assert tokens >= min(0.5 * right, right - 1) or tokens == least


@given(generating=st.integers(0, 64), seconds=st.floats(0.001, 10))
def test_without_a_target_or_anybody_who_waits_for_a_token_all_is_read_at_once(generating: int, seconds: float) -> None:
    free, held = TokenBudget(MOST), TokenBudget(MOST, 0.01)
    for budget in (free, held):
        budget.times.observe(100, seconds)
    assert free.tokens(generating) == MOST
    assert held.tokens(0) == MOST


def test_a_machine_that_became_slow_gets_smaller_steps_and_larger_ones_when_it_is_well_again() -> None:
    budget = TokenBudget(MOST, 0.5)
    before = learned(budget, 4, 0.01, 0.001)[-1][0]
    slow = learned(budget, 4, 0.01, 0.004)[-1][0]
    assert slow < before / 2
    assert learned(budget, 4, 0.01, 0.001)[-1][0] > 1.5 * slow


def test_one_slow_step_of_a_rare_size_does_not_limit_larger_ones_that_were_seen_to_be_fast() -> None:
    budget = TokenBudget(MOST, 0.2)
    budget.times.observe(2, 0.3)
    for _ in range(20):
        tokens = budget.tokens(8)
        budget.times.observe(tokens, 0.01 + tokens * 0.0001)
    assert budget.tokens(8) > 1000


def test_one_slow_step_of_a_large_size_is_forgotten_in_the_end() -> None:
    """What lies between it and a smaller size is too little to come to its size again."""
    budget = TokenBudget(MOST, 0.2)
    budget.times.observe(520, 60.0)
    for _ in range(600):
        tokens = budget.tokens(8)
        budget.times.observe(tokens, 0.01 + tokens * 0.0001)
    assert budget.tokens(8) > 1000


@given(st.lists(st.tuples(st.integers(1, 5000), st.floats(0, 10)), min_size=1, max_size=60), st.integers(1, 10000))
def test_larger_steps_are_never_thought_faster(observed: list[tuple[int, float]], tokens: int) -> None:
    times = StepTimes()
    assert times.seconds(tokens) == 0
    assert not times.knows(tokens)
    for step in observed:
        times.observe(*step)
    assert times.seconds(tokens) <= times.seconds(tokens + 1) + 1e-9
    assert times.knows(observed[-1][0])
