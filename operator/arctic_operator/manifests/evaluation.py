"""The Job of an evaluation, and the evaluations that are a training's own."""

from collections.abc import Sequence

from arctic_api import API_VERSION
from arctic_api.common import ClaimVolume, Resources
from arctic_api.evaluation import KIND as EVALUATION
from arctic_api.evaluation import ArcticEvaluationSpec, EvaluatedModel
from arctic_api.training import ArcticTrainingSpec, SuiteData
from arctic_api.world import (
    CREDENTIALS_FOLDER,
    STORE_FOLDER,
    EvaluationWorld,
    Ports,
    run_folder,
)
from arctic_operator.evaluations import Evaluation, Target
from arctic_operator.manifests.common import Manifest, base_name, child_metadata, stage_evaluation_name
from arctic_operator.manifests.single_pod import single_pod_job, without_devices
from arctic_operator.manifests.training import weights_claims
from arctic_operator.observed import (
    GENERATION_ANNOTATION,
    REVISION_ANNOTATION,
    Identity,
    Training,
)
from arctic_operator.settings import Settings

MODULE = "arctic_workers.evaluation"
GRACE_SECONDS = 30
"""What a pod gets to end its server; what was answered is kept as it comes."""


def job_name(evaluation: Evaluation) -> str:
    """Return the name of the Job that an evaluation has as it is written now."""
    return f"{base_name(evaluation.identity)}-{evaluation.revision}"


def results_folder(evaluation: Evaluation) -> str:
    """Return the evaluation's folder, as its pod sees it."""
    identity, volume = evaluation.identity, evaluation.spec.results
    root = f"{STORE_FOLDER}/{volume.path}" if volume.path else STORE_FOLDER
    return run_folder(root, identity.namespace, identity.name, identity.uid)


def evaluation_job(
    evaluation: Evaluation, target: Target, settings: Settings, compared: Sequence[str] = ()
) -> Manifest:
    """Return the Job, made once and never changed; `compared` are the folders of what its page shows beside it."""
    identity, spec, ports = evaluation.identity, evaluation.spec, Ports()
    store = ClaimVolume(claim_name=spec.results.claim_name, mount_path=STORE_FOLDER, read_only=False)
    claims, weights = weights_claims([store], target.weights)
    secret = spec.model.credentials.secret_name if spec.model.credentials else None
    world = EvaluationWorld(
        namespace=identity.namespace,
        name=identity.name,
        uid=identity.uid,
        spec=spec,
        job=job_name(evaluation),
        folder=results_folder(evaluation),
        weights_folder=weights or target.folder,
        url=target.url,
        model=target.name,
        credentials_folder=CREDENTIALS_FOLDER if secret else None,
        compared=list(compared),
    )
    return single_pod_job(
        identity,
        world.job,
        settings,
        module=MODULE,
        world=world,
        ports={"control": ports.control, "metrics": ports.metrics},
        image=spec.image,
        claims=claims,
        resources=spec.resources or (_of_a_judge(spec) if target.url else None),
        grace_seconds=GRACE_SECONDS,
        priority_class=spec.priority_class_name,
        template=spec.template,
        retries=spec.retries,
        secrets={secret: CREDENTIALS_FOLDER} if secret else {},
        annotations={REVISION_ANNOTATION: evaluation.revision, GENERATION_ANNOTATION: str(evaluation.generation)},
    )


def _of_a_judge(spec: ArcticEvaluationSpec) -> Resources:
    """Return what a pod takes that serves no weights: each program that it runs may have 1 GiB."""
    limit = f"{2 + spec.concurrency}Gi"
    return Resources.model_validate({"requests": {"cpu": "500m", "memory": "2Gi"}, "limits": {"memory": limit}})


def stage_evaluation(training: Training, number: int, stage: str | None) -> Manifest:
    """Return the ArcticEvaluation of what a training was at a stage's end, the `number`-th; of its export for None."""
    name = stage_evaluation_name(training.identity, number)
    model = EvaluatedModel(training=training.identity.name, stage=stage)
    assert training.spec.evaluation is not None
    return evaluation_of(training.identity, name, training.spec, model, training.spec.evaluation.data or [])


def evaluation_of(
    owner: Identity, name: str, spec: ArcticTrainingSpec, model: EvaluatedModel, suites: Sequence[SuiteData]
) -> Manifest:
    """Return an ArcticEvaluation of a training's weights, which its owner makes as the training says.

    Args:
        owner: that training, or the ablation that it belongs to.
        name: of the evaluation.
        spec: of the training.
        model: its weights.
        suites: what they are asked.
    """
    volume = spec.checkpoint.volume
    assert spec.evaluation is not None
    assert volume is not None, "the rules refuse a manifest without a checkpoint volume"
    made = ArcticEvaluationSpec(
        model=model,
        suites=list(suites),
        results=volume,
        priority_class_name=spec.priority_class_name,
        image=spec.image,
        resources=spec.evaluation.resources,
        template=without_devices(spec.template),
    )
    return {
        "apiVersion": API_VERSION,
        "kind": EVALUATION,
        "metadata": child_metadata(owner, name),
        "spec": made.wire(),
    }
