"""What the chart renders to, with values of each kind, by the real helm."""

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubelet import variables_of
from pod_security import violations

from arctic_api.common import LABEL_VALUE_PATTERN, ClaimVolume, KeyValue, Resources, Toleration
from arctic_api.inference import ArcticInferenceSpec
from arctic_operator.manifests.gateway import gateway_children
from arctic_operator.observed import Identity
from arctic_operator.settings import Settings

CHART = Path(__file__).parents[3] / "charts" / "arctic"
LOCAL = ("-f", str(CHART / "values-local.yaml"))
NAMESPACED = ("--set", "watchNamespaces={team-a,team-b}")
HIGHLY_AVAILABLE = ("--set", "replicas=2")
MONITORED = ("--api-versions", "monitoring.coreos.com/v1")
SERVED = ("--api-versions", "leaderworkerset.x-k8s.io/v1")
LEADER_WORKER_SETS = ("--set", "inference.groups=LeaderWorkerSet")
BARE = ("--set", "crds.enabled=false,networkPolicy.enabled=false,monitoring.enabled=false")
VALUES = {
    "default": (),
    "local": LOCAL,
    "namespaced": NAMESPACED,
    "highly-available": HIGHLY_AVAILABLE,
    "monitored": MONITORED,
    "bare": BARE,
    "leader-worker-sets": LEADER_WORKER_SETS,
    "everything": (*LOCAL, *NAMESPACED, *HIGHLY_AVAILABLE, *MONITORED, *LEADER_WORKER_SETS),
}

Manifest = dict[str, Any]
Render = Callable[..., list[Manifest]]
Helm = Callable[..., subprocess.CompletedProcess[str]]

every_value = pytest.mark.parametrize("values", VALUES.values(), ids=VALUES.keys())


def of_kind(objects: list[Manifest], *kinds: str) -> list[Manifest]:
    return [each for each in objects if each["kind"] in kinds]


def one(objects: list[Manifest], kind: str) -> Manifest:
    (found,) = of_kind(objects, kind)
    return found


def pods(objects: list[Manifest]) -> list[Manifest]:
    return [
        *(pod["spec"] for pod in of_kind(objects, "Pod")),
        *(each["spec"]["template"]["spec"] for each in of_kind(objects, "Deployment")),
    ]


def settings_of(objects: list[Manifest]) -> Settings:
    """Return the settings that the operator reads in the rendered pod."""
    container = one(objects, "Deployment")["spec"]["template"]["spec"]["containers"][0]
    from_the_pod = {each["name"]: "from-the-pod" for each in container["env"]}
    return Settings.from_environment(from_the_pod | variables_of(container))


def test_names_that_look_like_numbers_or_truths_stay_names(run_helm: Helm, tmp_path: Path) -> None:
    file = tmp_path / "values.json"
    file.write_text(json.dumps({"watchNamespaces": ["2024", "true"], "imagePullSecrets": ["1e3"], "replicas": 2}))
    rendered = run_helm("template", "null", str(CHART), "--namespace", "1234", "-f", str(file), *MONITORED)
    assert rendered.returncode == 0, rendered.stderr
    objects = [each for each in yaml.load_all(rendered.stdout, yaml.CSafeLoader) if each]
    own = [each["metadata"] for each in objects if each["kind"] != "CustomResourceDefinition"]
    assert {metadata["namespace"] for metadata in own} == {"1234", "2024", "true"}
    assert {metadata["labels"]["app.kubernetes.io/instance"] for metadata in own} == {"null"}
    assert [pod["imagePullSecrets"] for pod in pods(objects)] == [[{"name": "1e3"}]] * 2


@pytest.mark.parametrize("values", [(), LOCAL], ids=["default", "local"])
def test_helm_lint_finds_nothing(run_helm: Helm, values: tuple[str, ...]) -> None:
    linted = run_helm("lint", "--strict", str(CHART), *values)
    assert linted.returncode == 0, linted.stdout + linted.stderr


@every_value
def test_every_object_has_a_name_of_its_own_and_the_releases_labels(render: Render, values: tuple[str, ...]) -> None:
    objects = render(*values)
    keys = [(each["kind"], each["metadata"].get("namespace"), each["metadata"]["name"]) for each in objects]
    assert len(set(keys)) == len(keys)
    own = [each for each in objects if each["kind"] != "CustomResourceDefinition"]
    assert all(each["metadata"]["labels"]["app.kubernetes.io/instance"] == "arctic" for each in own)


