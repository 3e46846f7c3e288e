"""The number of groups that load asks for: rules one by one, and a small service whose load is simulated."""

from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arctic_api.inference import ArcticInferenceStatus
from arctic_operator.live import InferenceObservation, Live, Phase
from arctic_operator.observed import GatewayPod, InferenceSeen
from arctic_operator.plan.autoscaling import Measured, Scaler, scale
from arctic_operator.plan.inference import plan_inference

CALM = Measured(1, 0, 0, 0, 0.0, 0.0, 0.0, 0.0, 0)
QUEUE = {"queuedPerReplica": 4}


class Service:
    """A service of which each look measures what the test says."""

    def __init__(self, build, **fields):
        self.build, self.now = build, build.start
        fields = {"max": 8, "target": QUEUE} | fields
        # Of the pods one takes 16 requests at once.
        batching = {"maxSequences": 16}
        self.spec = build.inference(autoscaling=fields, batching=batching).spec
        self.scaler, self.wanted, self.changes = Scaler(), None, []

    def look(self, now_measured, seconds=5.0):
        self.now += timedelta(seconds=seconds)
        status = ArcticInferenceStatus(desired_replicas=self.wanted)
        self.scaling, self.scaler = scale(self.spec, status, self.scaler, now_measured, self.now)
        if self.wanted is not None and self.scaling.wanted != self.wanted:
            self.changes.append(self.scaling.wanted - self.wanted)
        self.wanted = self.scaling.wanted
        return self.wanted

    def looks(self, now_measured, seconds):
        for _ in range(int(seconds / 5)):
            self.look(now_measured)
        return self.wanted


def test_a_service_without_autoscaling_has_what_its_manifest_says(build):
    assert scale(build.inference().spec, ArcticInferenceStatus(), Scaler(), CALM, build.start) == (None, Scaler())


@pytest.mark.parametrize(
    ("target", "now_measured"),
    [
        (QUEUE, replace(CALM, waiting=6)),
        (QUEUE, replace(CALM, held=6)),
        ({"kvCacheUtilization": "50%"}, replace(CALM, kv_cache_utilization=0.7)),
        ({"ttft": "500ms"}, replace(CALM, ttft_p99_seconds=0.8)),
        (QUEUE | {"ttft": "500ms"}, replace(CALM, ttft_p99_seconds=0.8)),
    ],
)
def test_each_target_asks_for_groups_and_of_several_the_worst_counts(build, target, now_measured):
    service = Service(build, target=target)
    service.look(CALM)
    assert service.look(now_measured) == 2
    assert service.scaling.reason == "AboveTarget"


def test_no_look_more_than_doubles_what_serves_and_the_limits_hold(build):
    service = Service(build, max=5)
    service.look(CALM)
    rush = replace(CALM, waiting=400)
    assert service.looks(rush, 60) == 2
    assert service.looks(replace(rush, serving=2), 60) == 4
    assert service.looks(replace(rush, serving=4), 60) == 5
    assert service.scaling.reason == "Limited"


def test_a_rush_must_last_for_the_window_before_it_brings_a_group(build):
    service = Service(build, stabilization={"up": "30s"})
    service.look(CALM)
    assert service.looks(replace(CALM, waiting=6), 25) == 1
    assert service.scaling.reason == "Stabilizing"
    service.look(CALM)
    assert service.looks(replace(CALM, waiting=6), 30) == 1
    assert service.look(replace(CALM, waiting=6)) == 2


def test_a_group_goes_when_nothing_has_asked_for_it_for_the_whole_window(build):
    service = Service(build, stabilization={"down": "60s"})
    two = replace(CALM, serving=2)
    service.look(CALM)
    assert service.look(replace(CALM, waiting=6)) == 2
    assert service.looks(two, 55) == 2
    service.look(replace(two, waiting=8))
    assert service.looks(two, 60) == 2
    assert service.look(two) == 1


def test_a_group_that_is_needed_stays_although_nothing_waits(build):
    service = Service(build, stabilization={"down": "10s"})
    service.look(CALM)
    service.look(replace(CALM, waiting=6))
    assert service.looks(replace(CALM, serving=2, running=20), 600) == 2
    assert service.looks(replace(CALM, serving=2, running=12), 600) == 1


