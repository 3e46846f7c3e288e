"""The pod of an evaluation."""

from arctic_api.common import Resources
from arctic_operator.evaluations import Target
from arctic_operator.manifests.evaluation import evaluation_job

WORKERS = {"requests": {"cpu": 64}, "limits": {"memory": "900Gi", "nvidia.com/gpu": 8}}
WEIGHTS, API = Target("tiny", folder="/weights"), Target("tiny", url="http://tiny.team.svc:8000/v1")


def test_who_asks_an_api_takes_no_workers_place_unless_its_manifest_says_so(build) -> None:
    """Else the evaluation of a service that has all devices would wait for it to end."""
    settings = build.settings.model_copy(update={"worker_resources": Resources.model_validate(WORKERS)})

    def resources(target, **changes):
        job = evaluation_job(build.evaluation(**changes), target, settings)
        (container,) = job["spec"]["template"]["spec"]["containers"]
        return container["resources"]

    assert resources(WEIGHTS) == WORKERS
    assert resources(API, concurrency=4) == {
        "requests": {"cpu": "500m", "memory": "2Gi"},
        "limits": {"memory": "6Gi"},
    }
    assert resources(API, resources={"limits": {"memory": "8Gi"}}) == {"limits": {"memory": "8Gi"}}
