"""The API server and `verdict` say the same about a manifest, and kubectl and `arctic` read a file alike."""

import json
from collections.abc import Callable, Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest
from api_cases import ABLATION, ABSENT, CASES, TRAINING, Case, apply_changes
from generated_manifests import changed_manifests, plain_scalars, right_manifests
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from kubernetes import client, config
from kubernetes.client.exceptions import ApiException
from objects import until_established

from arctic_api import GROUP, VERSION
from arctic_api.crd import KINDS, crd
from arctic_api.rule import Judge
from arctic_api.verdict import verdict
from arctic_cli.manifest import ManifestError, load
from arctic_cluster import Cluster

NAMESPACE = "default"
CRDS = [f"{kind.plural}.{GROUP}" for kind in KINDS.values()]
REFUSED = (HTTPStatus.BAD_REQUEST, HTTPStatus.UNPROCESSABLE_ENTITY)


class Server:
    """The API server's verdicts."""

    def __init__(self, objects: client.CustomObjectsApi) -> None:
        self._objects = objects

    def refusal(self, manifest: dict[str, Any]) -> str | None:
        """Return why it refuses to create a manifest, None if it would."""
        where = self._where(manifest)
        return self._reason(
            lambda: self._objects.create_namespaced_custom_object(
                *where, manifest, dry_run="All", field_validation="Strict"
            )
        )

    def update_refusal(self, old: dict[str, Any], new: dict[str, Any]) -> str | None:
        """Return why it refuses to replace a manifest by another, None if it would."""
        where, name = self._where(old), old["metadata"]["name"]
        self._objects.create_namespaced_custom_object(*where, old)
        try:
            return self._reason(lambda: self._replace(where, name, new))
        finally:
            self._objects.delete_namespaced_custom_object(*where, name)

    def _replace(self, where: tuple[str, str, str, str], name: str, new: dict[str, Any]) -> None:
        """Replace an object for a trial; again where the operator has written its status meanwhile."""
        while True:
            version = self._objects.get_namespaced_custom_object(*where, name)["metadata"]["resourceVersion"]
            changed = apply_changes(new, {"metadata.resourceVersion": version})
            try:
                self._objects.replace_namespaced_custom_object(
                    *where, name, changed, dry_run="All", field_validation="Strict"
                )
            except ApiException as error:
                if error.status != HTTPStatus.CONFLICT:
                    raise
            else:
                return

    @staticmethod
    def _where(manifest: dict[str, Any]) -> tuple[str, str, str, str]:
        return GROUP, VERSION, NAMESPACE, KINDS[manifest["kind"]].plural

    @staticmethod
    def _reason(request: Callable[[], Any]) -> str | None:
        try:
            request()
        except ApiException as error:
            if error.status not in REFUSED:
                raise
            return str(json.loads(error.body)["message"])
        return None


@pytest.fixture(scope="module")
def server(cluster: Cluster) -> Iterator[Server]:
    """The cluster's API server with our CRDs, which are removed again unless they were there before."""
    ours = not cluster.kubectl("get", "crd", "--ignore-not-found", "-o", "name", *CRDS)
    if ours:
        cluster.apply([crd(kind) for kind in KINDS.values()])
        until_established(cluster.kubectl, *(f"crd/{name}" for name in CRDS))
    with config.new_client_from_config(str(cluster.kubeconfig)) as api:
        yield Server(client.CustomObjectsApi(api))
    if ours:
        cluster.kubectl("delete", "crd", *CRDS)


def server_settings(examples: int) -> settings:
    """Seeded, and without shrinking, which would ask the server thousands of times."""
    return settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )


def check_alike(server: Server, manifest: dict[str, Any]) -> bool:
    """Assert that both say the same, and return whether they accept the manifest."""
    refusal, problems = server.refusal(manifest), verdict(manifest)
    assert (refusal is None) == (not problems), (refusal, [str(problem) for problem in problems])
    return not problems


