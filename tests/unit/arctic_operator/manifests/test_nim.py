"""The pod of a NIM: NVIDIA's container as its documentation asks for it, and our worker beside it."""

import json
from typing import Any

import pytest
from kubelet import variables_of
from pod_security import violations

from arctic_api.common import ClaimVolume, Resources
from arctic_api.world import InferenceGroup
from arctic_operator.manifests.inference import group_set

SPEC: dict[str, Any] = {
    "engine": {
        "name": "nim",
        "image": "nvcr.io/nim/nvidia/arctic:2.1.6",
        "credentials": {"secretName": "ngc"},
        "cacheClaim": "nim-cache",
    },
    "model": {"inImage": True, "servedName": "arctic"},
    "parallelism": {"tensor": 8},
    "resources": {"limits": {"nvidia.com/gpu": "8"}},
    "rollout": {"drainTimeout": "60s"},
    "template": {
        "environment": [{"name": "NIM_MAX_MODEL_LEN", "value": "4096"}, {"name": "NIM_SERVER_PORT", "value": "1"}],
        "volumes": [{"claimName": "extra", "mountPath": "/extra"}],
        "nodeSelector": {"gpu": "h100"},
        "deviceClaims": [{"name": "gpus", "templateName": "eight-gpus"}],
    },
}
NIM = {
    "name": "nim",
    "image": "nvcr.io/nim/nvidia/arctic:2.1.6",
    "imagePullPolicy": "IfNotPresent",
    "env": [
        {"name": "OUTLINES_CACHE_DIR", "value": "/tmp/outlines"},
        {"name": "NIM_MAX_MODEL_LEN", "value": "4096"},
        {"name": "NIM_SERVER_PORT", "value": "8000"},
        {"name": "NIM_CACHE_PATH", "value": "/opt/nim/.cache"},
        {"name": "NIM_HTTP_API_PORT", "value": "8000"},
        {"name": "NIM_SERVED_MODEL_NAME", "value": "arctic"},
        {"name": "NIM_TENSOR_PARALLEL_SIZE", "value": "8"},
        {"name": "NGC_API_KEY", "valueFrom": {"secretKeyRef": {"name": "ngc", "key": "NGC_API_KEY"}}},
    ],
    "ports": [{"name": "http", "containerPort": 8000}],
    "resources": {"limits": {"nvidia.com/gpu": "8"}, "claims": [{"name": "gpus"}]},
    "securityContext": {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": False,
        "capabilities": {"drop": ["ALL"]},
        "runAsUser": 1000,
        "runAsGroup": 1000,
    },
    "terminationMessagePolicy": "FallbackToLogsOnError",
    "lifecycle": {
        "preStop": {"httpGet": {"path": "/drained/0a1b2c3d-0000-4000-8000-000000000001", "port": 9441}},
    },
    "volumeMounts": [
        {"name": "shm", "mountPath": "/dev/shm"},
        {"name": "nim-claim-0", "mountPath": "/extra", "readOnly": True},
        {"name": "nim-cache", "mountPath": "/opt/nim/.cache", "readOnly": False},
    ],
    "startupProbe": {
        "httpGet": {"path": "/v1/health/ready", "port": 8000},
        "periodSeconds": 5,
        "failureThreshold": 4320,
        "timeoutSeconds": 3,
    },
    "livenessProbe": {
        "httpGet": {"path": "/v1/health/live", "port": 8000},
        "periodSeconds": 10,
        "failureThreshold": 6,
        "timeoutSeconds": 5,
        "terminationGracePeriodSeconds": 30,
    },
    "readinessProbe": {
        "httpGet": {"path": "/v1/health/ready", "port": 8000},
        "periodSeconds": 5,
        "failureThreshold": 3,
        "timeoutSeconds": 5,
    },
}


