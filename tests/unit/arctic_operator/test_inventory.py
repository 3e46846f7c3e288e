"""What the custom resources say of themselves, as metrics."""

from prometheus_client import CollectorRegistry, generate_latest

from arctic_operator.cache import Cache
from arctic_operator.inventory import Inventory


def exposition(*manifests, leads=True, waiting=None):
    cache, registry = Cache(), CollectorRegistry()
    for version, (kind, name, spec, status) in enumerate(manifests):
        metadata = {"namespace": "team", "name": name, "uid": name, "resourceVersion": str(version + 1)}
        cache.put({"kind": kind, "metadata": metadata, "spec": spec, **({"status": status} if status else {})})
    registry.register(Inventory(cache, lambda: leads, lambda key: (waiting or {}).get(key.name)))
    return {line for line in generate_latest(registry).decode().splitlines() if not line.startswith("#")}


TRAINING = (
    "ArcticTraining",
    "tiny",
    {"restart": {"limit": 3}},
    {
        "state": "Restarting",
        "restarts": 2,
        "attempts": [
            {"number": 1, "reason": "OOMKilled", "completionTime": "2026-01-01T00:00:00Z"},
            {"number": 2, "reason": "Diverged", "completionTime": "2026-01-01T00:01:40Z"},
        ],
    },
)


def test_a_training_shows_its_state_its_budget_of_restarts_and_why_it_ended_last():
    assert exposition(TRAINING) == {
        'arctic_operator_training_info{name="tiny",namespace="team",state="Restarting"} 1.0',
        'arctic_operator_training_restarts{name="tiny",namespace="team"} 2.0',
        'arctic_operator_training_restart_limit{name="tiny",namespace="team"} 3.0',
        "arctic_operator_training_attempt_end_timestamp_seconds"
        '{name="tiny",namespace="team",reason="Diverged"} 1.7672257e+09',
    }


def test_a_service_shows_its_groups():
    status = {"state": "Ready", "replicas": 3, "readyReplicas": 1, "desiredReplicas": 2}
    assert exposition(("ArcticInference", "chat", {}, status)) == {
        'arctic_operator_inference_info{name="chat",namespace="team",state="Ready"} 1.0',
        'arctic_operator_inference_replicas{name="chat",namespace="team"} 3.0',
        'arctic_operator_inference_ready_replicas{name="chat",namespace="team"} 1.0',
        'arctic_operator_inference_desired_replicas{name="chat",namespace="team"} 2.0',
    }


def test_requests_that_wait_are_told_of_the_services_whose_gateways_are_asked():
    services = [("ArcticInference", name, {}, None) for name in ("held", "idle", "unasked")]
    told = {line for line in exposition(*services, waiting={"held": 7, "idle": 0}) if "waiting" in line}
    assert told == {
        'arctic_operator_inference_waiting_requests{name="held",namespace="team"} 7.0',
        'arctic_operator_inference_waiting_requests{name="idle",namespace="team"} 0.0',
    }


def test_an_object_that_nobody_has_visited_is_there_too_with_the_defaults():
    assert exposition(("ArcticTraining", "new", {}, None)) == {
        'arctic_operator_training_info{name="new",namespace="team",state="Unseen"} 1.0',
        'arctic_operator_training_restarts{name="new",namespace="team"} 0.0',
        'arctic_operator_training_restart_limit{name="new",namespace="team"} 10.0',
    }


def test_an_operator_that_does_not_lead_tells_of_no_object():
    assert exposition(TRAINING, leads=False) == set()


def test_a_status_that_somebody_has_edited_hides_no_other_object():
    kind, _, spec, _ = TRAINING
    edited = {"state": "Failed", "restarts": "many", "attempts": [{"reason": "OOMKilled", "completionTime": "then"}]}
    told = exposition((kind, "edited", spec, edited), TRAINING)
    assert exposition(TRAINING) < told
    assert 'arctic_operator_training_info{name="edited",namespace="team",state="Failed"} 1.0' in told
