"""The chart's life on a real cluster: install, test, upgrade, uninstall, and an install for one namespace only."""

import json
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import pytest
from objects import eventually
from stand_in import StandIns

from arctic_cli.demo import ROOT, install_operator
from arctic_cluster import Cluster
from arctic_cluster.manifests import SYSTEM_NAMESPACE

CHART = ROOT / "charts" / "arctic"
LOCAL = ("-f", str(CHART / "values-local.yaml"))
DEFINITIONS = {"arctictrainings.arctic.dev", "arcticinferences.arctic.dev"}


def listed(cluster: Cluster, kind: str, namespace: str) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = json.loads(cluster.kubectl("get", kind, "-n", namespace, "-o", "json"))["items"]
    return items


def apply_inference(cluster: Cluster, namespace: str) -> None:
    """Apply a service whose model is nowhere: its children are made, and its pods come to nothing."""
    spec = {"model": {"uri": "file:///nowhere"}, "replicas": 1}
    metadata = {"name": "demo", "namespace": namespace}
    cluster.apply(
        [{"apiVersion": "arctic.dev/v1alpha1", "kind": "ArcticInference", "metadata": metadata, "spec": spec}]
    )


def url_of(cluster: Cluster, namespace: str) -> str | None:
    """Return the address that the status of the only service has; None before there is one."""
    (seen,) = listed(cluster, "arcticinferences", namespace)
    url: str | None = seen.get("status", {}).get("url")
    return url


def disruptions(cluster: Cluster) -> int:
    """Return how many of the operator's pods may be evicted now."""
    (budget,) = listed(cluster, "poddisruptionbudgets", SYSTEM_NAMESPACE)
    allowed: int = budget.get("status", {}).get("disruptionsAllowed", 0)
    return allowed


def worlds(cluster: Cluster, namespace: str) -> dict[str, tuple[str, int]]:
    """Return what tells whether a world was touched: the uid and the generation of its StatefulSet."""
    found = [each["metadata"] for each in listed(cluster, "statefulsets", namespace)]
    return {each["name"]: (each["uid"], each["generation"]) for each in found}


def left(cluster: Cluster, namespace: str) -> set[str]:
    """Return what is in a namespace besides what every namespace has."""
    kinds = "all,leases,secrets,configmaps,serviceaccounts,roles,rolebindings,networkpolicies,poddisruptionbudgets"
    names = cluster.kubectl("get", kinds, "-n", namespace, "-o", "name").split()
    return set(names) - {"serviceaccount/default", "configmap/kube-root-ca.crt"}


@pytest.fixture
def since() -> str:
    """The moment before the test, and before the fixtures that are named after this one."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def operator_logs(cluster: Cluster, namespace: str, since: str) -> str:
    """Return what the operator has said since a moment: an API server that is starting refuses everything."""
    selector = ("-l", "app.kubernetes.io/name=arctic-operator")
    return cluster.kubectl("logs", "-n", namespace, *selector, "--tail=-1", f"--since-time={since}")


@contextmanager
def uninstalled(cluster: Cluster) -> Iterator[None]:
    """Take the session's operator away for a while."""
    cluster.helm("uninstall", "arctic", "-n", SYSTEM_NAMESPACE, "--wait")
    try:
        yield
    finally:
        install_operator(cluster)


def pending(cluster: Cluster) -> list[str]:
    """Return the releases that are being installed or upgraded."""
    return cluster.helm("list", "--pending", "-q", "-n", SYSTEM_NAMESPACE).split()


@pytest.fixture
def service(operator: Cluster, namespace: str) -> Iterator[str]:
    """The namespace of a service that the operator has made the children of."""
    apply_inference(operator, namespace)
    eventually("the group of a service", lambda: bool(worlds(operator, namespace)))
    yield namespace
    operator.kubectl("delete", "arcticinferences", "demo", "-n", namespace, "--ignore-not-found")


def test_the_release_passes_its_own_test(operator: Cluster) -> None:
    tested = operator.helm("test", "arctic", "-n", SYSTEM_NAMESPACE)
    assert "Succeeded" in tested


def test_its_rights_are_enough_to_serve_a_resource(operator: Cluster, since: str, service: str) -> None:
    address = f"http://demo.{service}.svc:8000"
    eventually("its address is told", lambda: url_of(operator, service) == address)  # once its children are made
    assert "is forbidden: User" not in operator_logs(operator, SYSTEM_NAMESPACE, since)


