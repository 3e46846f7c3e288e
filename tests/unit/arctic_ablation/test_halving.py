"""Successive halving, over whole lives of made-up curves."""

from hypothesis import given, settings
from hypothesis import strategies as st

from arctic_ablation.halving import climbs, rungs


def test_rungs_grow_by_the_factor_and_end_with_the_whole():
    assert rungs(1000, 9000, 3) == (1000, 3000, 9000)
    assert rungs(1000, 10_000, 3) == (1000, 3000, 9000, 10_000)
    assert rungs(9000, 9000, 3) == (9000,)


def live(curves: dict[str, list[float]], factor: int, places: int, draw) -> dict[str, list[float]]:
    """Run to the end, so many at a time, which end in any order; return what each came to."""
    reached: dict[str, list[float]] = {name: [] for name in curves}
    height = len(next(iter(curves.values())))
    running: list[tuple[str, int]] = []
    while True:
        wanted = [step for step in climbs(list(curves), reached, height, factor) if step not in running]
        running += wanted[: places - len(running)]
        if not running:
            return reached
        name, rung = running.pop(draw(st.integers(0, len(running) - 1)))
        assert len(reached[name]) == rung, "each goes to the rung above its last"
        reached[name].append(curves[name][rung])


@settings(max_examples=30)
@given(st.data())
def test_the_best_comes_to_the_end_whatever_ends_first(data):
    count, height = data.draw(st.integers(1, 20)), data.draw(st.integers(1, 4))
    factor, places = data.draw(st.integers(2, 5)), data.draw(st.integers(1, 4))
    order = data.draw(st.permutations(range(count)))
    curves = {f"v{place}": [float(place) - rung for rung in range(height)] for place in order}
    reached = live(curves, factor, places, data.draw)
    assert all(reached.values()), "each is judged once at least"
    assert len(reached["v0"]) == height, "it is the best at every rung"


@given(st.data())
def test_in_turn_hardly_more_go_on_than_the_factor_says(data):
    """Promoted early means promoted by what was there then: the bound is on what is there at the time."""
    values = data.draw(st.lists(st.floats(0, 10), min_size=3, max_size=30))
    names = [f"v{number}" for number in range(len(values))]
    reached = {name: [value] for name, value in zip(names, values, strict=True)}
    chosen = climbs(names, reached, 2, 3)
    assert len(chosen) == len(values) // 3
    worst = max(reached[name][0] for name, _ in chosen)
    assert worst <= min(reached[name][0] for name in names if name not in dict(chosen)) or len(set(values)) < len(
        values
    )


@given(st.data())
def test_what_is_next_depends_on_what_was_found_alone(data):
    names = ["a", "b", "c", "d"]
    lengths = data.draw(st.lists(st.integers(0, 3), min_size=4, max_size=4))
    values = {n: [float(data.draw(st.integers(0, 5))) for _ in range(k)] for n, k in zip(names, lengths, strict=True)}
    shuffled = dict(data.draw(st.permutations(list(values.items()))))
    assert climbs(names, values, 3, 2) == climbs(names, shuffled, 3, 2)


def test_with_fewer_than_the_factor_the_best_goes_on_all_the_same():
    assert climbs(["a", "b"], {"a": [2.0], "b": [1.0]}, 2, 3) == [("b", 1)]
    assert climbs(["a", "b"], {"a": [2.0], "b": [1.0, 1.0]}, 2, 3) == []
