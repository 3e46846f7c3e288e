"""Whether costs that are fitted to times predict others: of a made machine, whose costs are known."""

from __future__ import annotations

import math
import random
from functools import partial

import pytest

from arctic_model.config import ArcticConfig
from arctic_model.planning.fitting import fitted
from arctic_model.planning.training_time import TYPICAL, RankStep, TrainingWork, seconds

SIZES = [(hidden, layers, length) for hidden in (64, 256) for layers in (2, 5) for length in (64, 200, 512)]


def _case(hidden: int, layers: int, length: int) -> RankStep:
    config = ArcticConfig.preset("arctic-tiny").replace(
        hidden_size=hidden, num_hidden_layers=layers, intermediate_size=length
    )
    return RankStep(config, micro_batches=1 + layers % 3, sequences=2, length=length)


def _predict(case: RankStep, costs: tuple[float, ...]) -> float:
    return seconds(case, TrainingWork(*costs))


def test_times_of_other_sizes_are_predicted_though_the_machine_is_not_the_typical_one():
    drawn = random.Random(1)
    machine = TrainingWork(*(cost * math.exp(drawn.uniform(0.2, 1.0)) for cost in TYPICAL.amounts))
    observations = [(partial(_predict, _case(*size)), seconds(_case(*size), machine)) for size in SIZES]
    found = TrainingWork(*fitted(TYPICAL.amounts, observations))
    for other in ((128, 3, 128), (192, 8, 256)):
        assert seconds(_case(*other), found) == pytest.approx(seconds(_case(*other), machine), rel=0.05)
        assert seconds(_case(*other), TYPICAL) != pytest.approx(seconds(_case(*other), machine), rel=0.05)


def test_a_cost_that_no_time_tells_of_stays_where_it_was():
    alone, other = fitted((1.0, 5.0), [(lambda costs: costs[0], 2.0)])
    assert other == pytest.approx(5.0)
    assert alone == pytest.approx(2.0, rel=0.01)
