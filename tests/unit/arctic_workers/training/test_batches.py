from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arctic_api.training import ArcticTrainingSpec
from arctic_workers.training.curriculum import Curriculum, StagePlan
from arctic_workers.training.data.batches import TrainingData, held_out_windows, main_category
from arctic_workers.training.data.windows import Stream
from arctic_workers.training.errors import Refused

SpecOf = Callable[..., ArcticTrainingSpec]

LENGTHS = {"a": 4001, "b": 900, "c": 130}
STREAMS = {
    name: Stream(name, {"a": "general", "b": "code", "c": "code"}[name], np.arange(size, dtype=np.uint16) + 10_000 * i)
    for i, (name, size) in enumerate(LENGTHS.items())
}


@pytest.fixture(scope="module")
def curriculum(spec_of: SpecOf) -> Curriculum:
    return Curriculum.plan(
        spec_of(
            [
                {"tokens": 3000, "sequenceLength": 16, "mixture": {"a": 0.6, "b": 0.4}},
                {"tokens": 3000, "sequenceLength": 32, "mixture": {"a": 0.2, "b": 0.3, "c": 0.5}},
            ],
            128,
        )
    )


def all_rows(data: TrainingData, stage: StagePlan, step: int, ranks: int, size: int) -> list[tuple[int, ...]]:
    batches = [data.micro_batches(stage, step, rank, ranks, size) for rank in range(ranks)]
    return sorted(tuple(row) for rank in batches for batch in rank for row in batch.tokens.tolist())


@settings(max_examples=40)
@given(step=st.integers(0, 47), seed=st.integers(0, 2**63 - 1))
def test_a_step_reads_the_same_tokens_with_any_number_of_ranks_and_after_any_restart(
    curriculum: Curriculum, step: int, seed: int
) -> None:
    stage = curriculum.stage_at(step)
    expected = all_rows(TrainingData(curriculum, STREAMS, seed), stage, step, 1, 1)
    restarted = TrainingData(curriculum, STREAMS, seed)
    for ranks, size in ((1, 2), (2, 1), (2, 2), (4, 1)):
        assert all_rows(restarted, stage, step, ranks, size) == expected


def test_ranks_read_different_sequences_in_batches_of_the_asked_size(curriculum: Curriculum) -> None:
    data = TrainingData(curriculum, STREAMS, 0)
    batches = [data.micro_batches(curriculum.stages[0], 0, rank, 2, 2) for rank in range(2)]
    assert [batch.tokens.shape for rank in batches for batch in rank] == [(2, 16)] * 4
    starts = {int(row[0]) for rank in batches for batch in rank for row in batch.tokens}
    assert len(starts) == 8


def test_seeds_change_the_order(curriculum: Curriculum) -> None:
    first, second = (all_rows(TrainingData(curriculum, STREAMS, s), curriculum.stages[0], 0, 1, 1) for s in (0, 1))
    assert first != second


def test_a_source_is_read_once_before_it_is_read_again(spec_of: SpecOf) -> None:
    stage = Curriculum.plan(spec_of([{"tokens": 4000, "sequenceLength": 16}], 16)).stages[0]
    data = TrainingData(Curriculum((stage,)), STREAMS, 3)
    starts = [int(data.micro_batches(stage, step, 0, 1, 1)[0].tokens[0, 0]) for step in range(250)]
    assert sorted(starts) == list(range(0, 4000, 16))
    assert starts != sorted(starts)


def test_a_stage_goes_on_where_the_one_before_it_ended(spec_of: SpecOf) -> None:
    stages = [{"tokens": 2000, "sequenceLength": 16}, {"tokens": 2000, "sequenceLength": 16}]
    curriculum = Curriculum.plan(spec_of(stages, 16))
    data = TrainingData(curriculum, STREAMS, 3)
    numbers = [draw.number for step in range(250) for draw in data.step(curriculum.stage_at(step), step)]
    assert numbers == list(range(250))


@pytest.mark.parametrize("final", [None, {"a": 1, "b": 3}])
def test_what_a_stage_passed_over_and_read_instead_is_read_by_no_later_stage(
    spec_of: SpecOf, final: dict[str, float] | None
) -> None:
    mixture = {"mixture": {"a": 3, "b": 1}} | ({"finalMixture": final} if final else {})
    stages = [{"tokens": 320, "sequenceLength": length, **mixture} for length in (16, 8, 32)]
    curriculum = Curriculum.plan(spec_of(stages, 64))
    data = TrainingData(curriculum, STREAMS, 3)
    before = [data.step(curriculum.stage_at(step), step) for step in range(15)]
    data.pass_over({"s0": 2, "s1": 1})
    after = [data.step(curriculum.stage_at(step), step) for step in range(15)]
    assert after[:3] == before[2:5]
    assert after[5:9] != before[6:10]  # behind where the first stage came to
    for name in ("a", "b"):
        spans = [
            (draw.number * stage.spec.sequence_length, (draw.number + 1) * stage.spec.sequence_length)
            for step, draws in enumerate(after)
            for draw in draws
            if draw.source == name and (stage := curriculum.stage_at(step))
        ]
        assert all(end <= begin for (_, end), (begin, _) in pairwise(sorted(spans)))
    assert [data.targets(curriculum.stage_at(step), step) for step in range(15)] == [
        sum(batch.targets for batch in data.micro_batches(curriculum.stage_at(step), step, 0, 1, 1))
        for step in range(15)
    ]


def test_a_source_that_is_missing_is_refused_by_name(curriculum: Curriculum) -> None:
    with pytest.raises(Refused, match="stage s1: there are no tokens of source c"):
        TrainingData(curriculum, {name: STREAMS[name] for name in "ab"}, 0)


@given(most=st.integers(1, 300), length=st.sampled_from([8, 16, 200]))
def test_held_out_windows_are_spread_over_the_category(most: int, length: int) -> None:
    windows = held_out_windows(STREAMS, "code", length, most)
    available = sum(STREAMS[name].windows(length) for name in "bc")
    assert len(windows) == min(most, available)
    assert len({int(window.tokens[0]) for window in windows}) == len(windows)
    assert all(window.tokens.shape == (length + 1,) and window.tokens[0] >= 10_000 for window in windows)


def test_the_main_category_is_that_with_the_greatest_weight_over_its_sources(spec_of: SpecOf) -> None:
    categories = {name: stream.category for name, stream in STREAMS.items()}
    mixtures = [{"a": 0.6, "b": 0.4}, {"a": 0.4, "b": 0.3, "c": 0.3}, {"a": 1, "b": 1}]
    stages = Curriculum.plan(spec_of([{"tokens": 16, "sequenceLength": 16, "mixture": m} for m in mixtures], 16)).stages
    assert [main_category(stage, categories) for stage in stages] == ["general", "code", "code"]
