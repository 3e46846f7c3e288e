"""What all worker pods have in common, whatever made them."""

import copy
import json

import pytest
from kubelet import variables_of

from arctic_api.common import BaseWeights, KeyValue
from arctic_api.rules import RESERVED_FOLDERS
from arctic_api.world import TRACES_VARIABLE, EvaluationWorld, InferenceGroup, TrainingWorld
from arctic_operator.evaluations import Target
from arctic_operator.manifests.evaluation import evaluation_job
from arctic_operator.manifests.inference import group_services, group_set
from arctic_operator.manifests.single_pod import single_pod_policy
from arctic_operator.manifests.training import attempt_job, attempt_services

ENVIRONMENT = {"environment": [{"name": "DEBUG", "value": "1"}]}


@pytest.fixture(params=["training", "inference", "inference of LeaderWorkerSets", "evaluation"])
def children(build, request):
    template = ENVIRONMENT | {
        "affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [{"topologyKey": "rack"}]}},
        "deviceClaims": [{"name": "gpus", "templateName": "eight-gpus"}],
        "topology": ["nvidia.com/gpu.clique", "topology.kubernetes.io/zone"],
        "labels": {"team": "nlp", "arctic.dev/uid": "forged"},
        "volumes": [{"claimName": "corpus", "mountPath": "/corpus"}],
    }
    if request.param == "training":
        training = build.training(template=template)
        job = attempt_job(training, 1, build.settings, None, 0.0)
        return job, attempt_services(training.identity, 1, build.settings)
    if request.param == "evaluation":
        evaluation = build.evaluation(template=template)
        job = evaluation_job(evaluation, Target("tiny", folder="/weights"), build.settings)
        return job, [single_pod_policy(evaluation.identity, build.settings)]
    inference = build.inference(template=template)
    settings = build.settings if request.param == "inference" else build.lws_settings
    group = group_set(inference, "abc123", "tiny-g0", settings, None)
    return group, group_services(inference.identity, "tiny-g0", group["kind"], build.settings)


@pytest.fixture
def pod(children):
    spec = children[0]["spec"]
    return spec["leaderWorkerTemplate"]["workerTemplate"] if "leaderWorkerTemplate" in spec else spec["template"]


def test_pods_meet_the_restricted_standard(pod):
    spec, (container,) = pod["spec"], pod["spec"]["containers"]
    assert spec["securityContext"]["runAsNonRoot"]
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert spec["automountServiceAccountToken"] is False
    assert not [volume for volume in spec["volumes"] if "hostPath" in volume]


def test_workers_find_memory_certificates_and_places_to_write(pod):
    spec, (container,) = pod["spec"], pod["spec"]["containers"]
    mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
    variables = {item["name"]: item.get("value") for item in container["env"]}
    assert {"/dev/shm", "/etc/arctic/tls", "/corpus"} <= set(mounts)
    assert not any("subPath" in mount for mount in mounts.values())
    for name in ("HOME", "TMPDIR", "TRITON_CACHE_DIR", "TORCH_EXTENSIONS_DIR"):
        place = max((m for m in mounts if variables[name].startswith(m)), key=len)
        assert not mounts[place].get("readOnly")
    assert variables["DEBUG"] == "1"
    assert [v["emptyDir"] for v in spec["volumes"] if v["name"] == "shm"] == [{"medium": "Memory"}]


def test_workers_log_as_the_operator_does(build):
    settings = build.settings.model_copy(update={"log_format": "json"})
    (container,) = attempt_job(build.training(), 1, settings, None, 0.0)["spec"]["template"]["spec"]["containers"]
    assert {"name": "ARCTIC_LOG_FORMAT", "value": "json"} in container["env"]


def test_workers_trace_where_the_operator_does_and_else_hear_nothing_of_it(build):
    def variables(settings):
        (container,) = attempt_job(build.training(), 1, settings, None, 0.0)["spec"]["template"]["spec"]["containers"]
        return {each["name"]: each.get("value") for each in container["env"]}

    settings = build.settings.model_copy(update={"tracing_endpoint": "http://collector:4318"})
    assert variables(settings)[TRACES_VARIABLE] == "http://collector:4318"
    assert not [name for name in variables(build.settings) if name.startswith("OTEL_")]


def test_no_author_mounts_over_what_every_worker_has(build):
    elsewhere = BaseWeights(training="old", folder="/var/lib/arctic/store/old/export", claim_name="other")
    training = build.training(model={"from": {"training": "old"}})
    (container,) = attempt_job(training, 1, build.settings, elsewhere, 0.0)["spec"]["template"]["spec"]["containers"]
    folders = {mount["mountPath"] for mount in container["volumeMounts"]}
    reserved = {folder for folder in folders if (folder + "/").startswith(tuple(f"{own}/" for own in RESERVED_FOLDERS))}
    assert folders == reserved