@pytest.fixture
def nim(build):
    """Makes the template of a NIM's pod."""

    def make(settings=build.settings, **spec):
        group = group_set(build.inference(**SPEC | spec), "abc123", "tiny-g0", settings, None)
        assert group["spec"]["replicas"] == 1
        return group["spec"]["template"]

    return make


def test_nvidias_container_is_told_what_the_manifest_says(nim):
    (container,) = nim()["spec"]["containers"]
    assert container == NIM


def test_what_looks_like_a_reference_to_a_variable_is_told_as_it_is_written(nim):
    written = "a$$b $(NIM_SERVER_PORT)"
    environment = [{"name": "GIVEN", "value": written}]
    (container,) = nim(model={"inImage": True, "servedName": written}, template={"environment": environment})["spec"][
        "containers"
    ]
    heard = variables_of(container)
    assert (heard["GIVEN"], heard["NIM_SERVED_MODEL_NAME"]) == (written, written)


def test_without_a_key_and_a_claim_there_is_neither(nim):
    pod = nim(engine={"name": "nim", "image": "nim:1"})["spec"]
    (container,) = pod["containers"]
    assert "NGC_API_KEY" not in json.dumps(container)
    assert {"name": "nim-cache", "mountPath": "/opt/nim/.cache"} in container["volumeMounts"]
    assert {"name": "nim-cache", "emptyDir": {}} in pod["volumes"]


def test_our_worker_is_a_native_sidecar_with_nothing_of_the_authors_and_no_gpu(nim):
    template = nim()
    (sidecar,) = template["spec"]["initContainers"]
    assert (sidecar["name"], sidecar["restartPolicy"]) == ("worker", "Always")
    assert sidecar["command"][-2:] == ["-m", "arctic_workers.inference"]
    assert sidecar["image"] != NIM["image"]
    assert sidecar["securityContext"]["readOnlyRootFilesystem"]
    assert [port["containerPort"] for port in sidecar["ports"]] == [9440, 9441]
    assert "nvidia.com/gpu" not in json.dumps(sidecar["resources"])
    assert "claims" not in sidecar["resources"]
    assert template["spec"]["resourceClaims"] == [{"name": "gpus", "resourceClaimTemplateName": "eight-gpus"}]
    assert not {"NIM_MAX_MODEL_LEN", "NGC_API_KEY"} & {item["name"] for item in sidecar["env"]}
    assert "/extra" not in [mount["mountPath"] for mount in sidecar["volumeMounts"]]
    (world,) = [item["value"] for item in sidecar["env"] if item["name"] == "ARCTIC_WORLD"]
    assert InferenceGroup.model_validate_json(world).served_name == "arctic"
    assert template["spec"]["nodeSelector"] == {"gpu": "h100"}


def test_both_share_out_the_operators_defaults(nim, build):
    gpus = Resources.model_validate({"limits": {"nvidia.com/gpu": "4"}})
    environment = ClaimVolume(claim_name="environment", mount_path="/opt/arctic")
    defaults = {"worker_resources": gpus, "worker_volumes": (environment,)}
    pod = nim(build.settings.model_copy(update=defaults), resources=None)["spec"]
    assert pod["containers"][0]["resources"]["limits"] == {"nvidia.com/gpu": "4"}
    assert "/opt/arctic" in [mount["mountPath"] for mount in pod["initContainers"][0]["volumeMounts"]]
    assert "/opt/arctic" not in [mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]]


def test_the_pod_meets_the_restricted_standard_and_every_mount_has_a_volume(nim):
    pod = nim()["spec"]
    assert violations(pod) == []
    volumes = [volume["name"] for volume in pod["volumes"]]
    assert len(volumes) == len(set(volumes))
    for container in (*pod["initContainers"], *pod["containers"]):
        assert {mount["name"] for mount in container["volumeMounts"]} <= set(volumes)


def test_the_drain_has_its_time_before_the_pod_is_killed(nim):
    assert nim()["spec"]["terminationGracePeriodSeconds"] == 70