@pytest.mark.timeout(900)  # seconds on a free machine
@server_settings(150)
@given(right=right_manifests, changed=changed_manifests())
def test_generated_manifests_get_the_same_verdict(
    server: Server, right: dict[str, Any], changed: dict[str, Any]
) -> None:
    assert check_alike(server, right), "half of all manifests are right by construction, and accepted"
    check_alike(server, changed)


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_each_rule_is_kept_and_broken_on_the_server_too(server: Server, case: Case) -> None:
    if case.old:
        good, bad = server.update_refusal(case.old, case.good), server.update_refusal(case.old, case.bad)
    else:
        good, bad = server.refusal(case.good), server.refusal(case.bad)
    match case.rule.cel:
        case Judge.OPERATOR:
            assert (good, bad) == (None, None)
        case Judge.API_SERVER:
            assert good is None
            assert bad is not None
        case _:
            assert case.rule.message not in (good or "")
            assert bad is not None
            assert case.rule.message in bad


@pytest.mark.parametrize(
    ("changes", "field", "sentence"),
    [
        ({"spec.bach": 1}, "spec.bach", "unknown field"),
        ({"spec.curriculum.stages.0.mixture.code": 1}, "spec.curriculum.stages", "write names of sources"),
        ({"spec.curriculum.stages.0.tokens": -5}, "spec.curriculum.stages[0].tokens", "greater than or equal to 0"),
        ({"spec.parallelism.expertParallel": 3}, "spec.parallelism.expertParallel", "write a divisor of"),
        ({"spec.model.preset": "arctic-large"}, "spec.model.preset", '"arctic-tiny"'),
    ],
)
def test_kubectl_apply_refuses_with_the_field_and_what_to_write(
    server: Server, cluster: Cluster, changes: dict[str, Any], field: str, sentence: str
) -> None:
    with pytest.raises(RuntimeError) as refusal:
        cluster.kubectl("apply", "-f", "-", stdin=json.dumps(apply_changes(TRAINING, changes)))
    assert field in str(refusal.value)
    assert sentence in str(refusal.value)


@pytest.mark.parametrize("value", [None, 1, 0.5, "1T", {"books": 1}, [1, None]], ids=json.dumps)
def test_an_ablation_sets_fields_to_whatever_a_training_may_have(server: Server, value: Any) -> None:
    change = {"name": "changed", "set": [{"field": "optimizer.weightDecay", "value": value}]}
    in_grid = check_alike(server, apply_changes(ABLATION, {"spec.grid.0.values": [value]}))
    in_change = check_alike(server, apply_changes(ABLATION, {"spec.grid": ABSENT, "spec.changes": [change]}))
    assert value is None or (in_grid and in_change)


@server_settings(15)
@given(scalars=st.lists(plain_scalars, min_size=40, max_size=80))
def test_files_mean_the_same_to_kubectl_and_to_arctic(
    cluster: Cluster, tmp_path_factory: pytest.TempPathFactory, scalars: list[str]
) -> None:
    file = tmp_path_factory.mktemp("yaml") / "manifest.yaml"
    lines = ["apiVersion: v1", "kind: Any", "metadata: {name: any}", "spec:"]
    file.write_text("\n".join(lines + [f"- {scalar}" for scalar in scalars]) + "\n")
    read = json.loads(cluster.kubectl("annotate", "--local", "-f", str(file), "a=b", "-o", "json"))["spec"]
    ours = load(file)[0].content["spec"]
    assert list(map(typed, read)) == list(map(typed, ours))


def typed(value: Any) -> tuple[type, Any]:
    """Tell 1 from 1.0 and from True; what no 64-bit integer holds is a float to both."""
    return (float, float(value)) if isinstance(value, int) and abs(value) >= 2**63 else (type(value), value)


def test_what_json_cannot_hold_is_refused_by_both(cluster: Cluster, tmp_path: Path) -> None:
    file = tmp_path / "manifest.yaml"
    file.write_text("apiVersion: v1\nkind: Any\nmetadata: {name: any}\nspec: .inf\n")
    with pytest.raises(RuntimeError, match="unsupported value"):
        cluster.kubectl("annotate", "--local", "-f", str(file), "a=b", "-o", "json")
    with pytest.raises(ManifestError, match=r"manifest\.yaml:4: \.inf has no place in JSON"):
        load(file)
