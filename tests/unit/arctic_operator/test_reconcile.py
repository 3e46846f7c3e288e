"""The loop on an API server in memory, and the edge's pure parts; the edge itself is tried in tests/cluster."""

import asyncio
import base64
import json
import weakref
from itertools import islice

import pytest

from arctic_api import verdict
from arctic_api.rules import Judge, Rule, rules_of
from arctic_api.training import ArcticTrainingSpec
from arctic_api.world import Label
from arctic_operator import commands, observe, reconcile, refusals
from arctic_operator.cache import Listing
from arctic_operator.certificates import Pair, check_pair
from arctic_operator.cluster import NO_LEADER_WORKER_SETS, ApiError, NotServedError, contains
from arctic_operator.handlers import LONGEST_WAIT, EndlessBackoff, build_registry
from arctic_operator.live import InferenceObservation, Live, Phase
from arctic_operator.observed import TrainingSeen
from arctic_operator.plan.actions import Plan
from arctic_operator.plan.training import plan_training
from arctic_operator.reconcile import PROGRESS_FIELDS, Bucket, difference, with_failure


@pytest.fixture(autouse=True)
def waits_for_its_test(monkeypatch):
    """However slow the machine is: no time is over that a test does not say is over."""
    for seconds in ("SETTLE_SECONDS", "BEGIN_SECONDS", "SEE_TO_EVERY"):
        monkeypatch.setattr(reconcile, seconds, 3600.0)


def status(**fields):
    condition = {"type": "Ready", "status": "True", "reason": "Because", "message": "m", "observedGeneration": 1}
    return {
        "state": "Running",
        "conditions": [condition],
        "stages": [{"name": "a", "tokens": 1}, {"name": "b"}],
    } | fields


def test_the_order_in_which_the_api_server_keeps_lists_is_no_news():
    assert difference(status(), status(stages=[{"name": "b"}, {"name": "a", "tokens": 1}])) == set()


def test_progress_is_told_from_changes_of_state():
    assert (
        difference(status(step=1), status(step=2, stages=[{"name": "a", "tokens": 2}, {"name": "b"}]))
        <= PROGRESS_FIELDS
    )
    assert difference(status(), status(state="Failed")) == {"state"}
    said = status(conditions=[status()["conditions"][0] | {"message": "other"}])
    assert difference(status(), said) <= PROGRESS_FIELDS
    turned = status(conditions=[status()["conditions"][0] | {"status": "False"}])
    assert difference(status(), turned) == {"conditions"}


def test_a_child_that_has_more_than_is_wanted_needs_no_write():
    known = {"spec": {"ports": [{"port": 80, "protocol": "TCP"}], "clusterIP": "10.0.0.1"}}
    assert contains(known, {"spec": {"ports": [{"port": 80}]}})
    assert contains(known, {"spec": {"selector": {}}})
    assert not contains(known, {"spec": {"ports": [{"port": 81}]}})
    assert not contains(known, {"spec": {"ports": []}})
    assert not contains(known, {"spec": {"ports": [{"port": 80}, {"port": 81}]}})


def test_a_refused_child_shows_in_the_status_and_an_api_server_that_is_away_does_not(build):
    training = build.training()
    plain = plan_training(training, TrainingSeen(), build.settings, build.start).status
    told = with_failure(plain, ApiError(403, "Forbidden", "exceeded quota: gpus"), training, build.start)
    degraded = [c for c in told["conditions"] if c["type"] == "Degraded"]
    assert [(c["status"], c["reason"], c["message"]) for c in degraded] == [
        ("True", "FailedCreate", "exceeded quota: gpus")
    ]
    assert len(told["conditions"]) == len(plain["conditions"])
    assert plain["attempt"] == 1
    unmade = {name: value for name, value in plain.items() if name != "attempt"}
    for code in (0, 429, 500, 503):
        assert with_failure(plain, ApiError(code, "", "away"), training, build.start) == unmade
    webhook = ApiError(500, "InternalError", 'Internal error occurred: failed calling webhook "m.kb.io": no endpoints')
    told = with_failure(plain, webhook, training, build.start)
    assert webhook.message in {c.get("message") for c in told["conditions"]}
    ending = ApiError(403, "NamespaceTerminating", "the namespace is being terminated")
    assert with_failure(plain, ending, training, build.start) == unmade


def test_a_bucket_gives_no_more_than_its_rate():
    now = [0.0]
    bucket = Bucket(20, lambda: now[0])
    assert sum(bucket.take() for _ in range(100)) == 20
    now[0] = 0.5
    assert sum(bucket.take() for _ in range(100)) == 10


def test_each_that_reserves_a_token_gets_one_of_its_own_in_its_turn():
    now = [0.0]
    bucket = Bucket(2, lambda: now[0])
    assert [bucket.reserve() for _ in range(5)] == [0.0, 0.0, 0.5, 1.0, 1.5]
    now[0] = 1.0
    assert not bucket.take(), "what was reserved is not given to others"
    assert bucket.reserve() == 1.0


