"""Canaries that decide, over whole rollouts of a small world whose groups count what they answer."""

import math
from dataclasses import replace
from datetime import timedelta

import pytest
from simulated_groups import Cluster

from arctic_operator.live import Figures, LogSums
from arctic_operator.plan.actions import Remembered

SPREAD = 0.25
"""Variance of the logarithms of latencies."""
REQUESTS = 4
"""By each group and second."""


class Busy(Cluster):
    """A world in which each group answers requests; those of a revision take so much more time."""

    def __init__(self, build, inference):
        super().__init__(build, inference)
        self.counted, self.slower, self.requests = {}, {}, REQUESTS

    def tick(self, seconds=1.0):
        super().tick(seconds)
        for name in self.serving:
            count = int(self.requests * seconds)
            mean = math.log1p(self.slower.get(self.groups[name].revision, 0.0))
            sums = LogSums(count, count * mean, count * (mean**2 + SPREAD))
            self.counted[name] = self.counted.get(name, Figures()).plus(Figures(count, 0, sums, sums))

    def live(self, name):
        live = super().live(name)
        return replace(live, observation=replace(live.observation, figures=self.counted.get(name, Figures())))

    @property
    def canary(self):
        return self.status.get("canary") or {}

    @property
    def revisions(self):
        return [group.revision for group in self.groups.values()]


def fields(image, replicas=2, **canary):
    asked = {"weight": "50%", "analysis": {"duration": "4m"}} | canary
    rollout = {"maxSurge": 1, "drainTimeout": "20s", "canary": asked}
    return {"replicas": replicas, "rollout": rollout, "engine": {"name": "native", "image": image}}


def condition(status, kind):
    found = next(each for each in status["conditions"] if each["type"] == kind)
    return found["status"], found["reason"]


@pytest.fixture
def world(build):
    """A service of two groups whose next revision has just been asked for."""
    world = Busy(build, build.inference(**fields("one")))
    world.run(40, step=2)
    assert world.status["state"] == "Ready"
    assert world.canary == {}
    world.stable = world.status["revision"]
    world.edit(build, 2, **fields("two"))
    world.reconcile()
    world.new = world.status["revision"]
    return world


def serves(world):
    assert len(world.serving) >= 2
    assert len(world.groups) <= 3


def test_a_worse_canary_is_rolled_back_and_refused_until_the_manifest_makes_another(build, world):
    world.slower[world.new] = 0.4
    world.run(160, serves, step=2)
    assert (world.canary["verdict"], world.canary["revision"]) == ("RolledBack", world.new)
    assert "the time to the first token is +40.0%" in world.canary["message"]
    assert world.revisions == [world.stable] * 2
    assert condition(world.status, "Degraded") == ("True", "CanaryRolledBack")
    assert condition(world.status, "CanaryPassed") == ("False", "RolledBack")
    assert (world.status["state"], world.status["observedGeneration"]) == ("Ready", 2)
    world.remembered = Remembered()
    del world.groups[min(world.groups)]
    world.run(60, step=2)
    assert world.revisions == [world.stable] * 2, "what breaks is made as it was"
    world.inference = replace(build.inference(generation=2, **fields("two", replicas=3)), generation=3)
    world.run(60, step=2)
    assert world.revisions == [world.stable] * 3
    world.edit(build, 4, **fields("three"))
    world.run(60, step=2)
    assert world.canary["verdict"] == "Analyzing"
    assert set(world.revisions) == {world.stable, world.canary["revision"]}
    assert world.canary["revision"] != world.new
    world.inference = replace(build.inference(generation=2, **fields("two", analysis=None)), generation=5)
    world.run(60, step=2)
    assert "canary" not in world.status
    assert world.new in world.revisions, "people decide again"


