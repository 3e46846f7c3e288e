"""A Job of one pod that works beside trainings and services, which Kubernetes tries again, and its NetworkPolicy."""

from collections.abc import Mapping, Sequence

from arctic_api.common import ClaimVolume, Resources, WorkerTemplate
from arctic_api.world import ExitCode, Label, PodWorld
from arctic_operator.manifests.common import Manifest, base_name, child_metadata, object_labels
from arctic_operator.manifests.worker import network_policy, worker_template
from arctic_operator.observed import COMPLETION_INDEX, WORKER_CONTAINER, Identity
from arctic_operator.settings import Settings


def single_pod_policy(identity: Identity, settings: Settings) -> Manifest:
    """Return the policy of an object's pods of this kind."""
    return network_policy(identity, base_name(identity), settings, _selector(identity))


def _selector(identity: Identity) -> dict[str, str]:
    return {Label.UID.value: identity.uid}


def single_pod_job(
    identity: Identity,
    name: str,
    settings: Settings,
    *,
    module: str,
    world: PodWorld,
    ports: Mapping[str, int],
    image: str | None,
    claims: Sequence[ClaimVolume],
    resources: Resources | None,
    grace_seconds: int,
    priority_class: str | None,
    template: WorkerTemplate | None,
    retries: int,
    secrets: Mapping[str, str] | None = None,
    annotations: Mapping[str, str] | None = None,
) -> Manifest:
    """Return the Job, made once and never changed; arguments as of `worker_template`, `retries` of failures."""
    pod = worker_template(
        identity,
        settings,
        module=module,
        world=world,
        rank_field=f"metadata.annotations['{COMPLETION_INDEX}']",
        labels=object_labels(identity) | {Label.ROLE.value: "worker"},
        selector=_selector(identity),
        ports=ports,
        image=image,
        claims=claims,
        resources=resources,
        grace_seconds=grace_seconds,
        priority_class=priority_class,
        template=template,
        spec={"restartPolicy": "Never"},
        secrets=secrets,
    )
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": child_metadata(identity, name, role="worker", annotations=annotations),
        "spec": {
            "completionMode": "Indexed",
            "completions": 1,
            "parallelism": 1,
            "backoffLimit": retries,
            "podReplacementPolicy": "Failed",
            "podFailurePolicy": {"rules": _failure_rules()},
            "template": pod,
        },
    }


def without_devices(template: WorkerTemplate | None) -> WorkerTemplate | None:
    """Return a training's template for one pod beside it: devices and neighbours are a world's."""
    return template and template.model_copy(update={"device_claims": None, "topology": None})


def _failure_rules() -> list[Manifest]:
    """Return what is no failure: drains, and pods that ended in order; and what is not tried again: bad input."""

    def on_exit(action: str, code: ExitCode) -> Manifest:
        codes = {"containerName": WORKER_CONTAINER, "operator": "In", "values": [int(code)]}
        return {"action": action, "onExitCodes": codes}

    return [
        on_exit("FailJob", ExitCode.BAD_INPUT),
        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
        on_exit("Ignore", ExitCode.INTERRUPTED),
    ]