def test_a_chart_that_is_packaged_with_the_number_of_a_build_has_valid_labels_and_tags(
    run_helm: Helm, tmp_path: Path
) -> None:
    packaged = run_helm(
        *("package", str(CHART), "--destination", str(tmp_path), "--version", "0.2.0+5", "--app-version", "0.2.0+5")
    )
    assert packaged.returncode == 0, packaged.stderr
    rendered = run_helm("template", "arctic", str(tmp_path / "arctic-0.2.0+5.tgz"), *MONITORED)
    assert rendered.returncode == 0, rendered.stderr
    objects = [each for each in yaml.load_all(rendered.stdout, yaml.CSafeLoader) if each]
    labels = {value for each in objects for value in each["metadata"].get("labels", {}).values()}
    assert [value for value in labels if not re.fullmatch(LABEL_VALUE_PATTERN, value)] == []
    assert settings_of(objects).worker_image == "arctic/worker:0.2.0_5"


@every_value
def test_every_pod_meets_the_restricted_standard_and_writes_only_to_volumes(
    render: Render, values: tuple[str, ...]
) -> None:
    found = pods(render(*values))
    assert len(found) == 2, "the operator's and the test's"
    for pod in found:
        assert violations(pod) == []
        assert all(each["securityContext"]["readOnlyRootFilesystem"] for each in pod["containers"])
        assert all(each["resources"]["limits"]["memory"] for each in pod["containers"])


def test_the_gateways_pods_meet_the_restricted_standard() -> None:
    settings = Settings(namespace="arctic-system", worker_image="worker", gateway_image="haproxy:2.6")
    spec = ArcticInferenceSpec.model_validate({"model": {"training": "tiny"}})
    children = gateway_children(Identity("ArcticInference", "default", "demo", "0a1b2c3d"), spec, settings)
    (pod,) = pods(children)
    assert violations(pod) == []


@pytest.mark.parametrize(
    ("harm", "what"),
    [
        ({"hostNetwork": True}, "hostNetwork"),
        ({"volumes": [{"name": "root", "hostPath": {"path": "/"}}]}, "hostPath"),
        ({"securityContext": {"seccompProfile": {"type": "RuntimeDefault"}}}, "may run as root"),
        ({"securityContext": {"runAsNonRoot": True}}, "no seccomp profile"),
        ({"containers": [{"name": "c"}]}, "may escalate privileges"),
    ],
)
def test_the_check_of_the_standard_sees_what_breaks_it(harm: Manifest, what: str) -> None:
    container = {"name": "c", "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}}
    shared = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    pod = {"containers": [container], "securityContext": shared}
    assert violations(pod) == []
    assert any(what in violation for violation in violations(pod | harm))


def test_the_operator_reads_from_its_environment_what_the_values_say(render: Render) -> None:
    settings = settings_of(render())
    assert settings.watch_namespaces == ()
    assert settings.read_nodes
    assert settings.worker_image == "arctic/worker:0.1.0"
    assert settings.gateway_image == "docker.io/library/haproxy:2.6"
    assert settings.lease_name == "arctic-operator"
    assert settings.worker_resources is None
    chosen = settings_of(
        render(
            *NAMESPACED,
            *("--set", "logLevel=debug,logFormat=json,imagePullSecrets={one,two},clusterDomain=k8s.example"),
            *("--set", "workers.resources.limits.nvidia\\.com/gpu=8,metricsPort=9000"),
            *("--set", "workers.environment[0].name=NCCL_DEBUG,workers.environment[0].value=INFO"),
        )
    )
    assert chosen.watch_namespaces == ("team-a", "team-b")
    assert not chosen.read_nodes
    assert (chosen.log_level, chosen.log_format) == ("debug", "json")
    assert (chosen.metrics_port, chosen.cluster_domain) == (9000, "k8s.example")
    assert chosen.image_pull_secrets == ("one", "two")
    assert chosen.worker_resources is not None
    assert chosen.worker_resources.limits == {"nvidia.com/gpu": 8}
    assert [(each.name, each.value) for each in chosen.worker_environment] == [("NCCL_DEBUG", "INFO")]


def test_what_workers_are_given_reaches_the_operator_as_it_is_written(render: Render) -> None:
    written = "pa$$word $(ARCTIC_CLUSTER_DOMAIN)"
    given = [{"name": "GIVEN", "value": written}]
    chosen = settings_of(render("--set-json", f"workers={json.dumps({'environment': given, 'command': [written]})}"))
    assert [each.value for each in chosen.worker_environment] == [written]
    assert chosen.worker_command == (written,)


def test_every_image_can_be_pinned_by_its_digest_which_takes_the_place_of_the_tag(render: Render) -> None:
    digest = f"sha256:{'ab12' * 16}"
    images = ("image", "workers.image", "workers.engines.vllm.image", "gateway.image")
    objects = render("--set", ",".join(f"{image}.digest={digest}" for image in images))
    settings = settings_of(objects)
    assert {pod["containers"][0]["image"] for pod in pods(objects)} == {f"arctic/operator@{digest}"}
    assert settings.worker_image == f"arctic/worker@{digest}"
    assert settings.engines["vllm"].image == f"arctic/worker-vllm@{digest}"
    assert settings.gateway_image == f"docker.io/library/haproxy@{digest}"


PLACES: dict[str, Any] = {
    "nodeSelector": {"kubernetes.io/arch": "amd64"},
    "tolerations": [
        {"key": "pool", "operator": "Equal", "value": "cpu", "effect": "NoExecute", "tolerationSeconds": 9}
    ],
}


def test_what_is_tested_runs_where_the_operator_may(render: Render) -> None:
    affinity = {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [{"topologyKey": "rack"}]}}
    for pod in pods(
        render(
            *(f"--set-json={name}={json.dumps(value)}" for name, value in PLACES.items()),
            f"--set-json=affinity={json.dumps(affinity)}",
        )
    ):
        assert pod["nodeSelector"] == PLACES["nodeSelector"]
        assert PLACES["tolerations"][0] in pod["tolerations"]
        assert pod["affinity"] == affinity


