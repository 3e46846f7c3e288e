"""The loop on an API server in memory, and the edge's pure parts; the edge itself is tried in tests/cluster."""

from itertools import islice

from arctic_operator.cluster import ApiError, contains
from arctic_operator.handlers import LONGEST_WAIT, EndlessBackoff, build_registry, kopf_settings, watched
from arctic_operator.observed import TrainingSeen
from arctic_operator.plan.training import plan_training
from arctic_operator.reconcile import PROGRESS_FIELDS, Bucket, difference, with_failure


def status(**fields):
    condition = {"type": "Ready", "status": "True", "reason": "Because", "message": "m", "observedGeneration": 1}
    return {
        "state": "Running",
        "conditions": [condition],
        "stages": [{"name": "a", "tokens": 1}, {"name": "b"}],
    } | fields


def test_the_order_in_which_the_api_server_keeps_lists_is_no_news():
    assert difference(status(), status(stages=[{"name": "b"}, {"name": "a", "tokens": 1}])) == set()


def test_progress_is_told_from_changes_of_state():
    assert (
        difference(status(step=1), status(step=2, stages=[{"name": "a", "tokens": 2}, {"name": "b"}]))
        <= PROGRESS_FIELDS
    )
    assert difference(status(), status(state="Failed")) == {"state"}
    said = status(conditions=[status()["conditions"][0] | {"message": "other"}])
    assert difference(status(), said) <= PROGRESS_FIELDS
    turned = status(conditions=[status()["conditions"][0] | {"status": "False"}])
    assert difference(status(), turned) == {"conditions"}


def test_a_child_that_has_more_than_is_wanted_needs_no_write():
    known = {"spec": {"ports": [{"port": 80, "protocol": "TCP"}], "clusterIP": "10.0.0.1"}}
    assert contains(known, {"spec": {"ports": [{"port": 80}]}})
    assert contains(known, {"spec": {"selector": {}}})
    assert not contains(known, {"spec": {"ports": [{"port": 81}]}})
    assert not contains(known, {"spec": {"ports": []}})
    assert not contains(known, {"spec": {"ports": [{"port": 80}, {"port": 81}]}})


def test_a_refused_child_shows_in_the_status_and_an_api_server_that_is_away_does_not(build):
    training = build.training()
    plain = plan_training(training, TrainingSeen(), build.settings, build.start).status
    told = with_failure(plain, ApiError(403, "Forbidden", "exceeded quota: gpus"), training, build.start)
    degraded = [c for c in told["conditions"] if c["type"] == "Degraded"]
    assert [(c["status"], c["reason"], c["message"]) for c in degraded] == [
        ("True", "FailedCreate", "exceeded quota: gpus")
    ]
    assert len(told["conditions"]) == len(plain["conditions"])
    for code in (0, 429, 500, 503):
        assert with_failure(plain, ApiError(code, "", "away"), training, build.start) == plain
    ending = ApiError(403, "NamespaceTerminating", "the namespace is being terminated")
    assert with_failure(plain, ending, training, build.start) == plain


def test_a_bucket_gives_no_more_than_its_rate():
    now = [0.0]
    bucket = Bucket(20, lambda: now[0])
    assert sum(bucket.take() for _ in range(100)) == 20
    now[0] = 0.5
    assert sum(bucket.take() for _ in range(100)) == 10


def test_watchers_never_stop_trying():
    waits = list(islice(EndlessBackoff(), 1000))
    assert len(waits) == 1000
    assert max(waits) <= LONGEST_WAIT
    assert waits[0] <= 1


def test_only_what_is_ours_is_watched_and_nobodys_object_is_written(build):
    kopf = kopf_settings(build.settings)
    kinds = watched(build.settings)
    selectors = list(kopf.watching.label_selectors.values())
    assert set(kinds) - {"ArcticTraining", "ArcticInference"} == {
        *("Job", "StatefulSet", "Deployment", "Pod", "Service", "NetworkPolicy", "PodDisruptionBudget", "Lease")
    }
    assert set(selectors) == {"arctic.dev/managed=true"}
    assert len(selectors) == len(kinds) - 2
    assert "Node" in watched(build.settings.model_copy(update={"read_nodes": True}))
    registry = build_registry(build.settings, lambda kind, manifest: None)
    assert list(registry._changing.get_all_handlers()) == []
    assert list(registry._spawning.get_all_handlers()) == []


async def test_a_job_whose_watch_is_ahead_of_its_pods_is_judged_by_pods_that_are_not_behind(operator, build):
    key = operator.add("ArcticTraining")
    await operator.reconcile(key)
    for pod in operator.pods("Running"):
        operator.cache.put(pod)
    await operator.reconcile(key)
    ended = {"exitCode": 0, "message": build.report(exportUri="file:///export"), "finishedAt": "2026-01-01T00:10:00Z"}
    operator.pods("Succeeded", terminated=ended)
    (job,) = operator.server.of("Job")
    complete = {"type": "Complete", "status": "True", "lastTransitionTime": "2026-01-01T00:10:00Z"}
    operator.cache.put(operator.server.put(job | {"status": {"conditions": [complete]}}))
    await operator.reconcile(key)
    assert (operator.status(key)["state"], operator.status(key)["restarts"]) == ("Succeeded", 0)
