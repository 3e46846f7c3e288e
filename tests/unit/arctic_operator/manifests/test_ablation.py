"""The pod that foretells and reports, beside the trainings of an ablation."""

from ablation_world import IDENTITY
from small_specs import TRAINING_SPEC

from arctic_ablation.study import VariantStudy
from arctic_api.ablation import ArcticAblationSpec, ArcticAblationStatus
from arctic_api.common import Resources
from arctic_operator.manifests.ablation import task_job
from arctic_operator.trials import Ablation


def test_the_pod_gets_what_workers_get_by_default_but_for_devices(build) -> None:
    spec = ArcticAblationSpec.model_validate(
        {"training": TRAINING_SPEC, "seeds": 2, "objective": {"perplexity": {"sql": 1}}}
    )
    ablation = Ablation(IDENTITY, 1, False, VariantStudy(IDENTITY.name, spec), ArcticAblationStatus())
    workers = {"requests": {"cpu": 4}, "limits": {"memory": "64Gi", "nvidia.com/gpu": 8, "rdma/hca": 8}}
    settings = build.settings.model_copy(update={"worker_resources": Resources.model_validate(workers)})
    job = task_job(ablation, "rates-report", "report", [], {}, settings)
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert container["resources"] == {"requests": {"cpu": 4}, "limits": {"memory": "64Gi"}}
