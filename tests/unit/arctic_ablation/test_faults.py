"""What is wrong with trainings is said before any of them starts."""

import pytest

from arctic_ablation.faults import fault
from arctic_ablation.study import VariantStudy


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("optimizer.weightDecay", -1, "variant weightDecay=-1: spec.optimizer.weightDecay: "),
        ("curriculum.stages.late.tokens", "many", "variant tokens=many: spec.curriculum.stages[1].tokens: "),
        ("curriculum.stages.late.mixture", {"poems": 1}, "draws from 'poems': there is no such source"),
        ("curriculum.stages.last.tokens", 1, "nothing is called 'last'"),
    ],
)
def test_a_variant_that_is_no_right_training_is_named(make, field, value, words):
    assert words in fault(VariantStudy("rates", make(grid=[{"field": field, "values": [value]}])))


def test_right_ones_have_no_fault(make):
    assert fault(VariantStudy("rates", make())) is None