@pytest.mark.parametrize("harmless", [False, True])
def test_an_upgrade_that_computes_revisions_otherwise_does_not_try_again_what_was_rolled_back(build, world, harmless):
    world.slower[world.new] = 0.4
    world.run(160, serves, step=2)
    assert world.canary["verdict"] == "RolledBack"
    if harmless:
        world.inference = replace(build.inference(generation=2, **fields("two", replicas=3)), generation=3)
        world.run(60, step=2)
    world.remembered = Remembered()
    world.inference = replace(world.inference, revision="computed otherwise")
    world.run(60, step=2)
    assert set(world.revisions) == {world.stable}
    assert (world.canary["verdict"], world.canary["revision"]) == ("RolledBack", world.new)
    world.edit(build, 4, **fields("three"))
    world.run(60, step=2)
    assert world.canary["verdict"] == "Analyzing"


def test_a_canary_that_is_no_worse_takes_over_after_its_time(build, world):
    world.run(230, serves, step=2)
    assert world.canary["verdict"] == "Analyzing"
    assert condition(world.status, "CanaryPassed") == ("Unknown", "Comparing")
    assert set(world.revisions) == {world.stable, world.new}
    world.remembered = Remembered()
    world.run(200, serves, step=2)
    assert world.canary["verdict"] == "Promoted"
    assert world.revisions == [world.new] * 2
    assert condition(world.status, "CanaryPassed") == ("True", "Promoted")
    assert (world.status["state"], world.status["stableRevision"]) == ("Ready", world.new)


@pytest.mark.parametrize("odd", ["2026-01-01t00:00:00+25:00", "0000-01-01T00:00:00Z"])
def test_a_time_that_somebody_has_written_into_the_status_begins_an_analysis_anew(build, world, odd):
    world.run(230, serves, step=2)
    world.status["canary"]["since"] = odd
    world.remembered = Remembered()
    world.run(2, serves, step=2)
    assert world.canary["verdict"] == "Analyzing"
    assert world.canary["since"].startswith("2026-01-01T")


def test_an_analysis_ends_though_the_clock_is_set_back(build, world):
    world.run(100, serves, step=2)
    world.now -= timedelta(hours=1)
    world.run(300, serves, step=2)
    assert world.canary["verdict"] == "Promoted"


def test_the_time_of_an_analysis_begins_when_both_revisions_serve_and_anew_with_another_weight(build, world):
    [canary] = [name for name, group in world.groups.items() if group.revision == world.new]
    world.broken.add(canary)
    world.run(300, step=2)
    assert condition(world.status, "CanaryPassed") == ("Unknown", "Waiting")
    assert "since" not in world.canary
    world.broken.clear()
    world.run(160, step=2)
    assert condition(world.status, "CanaryPassed") == ("Unknown", "Comparing")
    world.edit(build, 3, **fields("two", weight="60%"))
    world.run(160, step=2)
    assert condition(world.status, "CanaryPassed") == ("Unknown", "Comparing")
    world.run(120, step=2)
    assert world.canary["verdict"] == "Promoted"


@pytest.mark.parametrize(("requests", "slower", "reason"), [(0, 0, "TooFewRequests"), (1, 0.07, "NotSure")])
def test_a_canary_that_nothing_is_known_of_for_certain_stays_one(world, requests, slower, reason):
    world.requests, world.slower[world.new] = requests, slower
    world.run(330, serves, step=2)
    assert world.canary["verdict"] == "Analyzing"
    assert condition(world.status, "CanaryPassed") == ("Unknown", reason)
    assert set(world.revisions) == {world.stable, world.new}


def test_what_one_side_does_alone_is_not_compared(world):
    world.run(60, step=2)
    before = world.remembered.comparison
    canary = next(name for name, group in world.groups.items() if group.revision == world.new)
    told = world.live
    world.live = lambda name: replace(told(name), connected=name != canary)
    world.run(60, step=2)
    assert world.remembered.comparison == replace(before, latest={})
    assert condition(world.status, "CanaryPassed") == ("Unknown", "Waiting")
    world.live = told
    world.run(2, step=2)
    assert world.remembered.comparison.old == before.old, "what it has counted meanwhile belongs to nobody"
