"""The pod that foretells and reports, beside the trainings of an ablation."""

from ablation_world import IDENTITY
from small_specs import TRAINING_SPEC

from arctic_ablation.study import VariantStudy
from arctic_api.ablation import ArcticAblationSpec, ArcticAblationStatus
from arctic_api.common import Resources
from arctic_operator.manifests.ablation import task_job
from arctic_operator.trials import Ablation


def test_the_pod_takes_what_it_needs_whatever_a_worker_takes(build) -> None:
    spec = ArcticAblationSpec.model_validate(
        {"training": TRAINING_SPEC, "seeds": 2, "objective": {"perplexity": {"sql": 1}}}
    )
    ablation = Ablation(IDENTITY, 1, False, VariantStudy(IDENTITY.name, spec), ArcticAblationStatus())
    workers = {"requests": {"cpu": 64}, "limits": {"memory": "900Gi", "nvidia.com/gpu": 8, "rdma/hca": 8}}
    settings = build.settings.model_copy(update={"worker_resources": Resources.model_validate(workers)})
    job = task_job(ablation, "rates-report", "report", [], {}, settings)
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert container["resources"] == {"requests": {"cpu": "500m", "memory": "1Gi"}, "limits": {"memory": "4Gi"}}
