"""Steps at which a run is judged, or rests."""

from hypothesis import given
from hypothesis import strategies as st

from arctic_workers.training.curriculum import Curriculum
from arctic_workers.training.milestones import Milestones, step_of


@given(tokens=st.integers(0, 1000), budgets=st.lists(st.integers(1, 200), min_size=1, max_size=4))
def test_a_run_rests_after_the_fewest_steps_that_have_the_tokens(spec_of, tokens, budgets):
    curriculum = Curriculum.plan(spec_of([{"tokens": budget, "sequenceLength": 8} for budget in budgets], 16))
    step = step_of(curriculum, tokens)
    if tokens > curriculum.tokens_done(curriculum.steps):
        assert step == curriculum.steps
        return
    assert curriculum.tokens_done(step) >= tokens
    assert step == 0 or curriculum.tokens_done(step - 1) < tokens


def test_a_manifest_says_when_it_is_judged_and_where_it_rests(spec_of):
    spec = spec_of([{"tokens": 160, "sequenceLength": 8}], 16)
    plain = Milestones.of(spec, Curriculum.plan(spec))
    assert not any(plain.evaluates(step) or plain.rests(step) for step in range(11))
    told = spec.model_copy(update={"suspend_at": 40})
    milestones = Milestones.of(told, Curriculum.plan(told))
    assert [step for step in range(11) if milestones.rests(step)] == list(range(3, 11))
    assert not Milestones.of(told.model_copy(update={"suspend_at": 0}), Curriculum.plan(told)).rests(0)
    judged = Milestones(every=4, rest=None)
    assert [step for step in range(1, 11) if judged.evaluates(step)] == [4, 8]