def test_what_a_group_could_not_carry_is_not_asked_of_it_again(build):
    service = Service(build, stabilization={"down": "10s"}, target={"ttft": "500ms"})
    service.look(CALM)
    service.look(replace(CALM, ttft_p99_seconds=0.9, tokens_per_second=100.0))
    two = replace(CALM, serving=2, ttft_p99_seconds=0.1, running=1)
    assert service.looks(replace(two, tokens_per_second=90.0), 3600) == 2
    assert service.looks(replace(two, tokens_per_second=70.0), 3600) == 1


def test_missing_measurements_hold_the_number(build):
    service = Service(build, min=0, scaleToZeroAfter="30s", stabilization={"down": "10s"})
    service.look(CALM)
    service.look(replace(CALM, waiting=6))
    for missing in (replace(CALM, unheard=1), replace(CALM, serving=0), replace(CALM, serving=0, unheard=2)):
        assert service.looks(missing, 600) == 2
        assert not service.scaling.active
    assert service.looks(replace(CALM, serving=2, held=None), 600) == 1, "it is not known that nobody asks"


def test_a_service_nobody_asks_goes_and_a_waiting_request_wakes_it(build):
    service = Service(build, min=0, scaleToZeroAfter="10m", stabilization={"down": "10s"})
    service.look(CALM)
    assert service.looks(CALM, 590) == 1
    service.look(replace(CALM, requests_per_second=0.1))
    assert service.looks(CALM, 600) == 1
    assert service.look(CALM) == 0
    asleep = replace(CALM, serving=0)
    assert service.looks(asleep, 3600) == 0
    assert service.looks(replace(asleep, held=None), 60) == 0
    assert service.look(replace(asleep, held=3)) == 1
    assert service.scaling.reason == "Woken"
    assert service.looks(asleep, 600) == 1, "it loads, however long that takes"
    assert service.looks(CALM, 600) == 1
    assert service.look(CALM) == 0


def test_a_clock_that_is_set_back_costs_no_more_than_a_window(build):
    back = -3600.0
    service = Service(build, min=0, scaleToZeroAfter="10m", stabilization={"up": "10s", "down": "60s"})
    service.looks(CALM, 60)
    service.look(replace(CALM, waiting=6), back)
    assert service.looks(replace(CALM, waiting=6), 15) == 2
    two = replace(CALM, serving=2, requests_per_second=1.0)
    service.look(two, back)
    assert service.looks(two, 70) == 1
    service.look(CALM)
    service.look(CALM, back)
    assert service.looks(CALM, 610) == 0


def test_an_operator_that_begins_anew_waits_for_a_whole_window(build):
    service = Service(build, stabilization={"down": "60s"})
    service.wanted = 3
    three = replace(CALM, serving=3)
    assert service.looks(three, 60) == 3
    assert service.looks(three, 10) == 1


@settings(max_examples=40)
@given(
    limits=st.tuples(st.integers(0, 4), st.integers(0, 4)),
    windows=st.tuples(st.sampled_from([0, 20]), st.sampled_from([0, 60])),
    looks=st.lists(
        st.builds(
            Measured,
            serving=st.integers(0, 6),
            unheard=st.sampled_from([0, 0, 0, 1]),
            running=st.integers(0, 60),
            waiting=st.integers(0, 60),
            kv_cache_utilization=st.floats(0, 1),
            ttft_p99_seconds=st.floats(0, 9),
            tokens_per_second=st.floats(0, 900),
            requests_per_second=st.sampled_from([0.0, 0.0, 1.0]),
            held=st.none() | st.integers(0, 3),
        ),
        max_size=20,
    ),
)
def test_whatever_is_measured_the_limits_and_the_windows_hold(build, limits, windows, looks):
    low, high = limits[0], max(1, limits[0] + limits[1])
    up, down = (timedelta(seconds=window) for window in windows)
    zero = {"scaleToZeroAfter": "30s"} if low == 0 else {}
    stabilization = {"up": f"{windows[0]}s", "down": f"{windows[1]}s"}
    target = QUEUE | {"kvCacheUtilization": "80%", "ttft": "1s"}
    service = Service(build, min=low, max=high, stabilization=stabilization, target=target, **zero)
    for now_measured in looks:
        before = service.wanted
        wanted = service.look(now_measured)
        assert low <= wanted <= high
        if before is None or wanted == before or 0 in (before, wanted):
            continue
        assert now_measured.serving
        assert not now_measured.unheard
        asked = [(service.now - moment, count) for moment, count in service.scaler.asked]
        if wanted < before:
            assert all(count <= wanted for age, count in asked if age <= down)
        else:
            assert all(count >= wanted for age, count in asked if age <= up)