def test_gateways_run_where_the_values_say(render: Render) -> None:
    settings = settings_of(
        render(*(f"--set-json=gateway.{name}={json.dumps(value)}" for name, value in PLACES.items()))
    )
    assert settings.gateway_node_selector == PLACES["nodeSelector"]
    assert [each.wire() for each in settings.gateway_tolerations] == PLACES["tolerations"]


@pytest.mark.parametrize("name", ["team.arctic", "2nd"])
def test_a_releases_name_that_no_service_may_have_is_refused_with_a_sentence(run_helm: Helm, name: str) -> None:
    refused = run_helm("template", name, str(CHART))
    assert refused.returncode != 0
    assert f'a release named "{name}" can have no Service: choose a name of a-z, 0-9 and -, of a letter first' in (
        refused.stderr
    )


@pytest.mark.parametrize(
    ("endpoint", "port"),
    [
        ("http://collector.monitoring:4318", 4318),
        ("https://me:pa$$word@collect", 443),
        ("http://[::1]/", 80),
    ],
)
def test_traces_go_where_the_values_say_and_the_operator_may_reach_it(render: Render, endpoint: str, port: int) -> None:
    def ports(objects: list[Manifest]) -> list[int]:
        return [port["port"] for rule in one(objects, "NetworkPolicy")["spec"]["egress"] for port in rule["ports"]]

    plain, objects = render(), render("--set", f"tracing.endpoint={endpoint}")
    assert settings_of(plain).tracing_endpoint == ""
    assert settings_of(objects).tracing_endpoint == endpoint
    assert sorted(ports(objects)) == sorted([*ports(plain), port])


def test_on_the_local_cluster_operator_and_workers_run_from_the_mounted_environment(render: Render) -> None:
    objects = render(*LOCAL)
    settings = settings_of(objects)
    (container,) = one(objects, "Deployment")["spec"]["template"]["spec"]["containers"]
    assert container["command"] == [*settings.worker_command, "-m", "arctic_operator"]
    (claim,) = settings.worker_volumes
    assert (claim.claim_name, claim.mount_path, claim.read_only) == ("arctic-environment", "/opt/arctic", True)
    assert {"name": "claim-0", "mountPath": "/opt/arctic", "readOnly": True} in container["volumeMounts"]
    assert container["image"] == settings.worker_image == settings.gateway_image


