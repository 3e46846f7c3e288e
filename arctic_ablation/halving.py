"""Asynchronous successive halving (ASHA: Li et al., "A system for massively parallel hyperparameter tuning", 2020).

A rung is a number of tokens. Whoever is among the best 1/factor of those that have come to a rung goes on to the next;
if nobody may, another one begins. It is decided from what has been found and nothing else: whoever asks again, after
whatever has happened between, is told the same. (Optuna's pruner of that name can't take up again what it has stopped.)
"""

from collections.abc import Mapping, Sequence

Climb = tuple[str, int]
"""A variant, and the rung that it may go to."""


def rungs(first: int, total: int, factor: int) -> tuple[int, ...]:
    """Return the tokens of each rung, from `first` on, each `factor` times the one before, and `total` at last."""
    found = []
    while first < total:
        found.append(first)
        first *= factor
    return (*found, total)


def climbs(names: Sequence[str], values: Mapping[str, Sequence[float]], height: int, factor: int) -> list[Climb]:
    """Return who may go where now, those first that have come furthest; nobody once it is over.

    Args:
        names: of all variants that have not failed, in the order in which they begin.
        values: of each the objective at the rungs that it has come to, less is better; none where it has come to none.
        height: number of rungs.
        factor: one of so many goes on.
    """
    reached = {name: list(values.get(name, ())) for name in names}
    found: list[Climb] = []
    for rung in range(height - 2, -1, -1):
        there = best_first([name for name in names if len(reached[name]) > rung], reached, rung)
        found += [(name, rung + 1) for name in there[: len(there) // factor] if len(reached[name]) == rung + 1]
    found += [(name, 0) for name in names if not reached[name]]
    return found or _last(names, reached, height)


def best_first(names: Sequence[str], values: Mapping[str, Sequence[float]], rung: int) -> list[str]:
    """Return variants by their objective at a rung, the least first, those that are alike in their own order."""
    return sorted(names, key=lambda name: values[name][rung])


def _last(names: Sequence[str], reached: Mapping[str, Sequence[float]], height: int) -> list[Climb]:
    """Return the best of the highest rung: where fewer than `factor` are left, one goes on all the same."""
    top = max((len(reached[name]) for name in names), default=0)
    if top in (0, height):
        return []
    best, *_ = best_first([name for name in names if len(reached[name]) == top], reached, top - 1)
    return [(best, top)]
