"""The trainings of an ablation and their evaluations, its own Jobs, and what it leaves."""

import json
from collections.abc import Mapping, Sequence

from arctic_ablation.study import Run, Step
from arctic_ablation.variants import Wire, data_of_suites, trains_adapter
from arctic_api import API_VERSION
from arctic_api.ablation import AblationTask, ForetoldStatus
from arctic_api.ablation_pod import AblationWorld, TrialWord
from arctic_api.common import ClaimVolume, Resources
from arctic_api.evaluation import EvaluatedModel
from arctic_api.training import KIND, CheckpointVolume
from arctic_api.world import STORE_FOLDER, Ports, run_folder
from arctic_operator.manifests.common import Manifest, best_name, child_metadata, judgement_name
from arctic_operator.manifests.evaluation import evaluation_of
from arctic_operator.manifests.single_pod import single_pod_job, without_devices
from arctic_operator.observed import Identity
from arctic_operator.settings import Settings
from arctic_operator.trials import Ablation, Trial

BEST_FILE = "training.json"
MODULE = "arctic_workers.ablation"
RETRIES = 3
GRACE_SECONDS = 5
RESOURCES = Resources.model_validate({"requests": {"cpu": "500m", "memory": "1Gi"}, "limits": {"memory": "4Gi"}})
"""Of a pod that foretells in one thread, and trains nothing: a swarm of 512 runs takes some 350 MiB."""


def trial(identity: Identity, step: Step) -> Manifest:
    """Return an ArcticTraining that goes as far as it may now."""
    # Always there: what is left out of an apply is no difference. Past its end it says nothing.
    suspend_at = step.specification.get("suspendAt", 2 * step.run.total)
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": child_metadata(identity, step.run.name),
        "spec": step.specification | {"suspendAt": suspend_at},
    }


def judgement(ablation: Ablation, run: Run, trial: Trial) -> Manifest:
    """Return the ArcticEvaluation of a training where it rests: of its checkpoint, or else of what it exports."""
    identity, training = ablation.identity, ablation.spec.training
    exports = trains_adapter(run.training)
    model = EvaluatedModel(training=trial.name) if exports else EvaluatedModel(uri=trial.checkpoint)
    name = judgement_name(identity, trial.name, trial.tokens)
    return evaluation_of(identity, name, training, model, data_of_suites(ablation.spec))


def best(identity: Identity, training: Wire) -> Manifest:
    """Return the ConfigMap with the winner's manifest, which `kubectl apply` takes as it is."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": child_metadata(identity, best_name(identity)),
        "data": {BEST_FILE: json.dumps(training, indent=2) + "\n"},
    }


def ablation_folder(ablation: Ablation) -> str:
    """Return the ablation's folder in its trainings' store, as its pods see it."""
    identity = ablation.identity
    return run_folder(_store(ablation), identity.namespace, identity.name, identity.uid)


def _store(ablation: Ablation) -> str:
    path = _volume(ablation).path
    return f"{STORE_FOLDER}/{path}" if path else STORE_FOLDER


def _volume(ablation: Ablation) -> CheckpointVolume:
    volume = ablation.spec.training.checkpoint.volume
    assert volume is not None, "the rules refuse a manifest without a checkpoint volume"
    return volume


def task_job(
    ablation: Ablation,
    name: str,
    task: AblationTask,
    told: Sequence[ForetoldStatus],
    trials: Mapping[str, TrialWord],
    settings: Settings,
    *,
    whole: bool = True,
) -> Manifest:
    """Return the Job that does one thing for an ablation, made once and never changed.

    Args:
        ablation: as it is.
        name: of the Job.
        task: what it is for.
        told: what the swarm has foretold, as far as it has.
        trials: what is known of the trainings, by name.
        settings: the chart's.
        whole: whether nothing is left to be trained.
    """
    identity, training = ablation.identity, ablation.spec.training
    world = AblationWorld(
        namespace=identity.namespace,
        name=identity.name,
        uid=identity.uid,
        spec=ablation.spec,
        task=task,
        told={each.name: each.mixtures for each in told},
        trials=dict(trials),
        store=_store(ablation),
        folder=ablation_folder(ablation),
        whole=whole,
    )
    return single_pod_job(
        identity,
        name,
        settings,
        module=MODULE,
        world=world,
        ports={"metrics": Ports().metrics},
        image=training.image,
        claims=[ClaimVolume(claim_name=_volume(ablation).claim_name, mount_path=STORE_FOLDER, read_only=False)],
        resources=RESOURCES,
        grace_seconds=GRACE_SECONDS,
        priority_class=training.priority_class_name,
        template=without_devices(training.template),
        retries=RETRIES,
    )