def test_progress_that_waits_for_its_turn_is_looked_at_once_however_many_wait(operator, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(reconcile.time, "monotonic", lambda: now[0])
    operator.reconciler._bucket = Bucket(2, lambda: now[0])
    memories = [reconcile._Memory(f"uid-{number}") for number in range(6)]

    def waits(memory):
        return operator.reconciler._waits({"step"}, memory, 0.0)

    assert [waits(memory) for memory in memories] == [None, None, 0.5, 1.0, 1.5, 2.0]
    now[0] += 1.0
    assert [waits(memory) for memory in memories[3:]] == [None, 0.5, 1.0], "nobody loses its turn by being looked at"
    assert waits(memories[0]) == reconcile.PROGRESS_EVERY - 1.0


def test_watchers_never_stop_trying():
    waits = list(islice(EndlessBackoff(), 1000))
    assert len(waits) == 1000
    assert max(waits) <= LONGEST_WAIT
    assert waits[0] <= 1


def test_nobodys_object_is_written_by_kopf():
    registry = build_registry(lambda kind, manifest: None)
    assert list(registry._changing.get_all_handlers()) == []
    assert list(registry._spawning.get_all_handlers()) == []


@pytest.mark.parametrize("during", ["nothing", "the read of the pods"])
async def test_a_job_whose_watch_is_ahead_of_its_pods_is_judged_by_pods_that_are_not_behind(
    operator, build, monkeypatch, during
):
    key = operator.add("ArcticTraining")
    await operator.reconcile(key)
    for pod in operator.pods("Running"):
        operator.cache.put(pod)
    await operator.reconcile(key)

    def complete():
        message = build.report(exportUri="file:///export")
        ended = {"exitCode": 0, "message": message, "finishedAt": "2026-01-01T00:10:00Z"}
        operator.pods("Succeeded", terminated=ended)
        (job,) = operator.server.of("Job")
        condition = {"type": "Complete", "status": "True", "lastTransitionTime": "2026-01-01T00:10:00Z"}
        operator.cache.put(operator.server.put(job | {"status": {"conditions": [condition]}}))

    if during == "nothing":
        complete()
    else:
        real, pending = operator.server.list_children, [complete]

        async def list_children(kind, namespace, owner):
            answer = await real(kind, namespace, owner)
            if kind == "Pod" and pending:
                pending.pop()()
            return answer

        monkeypatch.setattr(operator.server, "list_children", list_children)
        monkeypatch.setattr(reconcile, "LOOK_EVERY", 0)
    await operator.reconcile(key)
    assert (operator.status(key)["state"], operator.status(key)["restarts"]) == ("Succeeded", 0)


@pytest.mark.parametrize(
    ("ready", "reasons"),
    [((True, True), []), ((True, False), ["NodeLost"]), ((False, False), [])],
    ids=["back again", "lost", "the control plane was away"],
)
async def test_a_node_is_lost_if_the_api_server_says_so_whatever_a_watch_that_is_behind_has_shown(
    operator_with, build, ready, reasons
):
    operator = operator_with(build.settings.model_copy(update={"read_nodes": True}))
    key = operator.add("ArcticTraining")
    await operator.reconcile(key)
    for manifest in (*operator.nodes(True, False), *operator.pods("Running")):
        operator.cache.put(manifest)
    operator.nodes(*ready)
    await operator.reconcile(key)
    assert [attempt["reason"] for attempt in operator.status(key).get("attempts", ())] == reasons


async def test_of_many_objects_those_visited_last_are_kept_as_their_types(operator, monkeypatch):
    monkeypatch.setattr(observe, "SUBJECTS", 2)
    keys = [operator.add("ArcticTraining", name) for name in ("one", "two", "three")]
    observer = operator.reconciler.observer
    one, two, three = (observer.subject(key) for key in keys)
    assert (observer.subject(keys[1]), observer.subject(keys[2])) == (two, three)
    assert observer.subject(keys[2]) is three
    assert observer.subject(keys[0]) is not one
    assert observer.subject(keys[0]) == one
    assert observer.subject(keys[1]) is not two


async def test_an_operator_that_lost_the_lease_to_nobody_reads_nothing_anew(operator, monkeypatch):
    key = operator.add("ArcticTraining")
    await operator.reconcile(key)
    visited, looked = asyncio.Event(), []
    visit, look = operator.reconciler._visit, operator.reconciler.observer.look

    async def visiting(*arguments):
        try:
            return await visit(*arguments)
        finally:
            visited.set()

    async def looking(key):
        looked.append(key)
        await look(key)

    async def lead(*, again):
        visited.clear()
        leading = asyncio.create_task(operator.reconciler.run(again=again))
        async with asyncio.timeout(60):
            await visited.wait()
        leading.cancel()
        await asyncio.wait([leading])

    monkeypatch.setattr(operator.reconciler, "_visit", visiting)
    monkeypatch.setattr(operator.reconciler.observer, "look", looking)
    await lead(again=True)
    assert looked == []
    await lead(again=False)
    assert looked == [key]


async def test_worlds_share_what_is_known_of_nodes_until_one_changes(operator_with, build, monkeypatch):
    operator = operator_with(build.settings.model_copy(update={"read_nodes": True}))
    key, planned_with = operator.add("ArcticTraining"), []

    def plan(training, seen, *rest):
        planned_with.append(seen.nodes)
        return plan_training(training, seen, *rest)

    async def seen(*ready):
        for node in operator.nodes(*ready):
            operator.cache.put(node)
        await operator.reconcile(key)
        return planned_with[-1]

    monkeypatch.setattr(reconcile, "plan_training", plan)
    nodes = await seen(True, True)
    await operator.reconcile(key)
    assert planned_with[-1] is nodes
    assert [node.ready for node in (await seen(True, False)).values()] == [True, False]
    assert [node.ready for node in nodes.values()] == [True, True]


async def test_nothing_that_a_plan_was_made_on_outlives_the_visit(operator_with, build, monkeypatch):
    operator = operator_with(build.settings)
    key, planned_on = operator.add("ArcticTraining"), []

    def plan(training, seen, *rest):
        planned_on.append(weakref.ref(seen))
        return plan_training(training, seen, *rest)

    monkeypatch.setattr(reconcile, "plan_training", plan)
    await operator.reconcile(key)
    assert [seen() for seen in planned_on] == [None]


async def test_a_world_that_stricter_rules_of_an_upgrade_would_refuse_runs_to_its_end(operator, build, monkeypatch):
    key = operator.add("ArcticTraining")
    await operator.reconcile(key)
    for pod in operator.pods("Running"):
        operator.cache.put(pod)
    await operator.reconcile(key)
    forbidden = Rule(ArcticTrainingSpec, Judge.OPERATOR, lambda spec: False, "may not be trained any more")
    monkeypatch.setattr(
        verdict, "rules_of", lambda where: (*rules_of(where), *[forbidden] * (where is forbidden.where))
    )
    message = build.report(exportUri="file:///export")
    operator.pods("Succeeded", terminated={"exitCode": 0, "message": message, "finishedAt": "2026-01-01T00:10:00Z"})
    (job,) = operator.server.of("Job")
    condition = {"type": "Complete", "status": "True", "lastTransitionTime": "2026-01-01T00:10:00Z"}
    operator.server.put(job | {"status": {"conditions": [condition]}})
    operator.restart()
    await operator.reconcile(key)
    assert operator.status(key)["state"] == "Succeeded"
    operator.add("ArcticTraining", generation=2, suspend=True)
    for _ in range(2):
        await operator.reconcile(key)
        assert operator.status(key)["state"] == "InvalidSpec"
        assert "may not be trained any more" in operator.condition(key, "Degraded")["message"]
        operator.restart()


FOLDER = "/var/lib/arctic/store/team/base-12345/export"
NEWEST = "/var/lib/arctic/store/team/base-98765/export"


def weights_of(manifest):
    """Return the folder of weights that the pods of a child are told, and the claims that they mount."""
    spec = manifest["spec"]["template"]["spec"]
    world = json.loads(next(v["value"] for v in spec["containers"][0]["env"] if v["name"] == "ARCTIC_WORLD"))
    claims = {v["persistentVolumeClaim"]["claimName"] for v in spec["volumes"] if "persistentVolumeClaim" in v}
    return world.get("weightsFolder") or world["modelFolder"], claims


def add_exported(operator):
    """Add the training that others name, done, and return its key."""
    base = operator.add("ArcticTraining", "base")
    operator.set_status(base, export={"uri": f"file://{FOLDER}"})
    return base


async def next_attempt(operator, key):
    """Lose the only Job, and return the one that follows."""
    (job,) = operator.server.of("Job")
    operator.remove("Job", job["metadata"]["name"])
    for _ in range(3):
        await operator.reconcile(key)
    (job,) = operator.server.of("Job")
    assert job["metadata"]["name"].endswith("-a2")
    return job


async def test_a_fine_tuning_goes_on_from_its_weights_when_the_training_that_made_them_is_deleted(operator):
    add_exported(operator)
    key = operator.add("ArcticTraining", model={"from": {"training": "base"}})
    for _ in range(2):
        await operator.reconcile(key)
    operator.remove("ArcticTraining", "base")
    assert weights_of(await next_attempt(operator, key)) == (FOLDER, {"store"})


@pytest.mark.parametrize("seen", ["the attempt", "only its job"])
async def test_a_fine_tuning_goes_on_from_its_weights_when_that_name_exports_others(operator, seen):
    base = add_exported(operator)
    key = operator.add("ArcticTraining", model={"from": {"training": "base"}})
    for _ in range(2 if seen == "the attempt" else 1):
        await operator.reconcile(key)
    operator.set_status(base, export={"uri": f"file://{NEWEST}"})
    if seen == "only its job":
        await operator.reconcile(key)
    assert weights_of(await next_attempt(operator, key)) == (FOLDER, {"store"})


async def test_a_service_follows_the_newest_export_of_that_name(operator):
    base = add_exported(operator)
    key = operator.add("ArcticInference", model={"training": "base"})
    await operator.reconcile(key)
    operator.set_status(base, export={"uri": f"file://{NEWEST}"})
    await operator.reconcile(key)
    (group,) = operator.server.of("StatefulSet")
    assert weights_of(group) == (NEWEST, {"store"})


async def test_a_service_scales_with_its_weights_when_the_training_that_made_them_is_deleted(operator):
    add_exported(operator)
    key = operator.add("ArcticInference", model={"training": "base"})
    await operator.reconcile(key)
    operator.remove("ArcticTraining", "base")
    rollout = {"maxSurge": 1, "maxUnavailable": 1}
    operator.add("ArcticInference", generation=2, model={"training": "base"}, replicas=3, rollout=rollout)
    await operator.reconcile(key)
    groups = operator.server.of("StatefulSet")
    assert [weights_of(group) for group in groups] == [(FOLDER, {"store"})] * 3
    assert len({group["metadata"]["labels"]["arctic.dev/revision"] for group in groups}) == 1


@pytest.mark.parametrize(
    ("checkpoint", "conditions", "reason"),
    [
        ("huggingface", [], "WaitingForTraining"),
        ("none", [], "BaseExportsNothing"),
        ("adapter", [], "BaseExportsNothing"),
        ("huggingface", [{"type": "Failed", "status": "True", "reason": "RestartLimitExceeded"}], "BaseFailed"),
        (None, [], "NoSuchTraining"),
    ],
)
async def test_weights_that_will_not_come_of_themselves_are_told_as_trouble(operator, checkpoint, conditions, reason):
    if checkpoint:
        volume = {"claimName": "store"}
        base = operator.add("ArcticTraining", "base", checkpoint={"volume": volume, "export": checkpoint})
        export = {"uri": "file:///var/lib/arctic/store/export"} if checkpoint == "adapter" else None
        operator.set_status(base, conditions=conditions, **({"export": export} if export else {}))
    training = operator.add("ArcticTraining", model={"from": {"training": "base"}})
    await operator.reconcile(training)
    inference = operator.add("ArcticInference", model={"training": "base"})
    await operator.reconcile(inference)
    for key in (training, inference):
        degraded = operator.condition(key, "Degraded")
        assert (degraded["reason"], degraded["status"]) == (reason, str(reason != "WaitingForTraining"))
        assert operator.status(key)["state"] == "WaitingForTraining"
    assert operator.server.of("Job", "StatefulSet") == []


@pytest.mark.parametrize("kind", ["ArcticTraining", "ArcticInference"])
async def test_a_fault_of_ours_is_told_in_the_status_and_is_over_when_it_is(operator, monkeypatch, kind):
    key = operator.add(kind)

    def fails(*_):
        raise KeyError("spec.nothing")

    with monkeypatch.context() as broken:
        broken.setattr(reconcile, f"plan_{kind.removeprefix('Arctic').lower()}", fails)
        await operator.reconcile(key)
    degraded = operator.condition(key, "Degraded")
    assert (degraded["status"], degraded["reason"]) == ("True", "InternalError")
    assert "KeyError: 'spec.nothing'" in degraded["message"]
    await operator.reconcile(key)
    assert operator.condition(key, "Degraded")["status"] == "False"
    assert operator.server.of("Job", "StatefulSet") != []


@pytest.mark.parametrize("seen", ["at the next look", "while pods wait for them"])
async def test_children_that_are_not_watched_are_put_back(operator, monkeypatch, seen):
    key = operator.add("ArcticInference")
    await operator.reconcile(key)
    unwatched = operator.server.of("ConfigMap", "Secret")
    for manifest in unwatched:
        if manifest["metadata"]["namespace"] == "team":
            del operator.server.objects[manifest["kind"], "team", manifest["metadata"]["name"]]
    if seen == "at the next look":
        monkeypatch.setattr(reconcile, "LOOK_EVERY", 0)
    else:
        monkeypatch.setattr(reconcile, "SEE_TO_EVERY", 0)
        for pod in operator.pods("Pending"):
            operator.cache.put(pod)
    await operator.reconcile(key)
    names = {manifest["metadata"]["name"] for manifest in operator.server.of("ConfigMap", "Secret")}
    assert names == {manifest["metadata"]["name"] for manifest in unwatched}
    assert {"tiny-0a1b2-gateway", "tiny-0a1b2-tls"} <= names


@pytest.mark.parametrize("field", ["tls.crt", "tls.key", "ca.crt"])
@pytest.mark.parametrize(
    "damage", [lambda data, field: data.pop(field), lambda data, field: data.update({field: "eA=="})]
)
async def test_a_certificate_that_is_not_whole_is_made_anew(operator, monkeypatch, field, damage):
    key = operator.add("ArcticInference")
    await operator.reconcile(key)
    place = ("Secret", "team", "tiny-0a1b2-tls")
    damaged = json.loads(json.dumps(operator.server.objects[place]))
    damage(damaged["data"], field)
    operator.server.objects[place] = damaged
    monkeypatch.setattr(reconcile, "LOOK_EVERY", 0)
    await operator.reconcile(key)
    mended = {name: base64.b64decode(text) for name, text in operator.server.objects[place]["data"].items()}
    check_pair(Pair(mended["tls.crt"], mended["tls.key"]), "tls.crt", "tls.key")
    assert mended["ca.crt"].startswith(b"-----BEGIN CERTIFICATE")


async def test_a_pod_that_nobody_has_made_is_no_worker_whatever_its_labels_say(operator):
    key = operator.add("ArcticTraining")
    await operator.reconcile(key)
    (job,) = operator.server.of("Job")
    labels = job["metadata"]["labels"] | {Label.ATTEMPT: "1000"}
    metadata = {"name": "mine", "namespace": "team", "labels": labels}
    pod = operator.server.put({"kind": "Pod", "metadata": metadata, "spec": {}, "status": {"phase": "Running"}})
    operator.cache.put(pod)
    await operator.reconcile(key)
    assert operator.server.of("Job") == [job]
    assert operator.status(key)["attempt"] == 1


async def test_the_key_of_pods_that_log_in_to_each_other_is_made_once_and_for_those_alone(operator, monkeypatch):
    place = ("Secret", "team", "tiny-0a1b2-login")
    key = operator.add("ArcticInference")
    await operator.reconcile(key)
    assert place not in operator.server.objects
    operator.add("ArcticInference", generation=2, engine={"name": "tensorrt-llm"})
    await operator.reconcile(key)
    made = operator.server.objects[place]
    monkeypatch.setattr(reconcile, "LOOK_EVERY", 0)
    await operator.reconcile(key)
    assert operator.server.objects[place] is made
    operator.server.put(made | {"data": {}})
    await operator.reconcile(key)
    assert set(operator.server.objects[place]["data"]) == set(made["data"])


async def test_nothing_of_a_service_that_is_gone_is_kept_in_memory(operator, build):
    key = operator.add("ArcticInference")
    await operator.reconcile(key)
    children = ("StatefulSet", "Deployment", "ControllerRevision", "Service", "NetworkPolicy", "PodDisruptionBudget")
    for manifest in operator.server.of(*children):
        operator.remove(manifest["kind"], manifest["metadata"]["name"])
    operator.remove(key.kind, key.name)
    await operator.reconcile(key)
    assert list(operator.cache.children(build.uid)) == []


async def test_a_damaged_authority_is_told_in_the_status_with_its_secrets_name(operator):
    metadata = {"name": "arctic-ca", "namespace": "arctic"}
    operator.server.put({"kind": "Secret", "metadata": metadata, "data": {"tls.crt": "ZGFtYWdlZA=="}})
    key = operator.add("ArcticTraining")
    await operator.reconcile(key)
    degraded = operator.condition(key, "Degraded")
    assert (degraded["status"], degraded["reason"]) == ("True", "DamagedSecret")
    assert degraded["message"].startswith("Secret arctic/arctic-ca: tls.crt")
    assert operator.server.of("Job") == []


async def add_refused(operator, kind, child):
    """Make an object of whose only child a quota refuses the pods, and tell so; return its key, and that child."""
    key = operator.add(kind)
    await operator.reconcile(key)
    (made,) = operator.server.of(child)
    operator.server.tell(made["metadata"]["uid"], "FailedCreate", "2026-01-01T00:00:00Z", "exceeded quota: gpus")
    for _ in range(2):
        await operator.reconcile(key)
    return key, made


@pytest.mark.parametrize(("kind", "child"), [("ArcticTraining", "Job"), ("ArcticInference", "StatefulSet")])
async def test_why_pods_are_refused_is_told_until_they_are_there(operator, kind, child):
    key, made = await add_refused(operator, kind, child)
    degraded = operator.condition(key, "Degraded")
    assert (degraded["status"], degraded["reason"]) == ("True", "PodsNotCreated")
    assert f"{made['metadata']['name']} can't make its pods: exceeded quota: gpus" in degraded["message"]
    for pod in operator.pods("Pending", group=made["metadata"]["name"] if child == "StatefulSet" else ""):
        operator.cache.put(pod)
    await operator.reconcile(key)
    assert operator.condition(key, "Degraded")["status"] == "False"


async def test_of_many_children_without_pods_few_are_asked_about_in_a_second_and_each_in_the_end(operator, monkeypatch):
    rate, now = int(reconcile.ASK_RATE), 0.0
    operator.reconciler._asks = Bucket(rate, lambda: now)
    key = operator.add("ArcticInference", replicas=3 * rate)
    await operator.reconcile(key)
    groups = operator.server.of("StatefulSet")
    for group in groups:
        operator.server.tell(group["metadata"]["uid"], "FailedCreate", "2026-01-01T00:00:00Z", "exceeded quota: gpus")
    asked, answer = [], operator.server.refusal

    async def refusal(namespace, uid):
        asked.append(uid)
        return await answer(namespace, uid)

    monkeypatch.setattr(operator.server, "refusal", refusal)
    for second in range(3):
        now = float(second)
        for _ in range(3):
            await operator.reconcile(key)
        assert len(asked) == rate * (second + 1)
    told = operator.reconciler._memory[key].refusals
    assert set(told) == {group["metadata"]["name"] for group in groups}


async def test_an_api_server_that_does_not_answer_about_one_group_is_not_asked_about_hundreds(operator, monkeypatch):
    key = operator.add("ArcticInference", replicas=3 * int(reconcile.ASK_RATE))
    await operator.reconcile(key)
    asked = []

    async def refusal(namespace, uid):
        asked.append(uid)
        await asyncio.sleep(0)
        raise ApiError(503, "ServiceUnavailable", "etcd is away")

    for group in operator.server.of("StatefulSet"):
        operator.server.tell(group["metadata"]["uid"], "FailedCreate", "2026-01-01T00:00:00Z", "exceeded quota: gpus")
    monkeypatch.setattr(operator.server, "refusal", refusal)
    await operator.reconcile(key)
    for _ in range(100):
        await asyncio.sleep(0)
    assert 0 < len(asked) <= reconcile.ASK_RATE


async def test_what_nothing_was_refused_for_is_not_asked_about_one_by_one(operator, monkeypatch):
    key = operator.add("ArcticInference", replicas=3)
    await operator.reconcile(key)
    first, *_ = operator.server.of("StatefulSet")
    operator.server.tell(first["metadata"]["uid"], "FailedCreate", "2026-01-01T00:00:00Z", "exceeded quota: gpus")
    asked, request = [], operator.server.request

    async def watched(method, path, *, query=None, **rest):
        if path.endswith("/events"):
            asked.append(query["fieldSelector"])
        return await request(method, path, query=query, **rest)

    monkeypatch.setattr(operator.server, "request", watched)
    await operator.reconcile(key)
    assert asked == ["reason=FailedCreate", f"involvedObject.uid={first['metadata']['uid']}"]


def told_events(operator):
    """Events that an operator has told since it began."""
    return [event.reason for _, event, _ in operator.reconciler._events._waiting]


@pytest.mark.parametrize(("kind", "child"), [("ArcticTraining", "Job"), ("ArcticInference", "StatefulSet")])
async def test_an_operator_that_begins_anew_takes_no_refusal_for_over(operator, kind, child):
    key, _ = await add_refused(operator, kind, child)
    assert operator.condition(key, "Degraded")["reason"] == "PodsNotCreated"
    operator.restart()
    for _ in range(2):
        await operator.reconcile(key)
        assert operator.condition(key, "Degraded")["reason"] == "PodsNotCreated"
    assert told_events(operator) == []


async def test_a_refusal_that_is_over_when_an_operator_begins_anew_is_told_to_be(operator, monkeypatch):
    key = operator.add("ArcticInference")
    await operator.reconcile(key)
    (made,) = operator.server.of("StatefulSet")
    operator.server.tell(made["metadata"]["uid"], "FailedCreate", "2026-01-01T00:00:00Z", "exceeded quota: gpus")
    for _ in range(2):
        await operator.reconcile(key)
    operator.server.events.clear()
    operator.restart()
    for _ in range(2):
        await operator.reconcile(key)
    assert operator.condition(key, "Degraded")["reason"] == "AsExpected"
    assert "Recovered" in told_events(operator)


async def test_a_refusal_of_the_past_is_not_told_of_a_pod_that_is_remade(operator):
    key = operator.add("ArcticInference")
    await operator.reconcile(key)
    (group,) = operator.server.of("StatefulSet")
    uid, name = group["metadata"]["uid"], group["metadata"]["name"]
    first, second = operator.pods("Running", group=name)
    operator.server.tell(uid, "FailedCreate", "2026-01-01T00:00:05Z", "exceeded quota: gpus")
    operator.server.tell(uid, "SuccessfulCreate", "2026-01-01T00:00:10Z")
    operator.cache.put(first)
    operator.cache.put(second)
    told = []
    for step in ("whole", "gone", "remade"):
        if step == "gone":
            operator.remove("Pod", second["metadata"]["name"])
        if step == "remade":
            again = second | {"metadata": second["metadata"] | {"uid": "another"}, "status": {"phase": "Pending"}}
            operator.cache.put(operator.server.put(again))
        for _ in range(2):
            await operator.reconcile(key)
            told.append(operator.condition(key, "Degraded")["reason"])
    assert told == ["AsExpected"] * 6


async def test_an_object_that_is_made_anew_during_a_read_is_not_taken_for_the_old_one(operator, monkeypatch):
    key = operator.add("ArcticTraining")
    old = operator.server.objects.pop(tuple(key))

    async def get(*_):
        operator.cache.put(operator.server.put(old | {"metadata": old["metadata"] | {"uid": "another"}}))

    monkeypatch.setattr(operator.server, "get", get)
    await operator.reconciler.observer.look(key)
    assert operator.cache.custom(key)["metadata"]["uid"] == "another"


@pytest.mark.parametrize("restarts", [False, True], ids=["goes on", "has restarted"])
@pytest.mark.parametrize("kind", ["ArcticTraining", "ArcticInference"])
async def test_what_an_earlier_object_of_the_name_has_left_goes(operator, kind, restarts):
    key = operator.add(kind)
    await operator.reconcile(key)
    old = operator.server.objects.pop(tuple(key))
    operator.cache.remove(old)
    anew = {name: value for name, value in old.items() if name != "status"}
    operator.cache.put(operator.server.put(anew | {"metadata": old["metadata"] | {"uid": "another"}}))
    if restarts:
        operator.restart()
    for _ in range(2):
        await operator.reconcile(key)
    children = [m for m in operator.server.objects.values() if Label.UID in m["metadata"].get("labels", {})]
    assert {child["metadata"]["labels"][Label.UID] for child in children} == {"another"}
    owners = {reference["uid"] for child in children for reference in child["metadata"]["ownerReferences"]}
    assert owners == {"another"}
    assert operator.condition(key, "Degraded")["status"] == "False"


async def test_children_that_were_orphaned_on_purpose_stay(operator):
    key = operator.add("ArcticTraining")
    await operator.reconcile(key)
    (job,) = operator.server.of("Job")
    orphan = operator.server.put(job | {"metadata": job["metadata"] | {"ownerReferences": []}})
    operator.cache.put(orphan)
    old = operator.server.objects.pop(tuple(key))
    operator.cache.remove(old)
    operator.cache.put(operator.server.put(old | {"metadata": old["metadata"] | {"uid": "another"}}))
    await operator.reconcile(key)
    assert orphan in operator.server.of("Job")


@pytest.fixture
def lws_operator(build, operator_with):
    return operator_with(build.lws_settings)


async def test_a_cluster_without_leader_worker_sets_is_told_in_the_status_until_it_has_them(lws_operator, monkeypatch):
    key = lws_operator.add("ArcticInference")
    refused = ApiError(404, "", "404 page not found")

    async def create(manifest):
        raise NotServedError(NO_LEADER_WORKER_SETS) from refused

    with monkeypatch.context() as lacking:
        lacking.setattr(lws_operator.server, "create", create)
        await lws_operator.reconcile(key)
    degraded = lws_operator.condition(key, "Degraded")
    assert (degraded["status"], degraded["reason"]) == ("True", "NoLeaderWorkerSets")
    assert "install LeaderWorkerSet, or set inference.groups to StatefulSet" in degraded["message"]
    await lws_operator.reconcile(key)
    assert lws_operator.condition(key, "Degraded")["status"] == "False"
    assert len(lws_operator.server.of("LeaderWorkerSet")) == 1


async def test_why_a_leader_worker_set_has_no_pods_is_asked_of_the_sets_that_make_them(lws_operator, monkeypatch):
    monkeypatch.setattr(refusals, "REFUSED_SECONDS", 0.0)
    key = lws_operator.add("ArcticInference")
    await lws_operator.reconcile(key)
    (group,) = lws_operator.server.of("LeaderWorkerSet")
    name = group["metadata"]["name"]

    async def told():
        for _ in range(2):
            await lws_operator.reconcile(key)
        return lws_operator.condition(key, "Degraded")

    degraded = await told()
    assert (degraded["reason"], degraded["status"]) == ("PodsNotCreated", "True")
    assert "LeaderWorkerSet's controller has not made their StatefulSet: see that it runs" in degraded["message"]
    for maker in (name, f"{name}-0"):
        lws_operator.server.put({"kind": "StatefulSet", "metadata": {"name": maker, "namespace": "team", "uid": maker}})
    assert (await told())["status"] == "False"
    lws_operator.server.tell(f"{name}-0", "FailedCreate", "2026-01-01T00:00:00Z", "exceeded quota: gpus")
    degraded = await told()
    assert f"{name} can't make its pods: exceeded quota: gpus (change what refuses them" in degraded["message"]


@pytest.mark.parametrize("asked", ["StatefulSet", "LeaderWorkerSet"])
async def test_groups_of_both_kinds_are_found_after_a_restart_and_kept(build, operator_with, asked):
    other = {"StatefulSet": "LeaderWorkerSet", "LeaderWorkerSet": "StatefulSet"}[asked]
    operator = operator_with(build.lws_settings.model_copy(update={"inference_groups": other}))
    key = operator.add("ArcticInference")
    await operator.reconcile(key)
    operator.settings = build.lws_settings.model_copy(update={"inference_groups": asked})
    operator.restart()
    for _ in range(2):
        await operator.reconcile(key)
    assert [len(operator.server.of(kind)) for kind in (asked, other)] == [0, 1]
    operator.add("ArcticInference", generation=2, suspend=True)
    for _ in range(2):
        await operator.reconcile(key)
    assert operator.server.of(asked, other) == []


@pytest.fixture
def reads(operator, monkeypatch) -> list[str]:
    """The kinds of children that were listed."""
    kinds, real = [], operator.server.list_children

    async def list_children(kind, namespace, owner):
        kinds.append(kind)
        return await real(kind, namespace, owner)

    monkeypatch.setattr(operator.server, "list_children", list_children)
    return kinds


@pytest.mark.parametrize(("kind", "child"), [("ArcticTraining", "Job"), ("ArcticInference", "StatefulSet")])
async def test_a_new_object_gets_its_world_without_a_read_and_one_that_was_visited_after_one(
    operator, reads, kind, child
):
    await operator.reconcile(operator.add(kind))
    assert operator.server.of(child)
    assert reads == []
    operator.restart()
    await operator.reconcile(operator.add(kind, generation=2))
    assert child in reads


async def test_a_world_that_a_new_object_turns_out_to_have_is_found_by_its_name(operator, reads, monkeypatch):
    key = operator.add("ArcticTraining")
    await operator.reconcile(key)
    (made,) = operator.server.of("Job")
    # The one that made it died before it wrote the status, and the watch has not shown it yet.
    operator.server.objects[tuple(key)].pop("status")
    operator.restart()
    uid = made["metadata"]["labels"][Label.UID]
    for manifest in list(operator.cache.children(uid)):
        operator.cache.forget_children(uid, manifest["kind"])
    real = operator.server.create

    async def create(manifest):
        taken = (manifest["kind"], manifest["metadata"]["namespace"], manifest["metadata"]["name"])
        return None if taken in operator.server.objects else await real(manifest)

    monkeypatch.setattr(operator.server, "create", create)
    await operator.reconcile(key)
    assert reads == []
    assert operator.condition(key, "Degraded")["reason"] == "FailedCreate"
    for _ in range(2):
        await operator.reconcile(key)
    assert "Job" in reads
    assert operator.server.of("Job") == [made]
    assert (operator.status(key)["attempt"], operator.condition(key, "Degraded")["status"]) == (1, "False")


async def test_children_that_went_unseen_are_missed_by_a_list_of_all(operator, monkeypatch):
    key = operator.add("ArcticTraining")
    await operator.reconcile(key)
    (job,) = operator.server.of("Job")
    operator.server.objects.pop(("Job", "team", job["metadata"]["name"]))

    async def list_present(kind, namespace):
        return Listing(operator.server.of(kind), operator.server.version)

    monkeypatch.setattr(operator.server, "list_present", list_present)
    assert {key async for key in operator.reconciler.observer.find_missed(("",))} == {key}
    assert list(operator.cache.children(job["metadata"]["labels"][Label.UID], "Job")) == []
    assert {key async for key in operator.reconciler.observer.find_missed(("",))} == set()


async def test_what_one_list_lacks_is_told_though_the_list_of_another_kind_fails(operator, monkeypatch):
    key = operator.add("ArcticTraining")
    await operator.reconcile(key)
    (job,) = operator.server.of("Job")
    operator.server.objects.pop(("Job", "team", job["metadata"]["name"]))
    listed = []

    async def list_present(kind, namespace):
        if "Job" in listed:
            raise ApiError(500, "", "etcdserver: leader changed")
        listed.append(kind)
        return Listing(operator.server.of(kind), operator.server.version)

    monkeypatch.setattr(operator.server, "list_present", list_present)
    missed = operator.reconciler.observer.find_missed(("",))
    assert await anext(missed) == key
    assert [key async for key in missed] == []


async def test_what_some_lists_show_is_taken_in_though_others_are_refused(operator, monkeypatch):
    keys = [operator.add("ArcticTraining", name) for name in ("tiny", "other")]
    for key in keys:
        await operator.reconcile(key)
    for job in operator.server.of("Job"):
        operator.server.put(job | {"status": {"active": 2}})

    async def list_present(kind, namespace):
        if namespace == "forbidden" or kind in ("ArcticTraining", "Pod"):
            raise ApiError(403, "Forbidden", f"{kind} is forbidden")
        items = [{"metadata": each["metadata"]} for each in operator.server.of(kind)]
        return Listing(items, operator.server.version)

    get = operator.server.get

    async def get_another(kind, namespace, name):
        if name == "tiny":
            raise ApiError(500, "", "etcdserver: leader changed")
        return await get(kind, namespace, name)

    monkeypatch.setattr(operator.server, "list_present", list_present)
    monkeypatch.setattr(operator.server, "get", get_another)
    monkeypatch.setattr(observe, "BEHIND_SECONDS", 0)
    assert [key async for key in operator.reconciler.observer.find_missed(("forbidden", "team"))] == [keys[1]]


async def test_what_no_watch_has_shown_is_found_by_a_list_of_all(operator, monkeypatch):
    first = operator.add("ArcticTraining")
    await operator.reconcile(first)
    (job,) = operator.server.of("Job")
    operator.server.put(job | {"status": {"active": 2}})
    training = operator.server.objects[tuple(first)]
    metadata = {"name": "second", "namespace": "team", "uid": "another", "generation": 1}
    operator.server.put(training | {"metadata": metadata, "status": {}})

    async def list_present(kind, namespace):
        items = [{"metadata": each["metadata"]} for each in operator.server.of(kind)]
        return Listing(items, operator.server.version)

    monkeypatch.setattr(operator.server, "list_present", list_present)
    monkeypatch.setattr(observe, "BEHIND_SECONDS", 0)
    second = first._replace(name="second")
    assert {key async for key in operator.reconciler.observer.find_missed(("",))} == {first, second}
    (job,) = operator.cache.children(job["metadata"]["labels"][Label.UID], "Job")
    assert job["status"] == {"active": 2}
    assert operator.cache.custom(second) is not None
    assert {key async for key in operator.reconciler.observer.find_missed(("",))} == set()


async def test_a_start_is_told_in_two_writes_and_what_stays_between_two_steps_a_little_later(operator, monkeypatch):
    key, written = operator.add("ArcticTraining"), []

    async def apply_status(identity, status):
        written.append(status["state"])
        manifest = operator.server.objects[tuple(key)]
        return operator.server.put(manifest | {"status": status})["metadata"]

    monkeypatch.setattr(operator.server, "apply_status", apply_status)
    await operator.reconcile(key)
    for phase in ("Pending", "Running"):
        for pod in operator.pods(phase):
            operator.cache.put(pod)
        await operator.reconcile(key)
    assert written == ["Starting"]
    monkeypatch.setattr(reconcile, "SETTLE_SECONDS", 0)
    await operator.reconcile(key)
    assert len(written) == 2
    assert operator.condition(key, "PodsScheduled")["status"] == "True"


def gateway(operator, ready, **conditions):
    """Let the Deployment of the gateway say how many of its pods are ready, since the start of all clocks."""
    told = [
        {"type": kind, "status": status, "message": message, "lastTransitionTime": "2026-01-01T00:00:00Z"}
        for kind, (status, message) in conditions.items()
    ]
    [deployment] = operator.server.of("Deployment")
    status = {"observedGeneration": 1, "readyReplicas": ready, "conditions": told}
    operator.cache.put(operator.server.put(deployment | {"status": status}))


async def test_a_service_whose_gateway_has_no_pod_is_not_available_and_says_why(operator, heard):
    key, _ = heard
    refused = {"Available": ("False", "too few"), "ReplicaFailure": ("True", "exceeded quota: pods")}
    gateway(operator, 0, **refused)
    await operator.reconcile(key)
    degraded = operator.condition(key, "Degraded")
    assert (operator.status(key)["state"], degraded["reason"]) == ("NoGateway", "NoGateway")
    assert degraded["message"].endswith("nobody reaches the service: exceeded quota: pods")
    assert [operator.condition(key, kind)["status"] for kind in ("Ready", "Available")] == ["False", "False"]
    gateway(operator, 1, **refused)
    await operator.reconcile(key)
    assert (operator.status(key)["state"], operator.condition(key, "Available")["status"]) == ("Ready", "True")


async def test_what_keeps_the_gateways_pods_from_running_is_told_in_the_kubelets_words(operator, heard, build):
    key, _ = heard
    [deployment] = operator.server.of("Deployment")
    waiting = {"name": "haproxy", "state": {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}}
    metadata = deployment["metadata"] | {"name": "gateway-pod", "uid": "gateway-pod", "ownerReferences": [build.maker]}
    status = {"phase": "Pending", "containerStatuses": [waiting]}
    operator.cache.put(operator.server.put({"kind": "Pod", "metadata": metadata, "spec": {}, "status": status}))
    gateway(operator, 0, Available=("False", "too few"))
    await operator.reconcile(key)
    assert operator.condition(key, "Degraded")["message"].endswith(
        "nobody reaches the service: pod gateway-pod: container haproxy: no such image"
    )


@pytest.fixture
async def heard(operator, monkeypatch):
    """A service that scales by what its leader says, its key, and what has both leader and gateway heard."""
    key = operator.add("ArcticInference", autoscaling={"max": 4, "target": {"queuedPerReplica": 4}})
    await operator.reconcile(key)
    [group] = operator.server.of("StatefulSet")
    ready = {"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:10Z"}
    for pod in operator.pods("Running", group=group["metadata"]["name"]):
        operator.cache.put(operator.server.put(pod | {"status": pod["status"] | {"conditions": [ready]}}))

    def hear():
        told = InferenceObservation("", Phase.RUNNING, "", None, ready=True, tokens_per_second=7, loaded=1.0)
        live = Live(told, connected=True)
        monkeypatch.setattr(operator.reconciler._followers, "latest", lambda _: live)
        monkeypatch.setattr(operator.reconciler._gateways, "waiting", lambda _: 0)

    hear()
    await operator.reconcile(key)
    assert (operator.status(key)["state"], operator.status(key)["tokensPerSecond"]) == ("Ready", 7)
    assert operator.condition(key, "ScalingActive")["status"] == "True"
    return key, hear


async def test_an_operator_that_begins_anew_tells_nothing_else_of_a_service_until_it_may_have_heard_it(operator, heard):
    key, hear = heard
    before = operator.status(key)
    operator.restart()
    await operator.reconcile(key)
    assert operator.status(key) == before
    hear()
    await operator.reconcile(key)
    assert operator.status(key) == before
    assert told_events(operator) == []


async def test_an_operator_that_begins_anew_tells_nothing_else_of_a_service_that_is_scaled_to_zero(
    operator, monkeypatch
):
    scaling = {"min": 0, "max": 4, "target": {"queuedPerReplica": 4}, "scaleToZeroAfter": "5m"}
    key = operator.add("ArcticInference", autoscaling=scaling)
    operator.set_status(key, desiredReplicas=0, observedGeneration=1)
    monkeypatch.setattr(operator.reconciler._gateways, "waiting", lambda _: 0)
    for _ in range(2):
        await operator.reconcile(key)
    before = operator.status(key)
    assert (before["state"], operator.condition(key, "ScalingActive")["status"]) == ("Idle", "True")
    operator.restart()
    await operator.reconcile(key)
    monkeypatch.setattr(operator.reconciler._gateways, "waiting", lambda _: 0)
    await operator.reconcile(key)
    assert operator.status(key) == before
    assert told_events(operator) == []


async def test_a_service_that_is_not_heard_in_time_is_told_of(operator, heard, monkeypatch):
    key, _ = heard
    operator.restart()
    monkeypatch.setattr(reconcile, "SETTLE_SECONDS", 0)
    await operator.reconcile(key)
    assert operator.condition(key, "ScalingActive")["reason"] == "NoMeasurements"
    assert "tokensPerSecond" not in operator.status(key)


async def test_what_is_asked_of_a_service_that_is_not_heard_yet_is_told_at_once(operator, heard):
    key, _ = heard
    operator.restart()
    operator.add("ArcticInference", generation=2, suspend=True)
    await operator.reconcile(key)
    assert (operator.status(key)["state"], operator.status(key)["observedGeneration"]) == ("Suspending", 2)


async def test_while_several_worlds_are_started_a_first_status_waits_for_the_one_that_follows(operator, monkeypatch):
    keys, create = [operator.add("ArcticTraining", name) for name in ("tiny", "other")], operator.server.create

    async def create_slowly(manifest):
        await asyncio.sleep(0.01)
        return await create(manifest)

    monkeypatch.setattr(operator.server, "create", create_slowly)
    await asyncio.gather(*map(operator.reconcile, keys))
    assert len(operator.server.of("Job")) == 2
    assert [operator.status(key) for key in keys] == [{}, {}]
    for pod in operator.pods("Running"):
        operator.cache.put(pod)
    await operator.reconcile(keys[0])
    assert operator.status(keys[0]) == {}
    operator.remove("ArcticTraining", "other")
    for key in reversed(keys):
        await operator.reconcile(key)
    assert operator.status(keys[0])["attempt"] == 1


async def test_of_first_statuses_that_have_waited_few_are_written_while_worlds_are_started(operator, monkeypatch):
    keys, now = [operator.add("ArcticTraining", f"t{number}") for number in range(8)], [1000.0]
    monkeypatch.setattr(reconcile, "BEGIN_SECONDS", 12.0)
    monkeypatch.setattr(reconcile.time, "monotonic", lambda: now[0])
    operator.reconciler._firsts = Bucket(2, lambda: now[0])

    def told():
        return sum("state" in operator.status(key) for key in keys)

    async def visit_all():
        for key in keys[:6]:
            await operator.reconcile(key)

    operator.reconciler._beginning.add(keys[7])
    await visit_all()
    now[0] += 11
    await operator.reconcile(keys[6])
    await visit_all()
    assert told() == 0
    now[0] += 2
    await visit_all()
    assert told() == 2  # another one was started 2 s ago
    now[0] += 12
    await visit_all()
    assert told() == 6


async def test_an_attempt_that_no_status_tells_of_yet_is_not_made_again_when_its_job_is_deleted(operator):
    key = operator.add("ArcticTraining")
    operator.reconciler._beginning.add(key._replace(name="other"))
    await operator.reconcile(key)
    assert operator.status(key) == {}
    [job] = operator.server.of("Job")
    operator.remove("Job", job["metadata"]["name"])
    for _ in range(3):
        await operator.reconcile(key)
    assert operator.status(key)["attempts"][0]["number"] == 1
    assert [each["metadata"]["labels"][Label.ATTEMPT] for each in operator.server.of("Job")] == ["2"]


async def test_hung_leaders_hold_up_neither_each_other_nor_the_reconciling(operator, monkeypatch):
    key, told, hang = operator.add("ArcticInference"), [], asyncio.Event()
    groups = tuple(f"g{number}" for number in range(3 * commands.DRAINS_AT_ONCE))

    async def drain(followed):
        told.append(followed)
        await hang.wait()

    monkeypatch.setattr(operator.reconciler._followers, "drain", drain)
    monkeypatch.setattr(reconcile, "plan_inference", lambda *_: Plan(drain=groups))
    async with asyncio.timeout(20):
        for _ in range(2):
            await operator.reconcile(key)
            await asyncio.sleep(0)
        assert told == [(key, group) for group in groups[: commands.DRAINS_AT_ONCE]]
        hang.set()
        await asyncio.gather(*operator.reconciler._commands._tasks.values())
    assert told == [(key, group) for group in groups], "each once while it is being told"


@pytest.mark.parametrize("replicas", [0, 1, 3])
@pytest.mark.parametrize("kind", ["StatefulSet", "LeaderWorkerSet"])
async def test_a_group_that_somebody_has_scaled_is_scaled_back(build, operator_with, kind, replicas):
    operator = operator_with(build.settings if kind == "StatefulSet" else build.lws_settings)
    key = operator.add("ArcticInference")
    await operator.reconcile(key)
    [made] = operator.server.of(kind)
    due = made["spec"]["replicas"]
    operator.cache.put(operator.server.put(made | {"spec": made["spec"] | {"replicas": replicas}}))
    await operator.reconcile(key)
    [group] = operator.server.of(kind)
    assert (group["spec"]["replicas"], group["metadata"]["uid"]) == (due, made["metadata"]["uid"])
    assert operator.condition(key, "Degraded")["status"] == "False"


async def test_what_pods_mount_is_looked_at_now_and_then_while_they_wait_for_it(operator, monkeypatch):
    key, looked = operator.add("ArcticTraining"), []
    await operator.reconcile(key)
    real = operator.server.get

    async def get(kind, namespace, name):
        looked.append(name)
        return await real(kind, namespace, name)

    monkeypatch.setattr(operator.server, "get", get)
    for pod in operator.pods("Pending"):
        operator.cache.put(pod)
    await operator.reconcile(key)
    assert looked == [], "it has just been made"
    assert await operator.reconciler._reconcile(key) <= reconcile.SEE_TO_EVERY
    monkeypatch.setattr(reconcile, "SEE_TO_EVERY", 0)
    await operator.reconcile(key)
    assert looked == ["tiny-0a1b2-tls"]


@pytest.mark.parametrize("kind", ["ArcticTraining", "ArcticInference"])
async def test_an_operator_that_ends_after_each_write_comes_to_its_end(operator, monkeypatch, kind):
    """Each life of it makes one write: what one has made, the next takes as it is."""
    key, real, lives = operator.add(kind), operator.server.put, 0

    class Ended(BaseException):
        pass

    def put(manifest):
        before = operator.server.objects.get((manifest["kind"], "team", manifest["metadata"]["name"]), {})
        written = real(manifest)
        if any(written.get(part) != before.get(part) for part in ("spec", "data", "status")):
            raise Ended
        return written

    await operator.reconciler._keys.client()  # the authority is there
    monkeypatch.setattr(operator.server, "put", put)
    while lives < 50:
        try:
            await operator.reconcile(key)
            break
        except Ended:
            lives += 1
            operator.restart()
            for unwatched in ("Secret", "ConfigMap"):
                operator.cache.forget_children(operator.server.objects[tuple(key)]["metadata"]["uid"], unwatched)
    assert operator.status(key)["observedGeneration"] == 1
    assert lives < 20
