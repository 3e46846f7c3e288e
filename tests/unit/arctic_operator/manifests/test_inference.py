"""What a group's pods have besides those of other engines, where TensorRT-LLM's ranks are started over SSH."""

from typing import Any

import pytest

from arctic_api.world import WORLD_VARIABLE, InferenceGroup
from arctic_operator.manifests.inference import group_services, group_set


def pods(build, **spec: Any) -> dict[str, Any]:
    group = group_set(build.inference(**spec), "abc123", "tiny-g0", build.settings, None)
    template: dict[str, Any] = group["spec"]["template"]["spec"]
    return template


def told(template: dict[str, Any]) -> InferenceGroup:
    variables = {item["name"]: item.get("value") for item in template["containers"][0]["env"]}
    return InferenceGroup.model_validate_json(variables[WORLD_VARIABLE])


OVER_PODS = {"engine": {"name": "tensorrt-llm"}, "parallelism": {"tensor": 8, "pipeline": 2}}


def test_pods_whose_ranks_are_started_over_ssh_have_the_groups_key_and_say_their_port(build) -> None:
    with_login = pods(build, **OVER_PODS)
    (container,) = with_login["containers"]
    assert {
        "volumes": [volume for volume in with_login["volumes"] if volume["name"] == "secret-0"],
        "mounts": [mount for mount in container["volumeMounts"] if mount["name"] == "secret-0"],
        "ports": [port for port in container["ports"] if port["name"] == "login"],
        "folder": told(with_login).login_folder,
        "shm": [volume for volume in with_login["volumes"] if volume["name"] == "shm"],
    } == {
        "volumes": [{"name": "secret-0", "secret": {"secretName": "tiny-0a1b2-login", "defaultMode": 0o440}}],
        "mounts": [{"name": "secret-0", "mountPath": "/etc/arctic/login", "readOnly": True}],
        "ports": [{"name": "login", "containerPort": 2222}],
        "folder": "/etc/arctic/login",
        # Without a limit of its own it may take what the pod may: NCCL's buffers among eight GPUs.
        "shm": [{"name": "shm", "emptyDir": {"medium": "Memory"}}],
    }


@pytest.mark.parametrize(
    "spec",
    [
        {"engine": {"name": "native"}, "parallelism": {"pipeline": 2}},
        {"engine": {"name": "tensorrt-llm"}, "parallelism": {"tensor": 8}},
    ],
)
def test_other_pods_have_no_key_and_listen_on_no_such_port(build, spec) -> None:
    template = pods(build, **spec)
    assert not [volume for volume in template["volumes"] if "login" in str(volume)]
    assert "login" not in {port["name"] for port in template["containers"][0]["ports"]}
    assert told(template).login_folder is None


def test_only_pods_of_the_same_group_reach_its_ssh(build) -> None:
    services = group_services(build.inference(**OVER_PODS).identity, "tiny-g0", "StatefulSet", build.settings)
    (policy,) = [service for service in services if service["kind"] == "NetworkPolicy"]
    open_to = [rule.get("from") for rule in policy["spec"]["ingress"] if not rule.get("ports")]
    assert open_to == [[{"podSelector": policy["spec"]["podSelector"]}]]
    named = {port["port"] for rule in policy["spec"]["ingress"] for port in rule.get("ports", ())}
    assert 2222 not in named


@pytest.mark.parametrize("read_nodes", [False, True])
def test_evictions_are_refused_where_the_operator_sees_which_node_is_emptied(build, read_nodes) -> None:
    """Elsewhere nothing would ever let the pods go, and the node would never be empty."""
    settings = build.settings.model_copy(update={"read_nodes": read_nodes})
    services = group_services(build.inference().identity, "tiny-g0", "StatefulSet", settings)
    budgets = [service["spec"]["maxUnavailable"] for service in services if service["kind"] == "PodDisruptionBudget"]
    assert budgets == ([0] if read_nodes else [])