def test_an_author_adds_to_the_operators_labels_and_affinity_and_takes_nothing_away(build, pod):
    terms = pod["spec"]["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert [term["topologyKey"] for term in terms] == ["rack", "kubernetes.io/hostname"]
    assert pod["metadata"]["labels"]["team"] == "nlp"


def test_each_pod_claims_devices_of_its_own_for_its_worker(pod):
    assert pod["spec"]["resourceClaims"] == [{"name": "gpus", "resourceClaimTemplateName": "eight-gpus"}]
    (container,) = pod["spec"]["containers"]
    assert container["resources"]["claims"] == [{"name": "gpus"}]


def test_pods_of_a_world_prefer_nodes_that_are_near_each_other_and_nearest_most(build, pod):
    preferred = pod["spec"]["affinity"]["podAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
    assert [(term["weight"], term["podAffinityTerm"]["topologyKey"]) for term in preferred] == [
        (100, "nvidia.com/gpu.clique"),
        (50, "topology.kubernetes.io/zone"),
    ]
    (apart,) = pod["spec"]["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"][1:]
    assert {str(term["podAffinityTerm"]["labelSelector"]) for term in preferred} == {str(apart["labelSelector"])}
    assert pod["metadata"]["labels"].items() >= apart["labelSelector"]["matchLabels"].items()
    assert pod["metadata"]["labels"]["arctic.dev/uid"] == build.uid


def test_every_child_is_labelled_and_owned(build, children):
    world, beside = children
    for child in (world, *beside):
        assert child["metadata"]["labels"]["arctic.dev/managed"] == "true"
        assert [owner["uid"] for owner in child["metadata"]["ownerReferences"]] == [build.uid]


def test_a_world_is_closed_to_strangers(build, children):
    (policy,) = [child for child in children[1] if child["kind"] == "NetworkPolicy"]
    open_ports = [
        port["port"] for rule in policy["spec"]["ingress"] if "from" not in rule for port in rule.get("ports", ())
    ]
    assert open_ports == [9441]
    (own,) = [rule for rule in policy["spec"]["ingress"] if "ports" not in rule]
    assert own["from"] == [{"podSelector": policy["spec"]["podSelector"]}]


def test_pods_have_names_before_they_are_ready(children):
    world, beside = children
    services = [child for child in beside if child["kind"] == "Service"]
    if world["kind"] == "LeaderWorkerSet":
        assert services == [], "its controller makes one of that name, and leaves one that is there alone"
        return
    if world["metadata"]["labels"]["arctic.dev/kind"] == "ArcticEvaluation":
        assert services == [], "nobody looks for a pod that is alone"
        return
    (service,) = services
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"]


def test_the_world_document_reads_back_as_it_was_written(pod):
    (container,) = pod["spec"]["containers"]
    (text,) = [item["value"] for item in container["env"] if item["name"] == "ARCTIC_WORLD"]
    models = {"ArcticTraining": TrainingWorld, "ArcticInference": InferenceGroup, "ArcticEvaluation": EvaluationWorld}
    model = models[json.loads(text)["kind"]]
    assert model.model_validate_json(text).model_dump_json(by_alias=True) == text


def test_workers_hear_what_is_written_where_it_looks_like_a_reference_to_a_variable_too(build):
    written = "pa$$word $(HOME) $5"
    author = [{"name": "GIVEN", "value": written}]
    tracking = {"mlflow": {"uri": "https://me:pa$$word@mlflow/$(HOME)", "experiment": written}}
    training = build.training(template={"environment": author}, tracking=tracking)
    settings = build.settings.model_copy(update={"worker_environment": (KeyValue(name="COMMON", value=written),)})
    (container,) = attempt_job(training, 1, settings, None, 0.0)["spec"]["template"]["spec"]["containers"]
    heard = variables_of(container)
    assert (heard["GIVEN"], heard["COMMON"]) == (written, written)
    assert TrainingWorld.model_validate_json(heard["ARCTIC_WORLD"]).spec.tracking == training.spec.tracking


def test_a_leader_worker_set_is_one_group_that_its_controller_never_updates_or_restarts(build):
    inference = build.inference(parallelism={"pipeline": 3})
    plain = group_set(inference, "abc123", "tiny-g0", build.settings, None)
    group = group_set(inference, "abc123", "tiny-g0", build.lws_settings, None)
    template = group["spec"]["leaderWorkerTemplate"].pop("workerTemplate")
    assert group == {
        "apiVersion": "leaderworkerset.x-k8s.io/v1",
        "kind": "LeaderWorkerSet",
        "metadata": plain["metadata"],
        "spec": {
            "replicas": 1,
            "startupPolicy": "LeaderCreated",
            "networkConfig": {"subdomainPolicy": "Shared"},
            "rolloutStrategy": {
                "type": "RollingUpdate",
                "rollingUpdateConfiguration": {"partition": 1, "maxUnavailable": 1, "maxSurge": 0},
            },
            "leaderWorkerTemplate": {"size": 3, "restartPolicy": "None"},
        },
    }
    hosts = [f"tiny-g0-{pod}.tiny-g0.team.svc" for pod in ("0", "0-1", "0-2")]
    assert world_of(template).hosts == hosts
    assert with_hosts(template, world_of(plain["spec"]["template"]).hosts) == plain["spec"]["template"]


def variable(template, name):
    (container,) = template["spec"]["containers"]
    return next(item for item in container["env"] if item["name"] == name)


def world_of(template):
    return InferenceGroup.model_validate_json(variable(template, "ARCTIC_WORLD")["value"])


def with_hosts(template, hosts):
    """Return a pod template whose world has other hosts."""
    world = world_of(template).model_copy(update={"hosts": hosts})
    other = copy.deepcopy(template)
    variable(other, "ARCTIC_WORLD")["value"] = world.model_dump_json(by_alias=True)
    return other


def test_a_job_is_one_try_of_all_pods_at_once(build):
    job = attempt_job(build.training(), 3, build.settings, None, 1.5)
    spec = job["spec"]
    assert (spec["completionMode"], spec["completions"], spec["parallelism"]) == ("Indexed", 2, 2)
    assert (spec["backoffLimit"], spec["podReplacementPolicy"]) == (0, "Failed")
    assert not {"activeDeadlineSeconds", "ttlSecondsAfterFinished", "suspend"} & set(spec)
    assert spec["template"]["spec"]["restartPolicy"] == "Never"
    assert spec["template"]["spec"]["terminationGracePeriodSeconds"] == 120
