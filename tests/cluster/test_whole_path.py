"""The main job on real input: a training over two nodes and an endpoint over two nodes, with faults on the way.

The tests share one training and one endpoint, and stand in the order in which a user meets them.
"""

import contextlib
import copy
import functools
import json
import os
import shutil
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import conformance
import openai
import pytest
import yaml
from objects import Objects, eventually, example
from prometheus import Prometheus, running, scraping
from runbooks import PAGES, commands
from safetensors import safe_open

from arctic_api.world import NODE_RANK_VARIABLE, WORLD_VARIABLE, uid5
from arctic_cli.dashboards import DASHBOARDS
from arctic_cli.dashboards.asking import Series, Span, answers
from arctic_cli.dashboards.pictures import draw
from arctic_cli.demo import ask, forwarded
from arctic_cli.local import inference_groups
from arctic_cluster import Cluster
from arctic_cluster.manifests import SYSTEM_NAMESPACE, restricted_namespace
from arctic_cluster.paths import STORE
from arctic_operator.manifests.common import gateway_name, tls_name
from arctic_operator.observed import identity_of

pytestmark = pytest.mark.timeout(1800)  # a test may wait for a whole training

ROOT = Path(__file__).parents[2]
NAMESPACE = "whole-path"
BUDGETS = {"general": "200k", "enterprise": "120k", "reasoning": "120k"}
LATEST = 300.0
"""Seconds until a request has failed: one that wakes a group waits for it to load."""
PROMPTS = ["CREATE TABLE", "def main(", "The Python interpreter", "select a, b from t1 where"]


def training_manifest(name: str, budgets: dict[str, str]) -> dict[str, Any]:
    """The example under another name, with smaller budgets."""
    manifest = example("ArcticTraining", name)
    manifest["spec"]["checkpoint"]["every"] = {"steps": 10}
    for stage in manifest["spec"]["curriculum"]["stages"]:
        stage["tokens"] = budgets[stage["name"]]
        stage["learningRate"].pop("warmupTokens", None)
    return manifest


@pytest.fixture(scope="module")
def objects(operator: Cluster) -> Iterator[Objects]:
    """The namespace of the whole path."""
    operator.apply([restricted_namespace(NAMESPACE)])
    operator.create_claims(NAMESPACE)
    yield Objects(operator, NAMESPACE)
    operator.delete_namespace(NAMESPACE, wait=False)
    # The store is the user's own, and outlives the cluster.
    shutil.rmtree(operator.volumes / STORE / NAMESPACE, ignore_errors=True)