def test_on_the_local_cluster_the_environment_of_vllm_takes_the_place_of_the_workers(render: Render) -> None:
    settings = settings_of(render(*LOCAL))
    vllm = settings.engines["vllm"]
    (claim,), (common,) = vllm.volumes, settings.worker_volumes
    assert (claim.claim_name, claim.mount_path, claim.read_only) == ("arctic-environment-vllm", common.mount_path, True)
    assert (vllm.image, vllm.command) == (settings.worker_image, None)


def rules(objects: list[Manifest], *kinds: str) -> list[Manifest]:
    return [rule for role in of_kind(objects, *kinds) for rule in role["rules"]]


@every_value
def test_no_right_is_a_wildcard_and_secrets_are_never_listed(render: Render, values: tuple[str, ...]) -> None:
    for rule in rules(render(*values), "Role", "ClusterRole"):
        assert "*" not in [*rule["apiGroups"], *rule["resources"], *rule["verbs"]]
        assert not {"escalate", "bind", "impersonate"} & set(rule["verbs"])
        assert not {"pods/exec", "pods/attach", "serviceaccounts/token"} & set(rule["resources"])
        if "secrets" in rule["resources"]:
            assert not {"list", "watch", "deletecollection"} & set(rule["verbs"])


def test_a_namespaced_install_has_no_right_outside_its_namespaces(render: Render) -> None:
    objects = render(*NAMESPACED)
    assert of_kind(objects, "ClusterRole", "ClusterRoleBinding") == []
    namespaces = {each["metadata"]["namespace"] for each in of_kind(objects, "Role", "RoleBinding")}
    assert namespaces == {"team-a", "team-b", "arctic-system"}
    (own,) = (each for each in of_kind(objects, "Role") if each["metadata"]["namespace"] == "arctic-system")
    assert own["metadata"]["name"] == "arctic-operator-leader"
    assert not any("nodes" in rule["resources"] for rule in rules(objects, "Role"))