def test_an_upgrade_renews_the_operator_and_leaves_worlds_alone(
    operator: Cluster, stand_in: None, service: str
) -> None:
    objects = StandIns(operator, service)
    objects.train("tiny")
    objects.running("tiny", 1)
    objects.serve("tiny")
    objects.state("arcticinference", "tiny", "Ready")
    before, running = worlds(operator, service), objects.restarts("tiny")
    changed = ("--set", "replicas=2", "--set", "workers.environment[0].name=NEW,workers.environment[0].value=yes")
    release = ("upgrade", "arctic", str(CHART), "-n", SYSTEM_NAMESPACE, *LOCAL, *operator.helm_values())
    try:
        operator.helm(*release, *changed, "--wait", "--timeout", "3m")
        assert "Succeeded" in operator.helm("test", "arctic", "-n", SYSTEM_NAMESPACE)
        (deployment,) = listed(operator, "deployments", SYSTEM_NAMESPACE)
        assert deployment["status"]["readyReplicas"] == 2
        eventually("one of the two may go", lambda: disruptions(operator) == 1)
        # What is put back shows that the new operator has looked at the service.
        operator.kubectl("delete", "poddisruptionbudgets", "-n", service, "-l", "arctic.dev/role=gateway")
        eventually("children put back", lambda: len(listed(operator, "poddisruptionbudgets", service)) == 4)
        assert worlds(operator, service) == before
        assert objects.restarts("tiny") == running
        assert objects.status("arctictraining", "tiny")["state"] == "Running"
    finally:
        install_operator(operator)


def test_uninstalling_keeps_definitions_resources_and_what_runs_and_nothing_else(
    operator: Cluster, service: str
) -> None:
    before = worlds(operator, service)
    with uninstalled(operator):
        eventually("the end of all that was the operator's", lambda: left(operator, SYSTEM_NAMESPACE) == set())
        assert {each["metadata"]["name"] for each in listed(operator, "crds", "default")} >= DEFINITIONS
        assert [each["metadata"]["name"] for each in listed(operator, "arcticinferences", service)] == ["demo"]
        assert worlds(operator, service) == before
        release = ("other", str(CHART), "-n", SYSTEM_NAMESPACE, *LOCAL, *operator.helm_values())
        operator.helm("install", *release, "--wait", "--timeout", "3m")
        try:
            assert "Succeeded" in operator.helm("test", "other", "-n", SYSTEM_NAMESPACE)
        finally:
            operator.helm("uninstall", "other", "-n", SYSTEM_NAMESPACE, "--wait")
    assert worlds(operator, service) == before, "and new installs, whatever their names, go on with it"


def test_the_documented_command_removes_the_definitions_and_all_that_was_made_for_them(
    operator: Cluster, service: str
) -> None:
    [command] = re.findall(r"`kubectl (delete crd [^`]+)`", (ROOT / "docs/guides/install.md").read_text())
    with uninstalled(operator):
        operator.kubectl(*command.split())
        assert "arctic.dev" not in operator.kubectl("get", "crds", "-o", "name")
        eventually("what was made is gone", lambda: worlds(operator, service) == {})
    apply_inference(operator, service)
    eventually("and an install serves again", lambda: bool(worlds(operator, service)))


def test_an_install_for_one_namespace_serves_that_one_alone(operator: Cluster, since: str, namespace: str) -> None:
    only = ("--set", f"watchNamespaces={{{namespace}}}", "--set", "crds.enabled=false")
    release = ("team", str(CHART), "-n", namespace, *LOCAL, *operator.helm_values(), *only)
    with uninstalled(operator):
        apply_inference(operator, "default")
        try:
            operator.helm("install", *release, "--wait", "--timeout", "3m")
            assert "Succeeded" in operator.helm("test", "team", "-n", namespace)
            apply_inference(operator, namespace)
            eventually("the group of its own namespace's service", lambda: bool(worlds(operator, namespace)))
            (elsewhere,) = listed(operator, "arcticinferences", "default")
            assert "status" not in elsewhere
            assert "is forbidden: User" not in operator_logs(operator, namespace, since)
        finally:
            operator.kubectl("delete", "arcticinferences", "demo", "-n", "default")
            operator.helm("uninstall", "team", "-n", namespace, "--wait", "--ignore-not-found")


def test_an_install_that_was_killed_in_the_middle_is_begun_again(operator: Cluster) -> None:
    with uninstalled(operator):
        release = ("upgrade", "--install", "arctic", str(CHART), "-n", SYSTEM_NAMESPACE, *LOCAL, "--wait")
        helm = subprocess.Popen(
            operator.command("helm", *release, *operator.helm_values()),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        eventually("the release is under way", lambda: pending(operator))
        helm.kill()
        helm.wait()
        assert pending(operator) == ["arctic"]
        install_operator(operator)
        assert pending(operator) == []


def test_a_bad_value_is_refused_before_anything_is_changed(operator: Cluster) -> None:
    release = ("upgrade", "arctic", str(CHART), "-n", SYSTEM_NAMESPACE, *LOCAL, "--set", "replicas=0")
    before = operator.helm("history", "arctic", "-n", SYSTEM_NAMESPACE, "-o", "json")
    refused = subprocess.run(operator.command("helm", *release), capture_output=True, text=True, check=False)
    assert refused.returncode != 0
    assert "at '/replicas': minimum: got 0, want 1" in refused.stderr
    assert operator.helm("history", "arctic", "-n", SYSTEM_NAMESPACE, "-o", "json") == before
