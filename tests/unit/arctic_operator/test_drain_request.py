"""Groups that are asked by name to go: each once, within the bounds of a rollout, whatever happens meanwhile."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated_groups import Cluster

from arctic_api.inference import ArcticInferenceStatus
from arctic_api.world import group_index
from arctic_operator.observed import read_status
from arctic_operator.plan.actions import Remembered
from arctic_operator.plan.drain_request import drain_events


def fields(replicas, surge=1, unavailable=0, image="one", *, paused=False):
    return {
        "replicas": replicas,
        "rollout": {"maxSurge": surge, "maxUnavailable": unavailable, "drainTimeout": "20s", "paused": paused},
        "engine": {"name": "native", "image": image},
    }


def serving(build, replicas, **how):
    cluster = Cluster(build, build.inference(**fields(replicas, **how)))
    cluster.run(40, step=2)
    assert len(cluster.serving) == replicas
    return cluster


def ask(cluster, value):
    cluster.inference = replace(cluster.inference, drain_request=value)


def answer(cluster):
    return cluster.status.get("drainRequest")


@given(
    replicas=st.integers(1, 3),
    surge=st.integers(0, 2),
    unavailable=st.integers(0, 2),
    asked=st.lists(st.integers(0, 5), min_size=1, max_size=3),
    busy=st.booleans(),
    paused=st.booleans(),
    edited=st.booleans(),
)
@settings(max_examples=25)
def test_a_group_that_is_asked_to_go_goes_once_within_the_bounds_of_a_rollout(
    build, replicas, surge, unavailable, asked, busy, paused, edited
):
    surge = max(surge, int(unavailable == 0))
    cluster = serving(build, replicas, surge=surge, unavailable=unavailable)
    if edited:
        cluster.edit(build, 2, **fields(replicas, surge, unavailable, "two", paused=paused))

    def enough(it):
        assert len(it.serving) >= replicas - unavailable
        assert len(it.groups) <= replicas + surge
        it.remembered = Remembered()  # as an operator that begins anew

    for number, index in enumerate(asked):
        if busy:
            cluster.busy.update(cluster.groups)
        there = {group_index(name): cluster.groups[name] for name in cluster.groups}
        ask(cluster, f"{index}/token-{number}")
        cluster.reconcile()
        assert answer(cluster)["state"] == ("Draining" if index in there else "Refused")
        cluster.run(200, enough, step=2)
        assert answer(cluster)["state"] == ("Drained" if index in there else "Refused")
        if index in there:
            assert there[index].uid not in {group.uid for group in cluster.groups.values()}
    made = len(cluster.made)
    cluster.run(60, enough, step=2)
    assert len(cluster.made) == made, "what was answered is not done again"
    assert len(cluster.serving) == len(cluster.groups) == replicas


def test_a_group_goes_only_when_another_serves_and_its_requests_have_ended(build):
    cluster = serving(build, 2)
    first, second = sorted(cluster.groups)
    cluster.busy = {first}
    ask(cluster, "0/now")
    cluster.run(1)
    assert set(cluster.groups) > {first, second}
    assert cluster.groups[first].draining_since is None
    cluster.run(20)
    assert cluster.groups[first].draining_since
    assert cluster.pods[first, 0].routing == "off"
    assert answer(cluster)["message"] == "group 0 goes as soon as the service can spare it, and another takes its place"
    cluster.run(15)
    assert first in cluster.groups, "its requests run"
    cluster.busy = set()
    cluster.run(3)
    assert first not in cluster.groups
    assert (answer(cluster)["state"], answer(cluster)["message"]) == ("Drained", "group 0 is gone")
    assert cluster.status["state"] == "Ready"


def test_a_later_group_of_the_same_name_stays(build):
    cluster = serving(build, 1, surge=0, unavailable=1)
    (name,) = cluster.groups
    ask(cluster, "0/now")
    cluster.run(60)
    assert cluster.made == [name, name]
    cluster.run(60)
    assert cluster.made == [name, name]
    assert len(cluster.serving) == 1


def test_a_request_that_is_taken_back_in_time_moves_nothing(build):
    cluster = serving(build, 1)
    (name,) = cluster.groups
    ask(cluster, "0/now")
    cluster.run(2)
    ask(cluster, "")
    cluster.run(60)
    assert set(cluster.groups) == {name}
    assert answer(cluster) is None


def test_a_paused_rollout_replaces_the_group_that_was_asked_to_go_and_no_other(build):
    cluster = serving(build, 2)
    first, second = sorted(cluster.groups)
    cluster.edit(build, 2, **fields(2, image="two", paused=True))
    ask(cluster, "1/now")
    cluster.run(60)
    assert first in cluster.groups
    assert second not in cluster.groups
    assert len(cluster.serving) == 2


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ("7/x", "there is no group 7: write one of 0, 1, with a new token"),
        ("x", "'x' is not GROUP/TOKEN: write a group's number and a new token, such as 0/again"),
        ("0", "'0' is not GROUP/TOKEN: write a group's number and a new token, such as 0/again"),
        ("0/", "'0/' is not GROUP/TOKEN: write a group's number and a new token, such as 0/again"),
        (f"{'1' * 63}/x", f"'{'1' * 63}' is not GROUP/TOKEN: write a group's number and a new token, such as 0/again"),
        ("-1/x", "'-1/x' is not GROUP/TOKEN: write a group's number and a new token, such as 0/again"),
        ("²/x", "'²/x' is not GROUP/TOKEN: write a group's number and a new token, such as 0/again"),
    ],
)
def test_what_can_not_be_done_is_refused_with_a_sentence_and_an_event(build, value, sentence):
    cluster = serving(build, 2)
    before = read_status(ArcticInferenceStatus, cluster.status)
    groups = set(cluster.groups)
    ask(cluster, value)
    cluster.run(30)
    assert set(cluster.groups) == groups
    assert (answer(cluster)["state"], answer(cluster)["message"]) == ("Refused", sentence)
    [event] = drain_events(before, cluster.status)
    assert (event.type, event.reason, event.message) == ("Warning", "DrainRefused", sentence)
    assert drain_events(read_status(ArcticInferenceStatus, cluster.status), cluster.status) == []


@given(value=st.text(min_size=1, max_size=300))
def test_no_value_stops_the_planning(build, value):
    cluster = Cluster(build, build.inference(**fields(1)))
    cluster.reconcile()
    ask(cluster, value)
    cluster.reconcile()
    assert answer(cluster)["message"]