def rights(found: list[Manifest]) -> set[tuple[str, str, str]]:
    return {
        (group, resource, verb)
        for rule in found
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def test_only_what_plans_delete_may_be_deleted(render: Render) -> None:
    (role,) = (each for each in of_kind(render(), "ClusterRole") if each["metadata"]["name"] == "arctic-operator")
    assert {resource for _, resource, verb in rights(role["rules"]) if verb == "delete"} == {
        *("arctictrainings", "arcticevaluations", "jobs", "statefulsets", "controllerrevisions", "pods"),
        *("services", "networkpolicies", "poddisruptionbudgets"),
    }


@pytest.mark.parametrize(
    ("values", "groups", "may"),
    [
        ((), "StatefulSet", False),
        (SERVED, "StatefulSet", True),
        (LEADER_WORKER_SETS, "LeaderWorkerSet", True),
        ((*LEADER_WORKER_SETS, *NAMESPACED), "LeaderWorkerSet", True),
    ],
)
def test_leader_worker_sets_are_the_operators_where_groups_are_of_them_or_may_have_been(
    render: Render, values: tuple[str, ...], groups: str, may: bool
) -> None:
    objects = render(*values)
    settings = settings_of(objects)
    assert (settings.inference_groups, settings.leader_worker_sets) == (groups, may)
    given = {verb for _, resource, verb in rights(rules(objects, "Role", "ClusterRole")) if "leaderwork" in resource}
    assert given == ({"get", "list", "watch", "create", "patch", "delete"} if may else set())


def test_events_are_read_where_they_can_be_selected_by_their_object_and_written_in_their_own_group(
    render: Render,
) -> None:
    (role,) = (each for each in of_kind(render(), "ClusterRole") if each["metadata"]["name"] == "arctic-operator")
    assert {right for right in rights(role["rules"]) if right[1] == "events"} == {
        ("", "events", "list"),
        ("events.k8s.io", "events", "create"),
        ("events.k8s.io", "events", "patch"),
    }


def test_a_cluster_wide_install_has_the_rights_of_a_namespaced_one_and_reads_nodes(render: Render) -> None:
    (everywhere,) = (each for each in of_kind(render(), "ClusterRole") if each["metadata"]["name"] == "arctic-operator")
    (in_one,) = (each for each in of_kind(render(*NAMESPACED), "Role") if each["metadata"]["namespace"] == "team-a")
    nodes = {("", "nodes", verb) for verb in ("get", "list", "watch")}
    assert rights(everywhere["rules"]) == rights(in_one["rules"]) | nodes


def test_leading_touches_its_own_lease_and_secret_alone(render: Render) -> None:
    (role,) = of_kind(render(), "Role")
    named = {(rule["resources"][0], tuple(rule.get("resourceNames", ()))): set(rule["verbs"]) for rule in role["rules"]}
    assert named == {
        ("leases", ()): {"create"},
        ("leases", ("arctic-operator",)): {"get", "update"},
        ("secrets", ()): {"create"},
        ("secrets", ("arctic-ca",)): {"get", "patch"},
        ("deployments", ("arctic-operator",)): {"get"},
    }


def test_what_the_operator_keeps_for_itself_has_an_owner_that_goes_with_the_release(render: Render) -> None:
    objects = render()
    assert settings_of(objects).deployment == one(objects, "Deployment")["metadata"]["name"]
    assert of_kind(objects, "Lease") == []
    elsewhere = render(*NAMESPACED)
    heartbeat = one(elsewhere, "Lease")["metadata"]
    assert (heartbeat["namespace"], heartbeat["name"]) == ("team-a", f"{settings_of(elsewhere).lease_name}-heartbeat")
    assert of_kind(render("--set", "watchNamespaces={team-a,arctic-system}"), "Lease") == []


@every_value
def test_services_policies_and_budgets_select_the_operator_and_not_the_test(
    render: Render, values: tuple[str, ...]
) -> None:
    objects = render(*values)
    operator = one(objects, "Deployment")["spec"]["template"]["metadata"]["labels"]
    test = one(objects, "Pod")["metadata"]["labels"]
    selectors = [
        one(objects, "Deployment")["spec"]["selector"]["matchLabels"],
        one(objects, "Service")["spec"]["selector"],
        *(each["spec"]["selector"]["matchLabels"] for each in of_kind(objects, "PodDisruptionBudget")),
        *(each["spec"]["podSelector"]["matchLabels"] for each in of_kind(objects, "NetworkPolicy")),
    ]
    for selector in selectors:
        assert selector.items() <= operator.items()
        assert not selector.items() <= test.items()


def test_a_budget_keeps_one_of_several_operators(render: Render) -> None:
    assert of_kind(render(), "PodDisruptionBudget") == []
    assert one(render(*HIGHLY_AVAILABLE), "PodDisruptionBudget")["spec"]["maxUnavailable"] == 1


def test_monitors_are_made_only_where_the_cluster_serves_their_kinds(render: Render) -> None:
    kinds = ("ServiceMonitor", "PodMonitor", "PrometheusRule")
    assert of_kind(render(), *kinds) == []
    assert of_kind(render(*MONITORED, "--set", "monitoring.enabled=false"), *kinds) == []
    made = of_kind(render(*MONITORED, "--set", "monitoring.labels.release=prometheus"), *kinds)
    assert sorted(each["kind"] for each in made) == sorted(kinds)
    assert all(each["metadata"]["labels"]["release"] == "prometheus" for each in made)


def test_definitions_can_be_left_out_and_are_kept_on_uninstall(render: Render) -> None:
    definitions = of_kind(render(), "CustomResourceDefinition")
    assert {each["metadata"]["name"] for each in definitions} == {
        "arcticablations.arctic.dev",
        "arcticevaluations.arctic.dev",
        "arctictrainings.arctic.dev",
        "arcticinferences.arctic.dev",
    }
    assert all(each["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep" for each in definitions)
    assert of_kind(render("--set", "crds.enabled=false"), "CustomResourceDefinition") == []


@pytest.mark.parametrize(
    ("values", "where", "what"),
    [
        ("replicas=0", "/replicas", "minimum"),
        ("replicsa=2", "", "'replicsa' not allowed"),
        ("image.tag=not a tag", "/image/tag", "does not match pattern"),
        ("image.pullPolicy=Sometimes", "/image/pullPolicy", "one of 'Always', 'IfNotPresent', 'Never'"),
        ("watchNamespaces={Team}", "/watchNamespaces/0", "does not match pattern"),
        ("watchNamespaces={a,a}", "/watchNamespaces", "are equal"),
        ("workers.volumes[0].claimName=store", "/workers/volumes/0", "missing properties 'mountPath', 'readOnly'"),
        ("workers.resources.limits.memory=4GB", "/workers/resources/limits/memory", "does not match pattern"),
        ("gateway.image.tag=", "/gateway/image/tag", "does not match pattern"),
        ("logFormat=xml", "/logFormat", "one of 'text', 'json'"),
        ("tracing.endpoint=collector:4318", "/tracing/endpoint", "does not match pattern"),
        ("tracing.endpoint=http://collector:4318/v1/traces", "/tracing/endpoint", "does not match pattern"),
        ("logLevel=loud", "/logLevel", "one of 'debug', 'info', 'warning', 'error'"),
        ("monitoring.interval=30", "/monitoring/interval", "want string"),
        ("monitoring.interval=121s", "/monitoring/interval", "does not match pattern"),
        ("monitoring.interval=5m", "/monitoring/interval", "does not match pattern"),
        ("image.digest=ab12", "/image/digest", "does not match pattern"),
        ("gateway.tolerations[0].effect=Never", "/gateway/tolerations/0/effect", "one of 'NoSchedule'"),
        ("metricsPort=80", "/metricsPort", "minimum: got 80, want 1,024"),
        ("metricsPort=null", "", "missing property 'metricsPort'"),
        ("networkPolicy.dnsPorts=null", "/networkPolicy", "missing property 'dnsPorts'"),
    ],
)
def test_a_bad_value_is_refused_with_its_place_and_what_is_wanted(
    run_helm: Helm, values: str, where: str, what: str
) -> None:
    refused = run_helm("template", "arctic", str(CHART), "--set", values)
    assert refused.returncode != 0
    assert f"at '{where}': " in refused.stderr
    assert what in refused.stderr


def left_empty(schema: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """Return values in which all that may be missing is there and says nothing, which Helm takes for missing."""
    found: dict[str, Any] = {}
    for name, field in schema["properties"].items():
        if name == "global":
            continue  # no value of the chart's
        field = definitions[field["$ref"].removeprefix("#/$defs/")] if "$ref" in field else field
        if name not in schema.get("required", ()):
            found[name] = None
        elif "properties" in field:
            found[name] = left_empty(field, definitions)
    return found


def test_values_that_may_be_left_empty_count_as_none(render: Render, tmp_path: Path) -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    file = tmp_path / "values.json"
    file.write_text(json.dumps(left_empty(schema, schema["$defs"])))
    objects = render("-f", str(file), *MONITORED)
    # What workers of some engines differ by is such a value too.
    assert settings_of(objects) == settings_of(render()).model_copy(update={"engines": {}})


LIMITS = ("pattern", "maxLength", "minimum", "maximum")
"""What a schema says of a text or a number besides its type."""


def limits_of(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: {limit: field[limit] for limit in LIMITS if limit in field} for name, field in fields.items()}


def test_the_chart_takes_of_the_workers_what_the_operator_takes() -> None:
    chart = json.loads((CHART / "values.schema.json").read_text())["$defs"]
    for name, model in (("volumes", ClaimVolume), ("environment", KeyValue)):
        wanted = model.model_json_schema(by_alias=True)["properties"]
        assert limits_of(chart[name]["items"]["properties"]) == limits_of(wanted)
    amounts = Resources.model_json_schema(by_alias=True)["properties"]["requests"]["anyOf"][0]["additionalProperties"]
    assert limits_of({"amount": chart["quantities"]["additionalProperties"]}) == limits_of({"amount": amounts})
    wanted = {name: field["anyOf"][0] for name, field in Toleration.model_json_schema()["properties"].items()}
    assert limits_of(chart["tolerations"]["items"]["properties"]) == limits_of(wanted)


def test_the_notes_say_what_is_served_and_what_is_left_out(run_helm: Helm) -> None:
    shown = run_helm("install", "arctic", str(CHART), "--dry-run=client", *NAMESPACED, *BARE)
    assert shown.returncode == 0, shown.stderr
    assert "serves the namespaces team-a, team-b." in shown.stdout
    assert "crds.enabled=false" in shown.stdout
