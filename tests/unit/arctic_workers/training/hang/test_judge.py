from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arctic_workers.training.hang.judge import LEAST_SECONDS, UNTIMED_SECONDS, Standing, Vigil, waiting_for
from arctic_workers.training.hang.process import Vitals
from arctic_workers.training.hang.pulse import Pulse

PULSE = Pulse(
    rank=1, pid=7, writer=8, store="", step=3, in_step=True, groups={"all": 5}, step_seconds=1.0, step_cpu=0.8
)
IDLE = Vitals(stopped=False, runnable=False, cpu={7: 10.0, 9: 1.0})


def world_where(program: list[int], groups: list[set[int]], hung: int, after: int) -> list[Standing]:
    """Run a program of collectives, each over one of `groups`, with a rank that launches no more than its first few."""
    ranks = sorted(set.union(*groups))
    mine = {rank: [op for op, group in enumerate(program) if rank in groups[group]] for rank in ranks}
    launched = dict.fromkeys(ranks, 0)

    def complete(op: int) -> bool:
        return all(op in mine[rank][: launched[rank]] for rank in groups[program[op]])

    moved = True
    while moved:
        moved = False
        for rank in ranks:
            most = min(after, len(mine[rank])) if rank == hung else len(mine[rank])
            while launched[rank] < most and all(complete(op) for op in mine[rank][: launched[rank]]):
                launched[rank] += 1
                moved = True
    standings = []
    for rank in ranks:
        counts = Counter(str(program[op]) for op in mine[rank][: launched[rank]])
        shared = {str(index): counts[str(index)] for index, group in enumerate(groups) if rank in group}
        done = launched[rank] == len(mine[rank]) and all(complete(op) for op in mine[rank])
        standings.append(Standing(rank, 3, not done, shared, 0.0 if done else 30.0, stopped=False))
    return standings


@st.composite
def worlds(draw: st.DrawFn) -> tuple[list[Standing], int]:
    size = draw(st.integers(2, 6))
    each = draw(st.sampled_from([degree for degree in (1, 2, 3) if size % degree == 0]))
    groups = [
        set(range(size)),
        *({*range(start, start + each)} for start in range(0, size, each)),
        *({*range(place, size, each)} for place in range(each)),
    ]
    program = draw(st.lists(st.integers(0, len(groups) - 1), min_size=1, max_size=12))
    hung = draw(st.integers(0, size - 1))
    return world_where([*program, 0], groups, hung, draw(st.integers(0, 12))), hung


@given(worlds())
def test_of_all_ranks_that_stand_still_the_one_that_holds_the_others_up_is_named(
    world: tuple[list[Standing], int],
) -> None:
    standings, hung = world
    for suspect in standings:
        others = [each for each in standings if each.rank != suspect.rank]
        waiting = waiting_for(suspect, others, 10)
        held_up = suspect.rank == hung and any(other.is_behind(each) for other in [suspect] for each in others)
        assert bool(waiting) == held_up, suspect


def test_a_rank_that_nobody_waits_for_holds_nobody_up() -> None:
    own = Standing(0, 3, True, {"all": 4}, 30.0, stopped=False)
    ahead = Standing(1, 3, True, {"all": 5}, 30.0, stopped=False)
    assert waiting_for(own, [ahead], 10) == [1]
    assert waiting_for(own, [replace(ahead, unmoved=3.0)], 10) == []
    assert waiting_for(own, [replace(ahead, in_step=False)], 10) == []
    assert waiting_for(own, [replace(ahead, groups={"all": 4})], 10) == []
    assert waiting_for(own, [replace(ahead, groups={"another": 9})], 10) == []


def test_a_stopped_process_may_hold_up_a_collective_that_it_has_entered() -> None:
    own = Standing(0, 3, True, {"all": 5}, 30.0, stopped=True)
    peer = Standing(1, 3, True, {"all": 5}, 30.0, stopped=False)
    assert waiting_for(own, [peer], 10) == [1]
    assert waiting_for(own, [replace(peer, stopped=True)], 10) == []
    assert waiting_for(own, [replace(peer, groups={"all": 4})], 10) == []


def looked(seconds: float, vitals: Vitals = IDLE, pulse: Pulse = PULSE, vigil: Vigil | None = None) -> Vigil:
    vigil = vigil or Vigil(PULSE, IDLE, most=2.0)
    for _ in range(round(seconds)):
        vigil.look(pulse, vitals, 1.0)
    return vigil


def test_a_rank_in_which_nothing_runs_is_suspected_after_the_deadline_and_not_before() -> None:
    assert looked(LEAST_SECONDS - 1).suspicion() is None
    assert looked(LEAST_SECONDS).suspicion() == "nothing in its process runs"
    slow = replace(PULSE, step_seconds=6.0)
    assert looked(59, pulse=slow).suspicion() is None
    assert looked(60, pulse=slow).suspicion() is not None
    untimed = replace(PULSE, step_seconds=None)
    assert looked(UNTIMED_SECONDS - 1, pulse=untimed).suspicion() is None


@pytest.mark.parametrize("alive", [replace(IDLE, runnable=True), replace(IDLE, cpu={7: 10.0, 9: 1.01})])
def test_a_rank_in_which_anything_runs_is_not_suspected_however_long_it_takes(alive: Vitals) -> None:
    vigil = looked(15)
    vigil.look(PULSE, alive, 1.0)
    assert looked(15, alive if alive.runnable else IDLE, vigil=vigil).suspicion() is None


def test_progress_is_a_sign_of_life() -> None:
    vigil = looked(19)
    further = replace(PULSE, groups={"all": 6})
    assert looked(19, pulse=further, vigil=vigil).suspicion() is None
    assert looked(3, pulse=further, vigil=vigil).suspicion() is not None


def test_outside_of_steps_only_a_stopped_process_is_suspected() -> None:
    outside = replace(PULSE, in_step=False)
    assert looked(500, pulse=outside).suspicion() is None
    stopped = replace(IDLE, stopped=True)
    assert looked(25, stopped, outside).suspicion() == "its process is stopped"


def test_a_rank_that_computes_far_more_than_a_step_takes_is_suspected() -> None:
    vigil = Vigil(PULSE, IDLE, most=2.0, before=IDLE)
    busy = replace(IDLE, runnable=True, cpu={7: 10.0 + LEAST_SECONDS - 1})
    vigil.look(PULSE, busy, 1.0)
    assert vigil.suspicion() is None
    busy = replace(busy, cpu={7: 10.0 + LEAST_SECONDS})
    vigil.look(PULSE, busy, 1.0)
    assert vigil.suspicion() == "it computes, where a whole step takes 0.8 s,"
    heavy = replace(PULSE, step_cpu=3.0)
    vigil.look(heavy, busy, 1.0)
    assert vigil.suspicion() is None
    vigil.look(replace(PULSE, step_cpu=None), busy, 1.0)
    assert vigil.suspicion() is None


def test_a_look_that_comes_late_counts_for_no_more_than_it_has_seen() -> None:
    vigil = looked(1)
    vigil.look(PULSE, IDLE, 3600.0)
    assert vigil.suspicion() is None
