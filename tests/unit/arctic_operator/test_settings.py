import pytest

from arctic_operator.settings import Settings, SettingsError

LEAST = {"ARCTIC_NAMESPACE": "arctic", "ARCTIC_WORKER_IMAGE": "worker:1", "ARCTIC_GATEWAY_IMAGE": "gateway:1"}


def test_variables_become_settings():
    settings = Settings.from_environment(
        LEAST
        | {
            "ARCTIC_WATCH_NAMESPACES": "team-a, team-b",
            "ARCTIC_READ_NODES": "true",
            "ARCTIC_WORKER_COMMAND": '["/opt/python3", "-u"]',
            "ARCTIC_WORKER_VOLUMES": '[{"claimName": "environment", "mountPath": "/opt"}]',
            "ARCTIC_WORKER_RESOURCES": '{"limits": {"nvidia.com/gpu": 8}}',
            "ARCTIC_POD_NAME": "",
            "PATH": "/bin",
        }
    )
    assert settings.watch_namespaces == ("team-a", "team-b")
    assert settings.worker_command == ("/opt/python3", "-u")
    assert settings.worker_volumes[0].mount_path == "/opt"
    assert settings.worker_resources.limits == {"nvidia.com/gpu": 8}
    assert settings.read_nodes


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"ARCTIC_NAMESPACE": ""}, "ARCTIC_NAMESPACE: Field required"),
        ({"ARCTIC_WORKER_VOLUMES": "[{"}, "ARCTIC_WORKER_VOLUMES: Value error, is not JSON"),
        ({"ARCTIC_WORKER_COMMAND": "[]"}, "ARCTIC_WORKER_COMMAND"),
        ({"ARCTIC_GATEWAY_NODE_SELECTOR": "[]"}, "ARCTIC_GATEWAY_NODE_SELECTOR"),
        ({"ARCTIC_GATEWAY_TOLERATIONS": '[{"effect": "Never"}]'}, "ARCTIC_GATEWAY_TOLERATIONS"),
        ({"ARCTIC_METRICS_PORT": "http"}, "ARCTIC_METRICS_PORT"),
        ({"ARCTIC_LEASE_DURATION": "soon"}, "ARCTIC_LEASE_DURATION"),
        ({"ARCTIC_INFERENCE_GROUPS": "Deployment"}, "ARCTIC_INFERENCE_GROUPS: Input should be 'StatefulSet' or"),
        ({"ARCTIC_INFERENCE_GROUPS": "LeaderWorkerSet"}, "ARCTIC_LEADER_WORKER_SETS must be true"),
        ({"ARCTIC_LEASE_RENEW": "3s"}, "ARCTIC_LEASE_RENEW must be at most half of ARCTIC_LEASE_DURATION"),
    ],
)
def test_a_wrong_variable_is_named(changed, said):
    with pytest.raises(SettingsError, match="ARCTIC_") as error:
        Settings.from_environment(LEAST | changed)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("watched", "where"), [("", "arctic"), ("team-a,arctic", "arctic"), ("team-a,team-b", "team-a")]
)
def test_the_heartbeat_is_in_a_namespace_that_is_watched(watched, where):
    assert Settings.from_environment(LEAST | {"ARCTIC_WATCH_NAMESPACES": watched}).heartbeat_namespace == where