@settings(max_examples=5)
@given(
    arriving=st.floats(0.01, 12.0),
    capacity=st.floats(0.5, 3.0),
    target=st.sampled_from([QUEUE, {"queuedPerReplica": 1}, {"ttft": "500ms"}, {"kvCacheUtilization": "60%"}]),
    down=st.sampled_from(["30s", "5m"]),
)
def test_under_a_constant_load_the_number_settles(build, arriving, capacity, target, down):
    """A queue in front of groups that take 30 s to load; the time to first token grows with what is in a group."""
    service = Service(build, max=32, target=target, stabilization={"down": down})
    started, inside, served = [service.now], 0.0, [0.0, 0.0]
    for _ in range(300):
        ready = sum(service.now - moment >= timedelta(seconds=30) for moment in started)
        inside += arriving * 5
        done = min(inside, ready * capacity * 5)
        inside -= done
        served = [served[1], done / 5]
        in_work = min(inside + sum(served), ready * 16)
        service.look(
            Measured(
                serving=ready,
                unheard=0,
                running=round(in_work),
                waiting=round(max(0.0, inside - in_work)),
                kv_cache_utilization=min(1.0, in_work / ready / 16) if ready else 0.0,
                ttft_p99_seconds=0.1 + (inside / (ready * capacity) if ready else 0.0),
                tokens_per_second=50 * sum(served) / 2,
                requests_per_second=sum(served) / 2,
                held=0,
            )
        )
        started = [*started, *[service.now] * (service.wanted - len(started))][: service.wanted]
    turns = sum(one * other < 0 for one, other in zip(service.changes, service.changes[1:], strict=False))
    assert turns <= 1, service.changes
    assert service.wanted * capacity >= arriving or service.wanted == 32


def test_a_plan_follows_what_the_leaders_say_and_tells_why(build):
    inference = build.inference(autoscaling={"min": 0, "max": 3, "scaleToZeroAfter": "10m", "target": QUEUE})
    seen = InferenceSeen(gateways=(GatewayPod("gateway", "uid", "", "10.0.0.9"),))
    plan = plan_inference(inference, seen, build.settings, build.start)
    assert plan.ask_gateways == ("10.0.0.9",)
    (group,) = [build.group_set_of(with_metadata(made, build.start)) for made in plan.create]
    pods = tuple(build.pod(index, attempt=None, group=group.name, ready_since=build.start) for index in range(2))
    status = plan.status
    for second, waiting in ((60, 0), (65, 7)):
        told = InferenceObservation("", Phase.RUNNING, "", None, ready=True, running=16, waiting=waiting)
        seen = replace(seen, groups=(group,), pods=pods, live={group.name: Live(told, build.start, connected=True)})
        plan = plan_inference(
            replace(inference, status=ArcticInferenceStatus.model_validate(status)),
            seen,
            build.settings,
            build.seconds(second),
            plan.remembered,
        )
        status = plan.status
    assert status["desiredReplicas"] == 2
    assert len(plan.create) == 1
    assert status["scaling"]["reason"] == "AboveTarget"
    assert status["scaling"]["message"] == "1 to 2 groups: 7.0 requests wait by group of 4"
    (active,) = [each for each in status["conditions"] if each["type"] == "ScalingActive"]
    assert (active["status"], active["reason"]) == ("True", "Measured")


def with_metadata(manifest, created):
    made = {"uid": "uid", "creationTimestamp": created.isoformat()}
    return manifest | {"metadata": manifest["metadata"] | made}