@pytest.fixture(scope="module")
def watching(objects: Objects, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """A Prometheus that scrapes the cluster as the chart's monitors say, from before anything is trained."""
    rendered = objects.cluster.helm(
        *("template", "arctic", str(ROOT / "charts/arctic"), "-n", SYSTEM_NAMESPACE),
        *("--api-versions", "monitoring.coreos.com/v1", "--set", "crds.enabled=false"),
    )
    folder = tmp_path_factory.mktemp("prometheus")
    manifests = [each for each in yaml.safe_load_all(rendered) if each]
    with running(folder, scraping(objects.cluster.kubeconfig, manifests, folder, "2s")) as it:
        yield it


@pytest.fixture(scope="module")
def trained(objects: Objects) -> dict[str, Any]:
    """A training that was paused and kept in between, and ended well although the operator's pod was deleted then."""
    objects.apply(training_manifest("whole", BUDGETS))
    eventually("first steps", lambda: objects.status("atr", "whole").get("step"))
    before = {pod["metadata"]["uid"] for pod in objects.pods("whole")}
    tell(objects, "pause", "whole")
    objects.state("atr", "whole", "Paused")
    said = tell(objects, "checkpoint", "whole")
    kept = objects.status("atr", "whole")["checkpointRequest"]
    assert said == f"whole: the checkpoint of step {kept['step']} is committed: {kept['uri']}\n"
    assert (host_folder(objects, kept["uri"]) / "manifest.json").is_file()
    assert objects.status("atr", "whole")["state"] == "Paused"
    tell(objects, "resume", "whole")
    objects.state("atr", "whole", "Running")
    objects.cluster.kubectl("delete", "pod", "-n", SYSTEM_NAMESPACE, "-l", "app.kubernetes.io/name=arctic-operator")
    objects.state("atr", "whole", "Succeeded")
    assert {pod["metadata"]["uid"] for pod in objects.pods("whole")} == before, (
        "the operator's end disturbed the workers"
    )
    return objects.get("atr", "whole")


def tell(objects: Objects, command: str, *arguments: str) -> str:
    """What the command line says when it tells a training something."""
    return objects.typed("arctic", command, *arguments, "-n", NAMESPACE)


def test_the_charts_monitors_find_the_operator(watching: Prometheus) -> None:
    """First, so that all of what follows is recorded."""
    eventually("a scrape of the leader", lambda: watching.value("max(arctic_operator_leader)") == 1)


def test_three_stages_pass_and_held_out_loss_falls_in_each(trained: dict[str, Any]) -> None:
    stages = trained["status"]["stages"]
    assert [stage["name"] for stage in stages] == list(BUDGETS)
    for stage in stages:
        assert stage["tokens"] >= stage["budget"]
        assert float(stage["validationLoss"]) < float(stage["initialValidationLoss"])


def test_the_status_is_complete_after_the_operators_absence(trained: dict[str, Any]) -> None:
    status = trained["status"]
    conditions = {condition["type"]: condition["status"] for condition in status["conditions"]}
    assert conditions["Succeeded"] == "True"
    assert conditions["Failed"] == "False"
    assert status["observedGeneration"] == trained["metadata"]["generation"]
    assert status["attempt"] == 1
    assert status["export"]["uri"].startswith("file:///var/lib/arctic/store/")


def test_workers_ran_on_both_nodes(objects: Objects, trained: dict[str, Any]) -> None:
    assert len({pod["spec"]["nodeName"] for pod in objects.pods("whole")}) == 2


def test_the_export_has_the_published_layout(objects: Objects, trained: dict[str, Any]) -> None:
    folder = host_folder(objects, trained["status"]["export"]["uri"])
    assert {"config.json", "tokenizer.json", "model.safetensors"} <= {path.name for path in folder.iterdir()}
    with safe_open(folder / "model.safetensors", "pt") as weights:
        assert "model.layers.0.block_sparse_moe.experts.0.w1.weight" in weights.keys()  # noqa: SIM118 (no mapping)


def host_folder(objects: Objects, uri: str) -> Path:
    """Where a folder of the store is on the host."""
    return objects.cluster.volumes / STORE / uri.removeprefix("file:///var/lib/arctic/store/")


@pytest.fixture(scope="module")
def served(objects: Objects, trained: dict[str, Any]) -> dict[str, Any]:
    """An endpoint over two nodes that serves what was trained."""
    manifest = example("ArcticInference", "answers")
    manifest["spec"]["model"]["training"] = "whole"
    objects.apply(manifest)
    objects.state("ainf", "answers", "Ready")
    return manifest


def test_a_group_lies_over_two_nodes(objects: Objects, served: dict[str, Any]) -> None:
    assert len({pod["spec"]["nodeName"] for pod in objects.pods("answers", "ArcticInference")}) == 2


@pytest.mark.parametrize("check", conformance.SHORT, ids=lambda check: check.__name__)
async def test_the_endpoint_conforms(objects: Objects, served: dict[str, Any], check: conformance.Check) -> None:
    """The short part of what `make test-engines` asks of every engine."""
    await check(conformance.Endpoint(objects, "answers"))


def test_people_see_how_it_fares_and_talk_to_it(objects: Objects, served: dict[str, Any]) -> None:
    def arctic(*arguments: str) -> str:
        return objects.typed("kubectl", "arctic", *arguments, "-n", NAMESPACE)

    assert "reasoning" in arctic("status", "training", "whole")
    assert "1 ready" in arctic("status", "service", "answers")
    assert {"whole", "answers"} <= set(arctic("status").split())
    assert "Ready on port" in arctic("logs", "service", "answers")
    assert len(arctic("logs", "training", "whole", "--tail", "2").splitlines()) == 4
    assert arctic("chat", "answers", "Name a table.").strip()


ELSEWHERE = {"checkpoint", "pause", "resume", "report", "restart", "edit"}
"""For a training that runs, or its folder, or a person: they have tests of their own."""
CHANGES = {"patch", "delete", "scale", "cordon"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_steps_of_a_runbook_can_be_taken(
    objects: Objects, trained: dict[str, Any], served: dict[str, Any], page: Path
) -> None:
    """What only looks is run; of what changes something the API server says whether it would."""
    kind, name = ("ArcticInference", "answers") if "Inference" in page.stem else ("ArcticTraining", "whole")
    places = {
        "NAME-UUUUU-tls": tls_name(identity_of(objects.get(kind, name))),
        "NAMESPACE": NAMESPACE,
        "REVISION": objects.status("ainf", "answers")["revision"],
        "NODE": objects.cluster.nodes[0].name,
        "REPLICAS": "2",
        "LIMIT": "20",
        "NAME": name,
    }
    for words in commands(page):
        if ELSEWHERE & set(words):
            continue
        filled = [functools.reduce(lambda word, place: word.replace(*place), places.items(), word) for word in words]
        dry = ["--dry-run=server"] if CHANGES & set(words) else []
        objects.typed(*(word for word in filled if word != "-w"), *dry)


def test_greedy_output_over_two_nodes_equals_that_of_one_process(
    objects: Objects, trained: dict[str, Any], served: dict[str, Any], tmp_path: Path
) -> None:
    with forwarded_service(objects) as address:
        over_two_nodes = [ask(address, "answers", prompt) for prompt in PROMPTS]
    with one_process(served, host_folder(objects, trained["status"]["export"]["uri"]), tmp_path) as address:
        alone = [ask(address, "answers", prompt) for prompt in PROMPTS]
    assert over_two_nodes == alone


def test_a_lost_pod_ends_and_remakes_its_group_and_who_asks_meanwhile_is_told_to_come_back(
    objects: Objects, served: dict[str, Any]
) -> None:
    with forwarded_service(objects) as address:
        with asking(address, 1, pause=0.5) as failed:
            conformance.a_lost_pod_ends_and_remakes_its_group(conformance.Endpoint(objects, "answers"))
        assert ask(address, "answers", PROMPTS[0])
    # The leader that went away is known before the gateway has no leader left.
    told = "No replica of this model is ready: try again in a few seconds"
    assert any("503 - " in why and told in why for why in failed)
    broken = [why for why in failed if "503 - " not in why]
    assert len(broken) <= 2, f"more than what was under way, and what met the leader's end, was broken off: {failed}"


def test_load_brings_a_group_its_end_takes_it_and_a_request_brings_the_last_one_back(
    objects: Objects, served: dict[str, Any]
) -> None:
    scaling = {
        "min": 0,
        "max": 2,
        "target": {"queuedPerReplica": 1},
        "stabilization": {"down": "10s"},
        "scaleToZeroAfter": "30s",
    }
    objects.apply({**served, "spec": {**served["spec"], "autoscaling": scaling}})
    gateway = gateway_name(identity_of(objects.get("ainf", "answers")))
    objects.eventually("the new gateway", lambda: "lua.hold" in objects.kubectl("get", "cm", gateway, "-o", "yaml"))
    objects.kubectl("rollout", "status", f"deployment/{gateway}", "--timeout=240s")
    running = served["spec"]["batching"]["maxSequences"]
    with forwarded_service(objects) as address:
        with asking(address, running + 8) as failed:
            objects.eventually("two groups serve", lambda: ready_groups(objects) == 2)
            reason = objects.status("ainf", "answers")["scaling"]["reason"]
        assert reason == "AboveTarget"
        with asking(address, 1, pause=1.0) as failed_later:
            objects.eventually("one group is left", lambda: objects.status("ainf", "answers")["replicas"] == 1)
        objects.state("ainf", "answers", "Idle")
        with asking(address, 1) as failed_last:
            objects.state("ainf", "answers", "Ready")
    assert (failed, failed_later, failed_last) == ([], [], [])
    assert objects.status("ainf", "answers")["scaling"]["reason"] == "Woken"
    objects.apply(served)
    objects.state("ainf", "answers", "Ready")


def ready_groups(objects: Objects) -> int:
    status = objects.status("ainf", "answers")
    return min(int(status.get("readyReplicas", 0)), int(status.get("desiredReplicas", 0)))


@contextlib.contextmanager
def asking(address: str, clients: int, pause: float = 0.0) -> Iterator[list[str]]:
    """So many clients that ask on and on, and nothing a second time; yields what went wrong so far."""
    stopping, failed = threading.Event(), []

    def ask_on() -> None:
        with openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=LATEST) as client:
            while not stopping.wait(pause):
                try:
                    client.completions.create(model="answers", prompt=PROMPTS[0], max_tokens=64)
                except openai.OpenAIError as error:
                    failed.append(f"{type(error).__name__}: {error}")

    threads = [threading.Thread(target=ask_on) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield failed
    finally:
        stopping.set()
        for thread in threads:
            thread.join(LATEST)


def test_a_lost_training_pod_costs_an_attempt_and_drained_pods_never_make_a_success(objects: Objects) -> None:
    # Long enough that it is told to stop while it is in the second stage, however fast its steps are.
    objects.apply(training_manifest("lost", {"general": "100k", "enterprise": "300k", "reasoning": "100k"}))
    step = eventually("a checkpoint", lambda: objects.status("atr", "lost").get("lastCheckpoint"))["step"]
    objects.kubectl("delete", "pod", objects.pods("lost")[1]["metadata"]["name"], "--grace-period=0", "--force")
    resumed = eventually("attempt 2 has begun", lambda: running_attempt(objects, "lost", 2))
    assert resumed["step"] >= step, "the second attempt began anew"
    objects.kubectl("delete", "pod", "--wait=false", *[pod["metadata"]["name"] for pod in objects.pods("lost")])
    drained = eventually("attempt 3 has begun", lambda: running_attempt(objects, "lost", 3))
    assert drained["step"] >= resumed["lastCheckpoint"]["step"], "the third attempt began anew"
    tell(objects, "stop", "lost", "--after", "enterprise")
    done = objects.state("atr", "lost", "Succeeded")
    assert done["attempt"] == 3
    assert 400_000 <= done["tokens"] < 500_000
    folder = host_folder(objects, done["export"]["uri"])
    assert folder.parent.name == f"lost-{uid5(objects.get('atr', 'lost')['metadata']['uid'])}"


def running_attempt(objects: Objects, name: str, attempt: int) -> dict[str, Any] | None:
    """The status once that attempt makes steps and tells of them; a success on the way fails the test."""
    status = objects.status("atr", name)
    assert status.get("state") != "Succeeded", status
    runs = status.get("attempt", 0) >= attempt and status.get("state") == "Running"
    # Without a rate the step is what an earlier attempt has told.
    return status if runs and "tokensPerSecond" in status else None


def test_a_name_used_again_starts_clean_and_children_go_without_the_operator(objects: Objects) -> None:
    old = objects.get("atr", "lost")
    objects.kubectl("delete", "atr", "lost", "--wait=false")
    objects.apply(training_manifest("lost", dict.fromkeys(BUDGETS, "400k")))
    status = eventually("the new one runs", lambda: running_attempt(objects, "lost", 1))
    again = objects.get("atr", "lost")["metadata"]["uid"]
    assert again != old["metadata"]["uid"]
    assert status["attempt"] == 1
    assert status["step"] < old["status"]["step"], "it went on from the old one's checkpoint"
    assert {pod["metadata"]["labels"]["arctic.dev/uid"] for pod in live(objects.pods("lost"))} == {again}
    assert tell(objects, "extend", "lost", "--stage", "reasoning", "--tokens", "500k").startswith(
        "lost: stage reasoning"
    )
    assert objects.get("atr", "lost")["spec"]["curriculum"]["stages"][2]["tokens"] == "500k"
    scale_operator(objects.cluster, 0)
    try:
        objects.kubectl("delete", "atr", "lost", "--timeout=20s")
        kinds = "jobs,pods,services,secrets,networkpolicies"
        eventually("all children are gone", lambda: not objects.labelled(kinds, f"arctic.dev/uid={again}"))
    finally:
        scale_operator(objects.cluster, 1)


def test_every_panel_of_every_dashboard_has_shown_what_changes(
    objects: Objects, served: dict[str, Any], watching: Prometheus, request: pytest.FixtureRequest
) -> None:
    """Over all that these tests did: the rooms of the chart are the ones that Prometheus has scraped."""
    end = time.time()
    span = Span(end - watching.age(), end, 5.0)
    training = {"namespace": NAMESPACE, "name": "whole"}
    chosen = {"arctic-training": training, "arctic-service": training | {"name": "answers"}}
    silent = [
        f"{dashboard.title}: {panel.title}"
        for uid, dashboard in DASHBOARDS.items()
        for panel in dashboard.panels
        if not changes(answers(watching.url, panel, chosen.get(uid, {}), span))
    ]
    if folder := request.config.getoption("--pictures"):
        draw(watching.url, Path(folder), span, chosen)
    assert silent == []


def changes(series: list[Series]) -> bool:
    """Whether a panel has shown one thing at one moment and another at another."""
    moments = {at for each in series for at in each.points}
    return len({tuple(each.points.get(at) for each in series) for at in moments}) > 1


def live(pods: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Pods that are not on their way out."""
    return [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]


def scale_operator(cluster: Cluster, replicas: int) -> None:
    """Take the operator down, or bring it back."""
    cluster.kubectl("scale", "-n", SYSTEM_NAMESPACE, "deployment/arctic-operator", f"--replicas={replicas}")
    selector = ("-l", "app.kubernetes.io/name=arctic-operator")
    pods = ("get", "pods", "-n", SYSTEM_NAMESPACE, *selector, "-o", "json")
    eventually("the operator's pods", lambda: len(json.loads(cluster.kubectl(*pods))["items"]) == replicas)


def forwarded_service(objects: Objects) -> Any:
    """The address at which this machine reaches the endpoint."""
    return forwarded(objects.cluster, "answers", 8000, objects.namespace)


@contextlib.contextmanager
def one_process(served: dict[str, Any], folder: Path, scratch: Path) -> Iterator[str]:
    """The same weights and options served by one local process; yields its address."""
    manifest = copy.deepcopy(served)
    manifest["spec"]["model"] = {"uri": f"file://{folder}", "servedName": manifest["metadata"]["name"]}
    manifest["spec"]["parallelism"] = {"tensor": 1, "pipeline": 1}
    manifest["spec"]["service"] = {"port": 18000}
    [group] = inference_groups(manifest, scratch, scratch)
    world = {WORLD_VARIABLE: group.model_dump_json(by_alias=True), NODE_RANK_VARIABLE: "0"}
    process = subprocess.Popen([sys.executable, "-m", "arctic_workers.inference"], env={**os.environ, **world})
    address = f"http://127.0.0.1:{group.ports.http}"

    def ready() -> bool:
        assert process.poll() is None, "the local process has ended"
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{address}/v1/models", timeout=2) as answer:
            return bool(answer.status == 200)
        return False

    try:
        eventually("the local process answers", ready)
        yield address
    finally:
        process.terminate()
        process.wait(30)
