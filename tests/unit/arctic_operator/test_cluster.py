"""What is sent to the API server."""

import json
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from kubernetes.aio.client import Configuration

from arctic_operator.cluster import (
    APPLY,
    CHILD_KINDS,
    CUSTOM_KINDS,
    MERGE,
    ApiError,
    Cluster,
    NotServedError,
    OwnedByAnotherError,
    client_of,
    read_json,
    yaml_text,
)
from arctic_operator.observed import Identity
from arctic_operator.plan.actions import Mark
from arctic_operator.plan.words import NO_KUEUE

TEXTS = st.text(st.characters(exclude_categories=["Cs"]))


@given(st.dictionaries(st.text("abc", max_size=9), TEXTS | st.integers() | st.booleans()))
def test_an_applied_object_reads_the_same_as_yaml(body: dict[str, object]) -> None:
    assert yaml.safe_load(yaml_text(body)) == body


def test_a_picture_in_a_workers_last_words_is_no_pair_of_surrogates() -> None:
    text = yaml_text({"message": "GLHF! \U0001f3d6 and \\\\ud83c"})
    assert "\\U0001f3d6" in text
    assert yaml.safe_load(text) == {"message": "GLHF! \U0001f3d6 and \\\\ud83c"}


def test_half_a_character_is_replaced() -> None:
    assert yaml.safe_load(yaml_text({"message": "\ud83c"})) == {"message": "\ufffd"}
    assert json.loads(yaml_text({"message": "plain"})) == {"message": "plain"}


class Events(Cluster):
    """An API server that has events of one object."""

    def __init__(self, *events: dict[str, object]) -> None:
        self.events, self.asked = events, {}

    async def request(self, method, path, *, query, **_):
        self.asked = {"path": path, **query}
        return {"items": list(self.events)}


def said(reason: str, message: str, when: str) -> dict[str, object]:
    made = {"creationTimestamp": "2026-01-01T00:00:00Z"}
    return {"metadata": made, "reason": reason, "message": message, "lastTimestamp": when}


async def test_the_newest_word_on_pods_that_are_refused_is_taken() -> None:
    server = Events(
        said("FailedCreate", "first", "2026-01-01T00:00:10Z"),
        said("FailedCreate", "last", "") | {"eventTime": "2026-01-01T00:01:00.000000Z"},
        said("FailedCreate", "second", "2026-01-01T00:00:20Z"),
        said("SomethingElse", "of something else", "2026-01-01T00:02:00Z"),
    )
    assert await server.refusal("team", "job-1") == "last"
    assert server.asked == {"path": "/api/v1/namespaces/team/events", "fieldSelector": "involvedObject.uid=job-1"}
    assert await Events().refusal("team", "job-1") == ""


@pytest.mark.parametrize(("made", "told"), [("09", "no quota"), ("10", ""), ("11", "")])
async def test_a_refusal_is_over_when_a_pod_was_made_after_it(made: str, told: str) -> None:
    server = Events(
        said("SuccessfulCreate", "made", f"2026-01-01T00:00:{made}Z"),
        said("FailedCreate", "no quota", "2026-01-01T00:00:10Z"),
    )
    assert await server.refusal("team", "job-1") == told


class Answers(Cluster):
    """An API server that refuses everything in the same way."""

    def __init__(self, code: int, reason: str) -> None:
        self.error = ApiError(code, reason, "404 page not found")

    async def request(self, *_, **__):
        raise self.error


GROUP = {"kind": "LeaderWorkerSet", "metadata": {"namespace": "team", "name": "tiny-g0"}}


async def test_a_kind_that_is_not_served_is_told_with_what_to_do_and_has_no_objects() -> None:
    server = Answers(404, "")
    with pytest.raises(NotServedError, match=r"install LeaderWorkerSet, or set inference\.groups to StatefulSet"):
        await server.create(GROUP)
    listing = await server.list_children("LeaderWorkerSet", "team", "owner")
    assert (listing.items, listing.version) == ([], 0), "nothing that was seen is older than that"
    assert not await server.serves("LeaderWorkerSet")


async def test_an_object_is_gone_only_where_the_api_server_says_so_of_it() -> None:
    """One of ours that counts as gone does so for ever, and nobody would see to it any more."""
    assert await Answers(404, "NotFound").get("ArcticTraining", "team", "tiny") is None
    with pytest.raises(ApiError):
        await Answers(404, "").get("ArcticTraining", "team", "tiny")


async def test_a_namespace_that_is_gone_is_no_kind_that_is_not_served() -> None:
    server = Answers(404, "NotFound")
    for call in (server.create(GROUP), server.list_children("LeaderWorkerSet", "team", "owner")):
        with pytest.raises(ApiError):
            await call


class Lists(Cluster):
    """An API server that has none of whatever it is asked for, as it says so."""

    def __init__(self) -> None:
        self.asked = ""

    async def request(self, _, path, *, query, **__):
        self.asked = f"{path}?{query['labelSelector']}"
        items = None if "limit" in query else []  # of metadata alone it has no list then
        return {"items": items, "metadata": {"resourceVersion": "7"}}


@pytest.mark.parametrize("kind", [*CUSTOM_KINDS, *CHILD_KINDS])
async def test_a_kind_without_objects_has_an_empty_list(kind: str) -> None:
    server = Lists()
    for listing in (await server.list_present(kind, ""), await server.list_children(kind, "team", "u1")):
        assert (listing.items, listing.version) == ([], 7)


async def test_of_what_there_is_no_more_is_kept_than_says_what_it_is_from_all_pages() -> None:
    identity = {"namespace": "team", "uid": "u", "resourceVersion": "3", "labels": {"arctic.dev/uid": "u1"}}
    notes = {"managedFields": [{"manager": "m"}], "annotations": {"note": "x"}, "generation": 1}
    pages = iter(
        {"items": [{"metadata": identity | notes | {"name": name}}], "metadata": {"resourceVersion": "7", **left}}
        for name, left in (("a", {"continue": "more"}), ("b", {}))
    )

    class Pages(Cluster):
        def __init__(self) -> None:
            pass

        async def request(self, *_, **__):
            return next(pages)

    listing = await Pages().list_present("Pod", "")
    assert listing == ([{"metadata": identity | {"name": name}} for name in "ab"], 7)


@pytest.mark.parametrize(
    ("kind", "selector"),
    [
        ("ArcticTraining", "arctic.dev/uid=u1"),
        ("Pod", "arctic.dev/managed=true,arctic.dev/uid=u1"),
        ("ControllerRevision", "arctic.dev/managed=true,arctic.dev/role=history,arctic.dev/uid=u1"),
    ],
)
async def test_children_are_selected_by_their_owner(kind: str, selector: str) -> None:
    server = Lists()
    await server.list_children(kind, "team", "u1")
    assert server.asked.partition("?")[2] == selector


@pytest.mark.parametrize(
    ("conditions", "told"),
    [
        ([], ""),
        ([{"type": "QuotaReserved", "status": "False", "message": "insufficient quota"}], "insufficient quota"),
        (
            [{"type": "QuotaReserved", "status": "True"}, {"type": "Admitted", "status": "False", "message": "checks"}],
            "checks",
        ),
        ([{"type": "QuotaReserved", "status": "True"}, {"type": "Admitted", "status": "True", "message": "yes"}], ""),
    ],
)
async def test_why_a_queue_waits_is_its_workloads_word(conditions, told) -> None:
    server = Events({"status": {"conditions": conditions}})
    assert await server.admission("team", "u1") == told
    assert server.asked["path"] == "/apis/kueue.x-k8s.io/v1beta1/namespaces/team/workloads"
    assert server.asked["labelSelector"] == "kueue.x-k8s.io/job-uid=u1"


async def test_a_cluster_without_kueue_is_told() -> None:
    class Lacking(Cluster):
        def __init__(self) -> None:
            """It has no client."""

        async def request(self, *_, **__):
            raise ApiError(404, "", "404 page not found")

    assert await Lacking().admission("team", "u1") == NO_KUEUE


class Store(Cluster):
    """An API server that keeps objects, and remembers by which calls it was asked."""

    def __init__(self, *objects: dict[str, Any]) -> None:
        self.objects = {manifest["metadata"]["name"]: manifest for manifest in objects}
        self.calls: list[str] = []

    async def request(self, method, path, *, body=None, content="", **_):
        name = path.rpartition("/")[2]
        self.calls.append({MERGE: "merge", APPLY: "apply"}.get(content, method))
        if method == "POST":
            if body["metadata"]["name"] in self.objects:
                raise ApiError(409, "AlreadyExists", "taken")
            self.objects[body["metadata"]["name"]] = body
            return {"metadata": body["metadata"] | {"resourceVersion": "1"}}
        if name not in self.objects:
            raise ApiError(404, "NotFound", "none")
        if body:
            self.objects[name] = self.objects[name] | {"metadata": self.objects[name]["metadata"] | body["metadata"]}
        return self.objects[name]


def child(owner: str = "u1", **more: Any) -> dict[str, Any]:
    metadata = {"name": "tiny", "namespace": "team", "ownerReferences": [{"uid": owner}]}
    return {"apiVersion": "v1", "kind": "Service", "metadata": metadata | more, "spec": {"ports": [1]}}


async def test_a_child_that_is_new_is_created_without_a_look() -> None:
    server = Store()
    made = await server.apply(child(), "u1", None)
    assert server.calls == ["POST"]
    assert (made["spec"], made["metadata"]["resourceVersion"]) == (child()["spec"], "1")


async def test_a_child_whose_name_is_taken_is_left_alone_unless_it_is_ones_own() -> None:
    server = Store(child(uid="s1"))
    assert (await server.apply(child(), "u1", None))["metadata"]["uid"] == "s1"
    assert server.calls == ["POST", "GET"]
    server = Store(child("somebody", uid="s1"))
    with pytest.raises(OwnedByAnotherError):
        await server.apply(child(), "u1", None)
    assert server.calls == ["POST", "GET"]


async def test_what_was_created_counts_as_applied_before_it_is_applied_again() -> None:
    others = {"manager": "kubectl", "operation": "Update", "fieldsV1": {}}
    created = {"manager": "arctic-operator", "operation": "Update", "fieldsV1": {"f:spec": {}}}
    known = child(uid="s1", resourceVersion="7", managedFields=[others, created])
    server = Store(known)
    await server.apply(child() | {"spec": {"ports": [2]}}, "u1", known)
    assert server.calls == ["GET", "merge", "apply"]
    fields = server.objects["tiny"]["metadata"]["managedFields"]
    assert fields == [others, created | {"operation": "Apply"}]
    server.calls.clear()
    await server.apply(child() | {"spec": {"ports": [3]}}, "u1", known)
    assert server.calls == ["GET", "apply"]


class Refuses(Cluster):
    """An API server that refuses everything with a Status of its own."""

    def __init__(self, code: int, **status: Any) -> None:
        super().__init__(None)
        self.status, self.headers = code, {}
        self.text = json.dumps({"kind": "Status", "code": code} | status).encode()

    async def _call(self, *_, **__):
        return self

    async def read(self):
        return self.text


def invalid(field: str) -> Refuses:
    cause = {"reason": "FieldValueInvalid", "message": "field is immutable", "field": field}
    return Refuses(422, reason="Invalid", message=f"{field}: field is immutable", details={"causes": [cause]})


async def test_a_write_to_an_object_whose_name_another_has_now_is_a_conflict() -> None:
    """The API server says of a patch with an earlier uid that it is invalid: a group's pods keep their names."""
    server, mark = invalid("metadata.uid"), Mark("Pod", "team", "tiny-0", "u1", labels={"a": "b"})
    assert await server.mark(mark) is None
    with pytest.raises(ApiError) as refused:
        await server.apply_status(Identity("ArcticTraining", "team", "tiny", "u1"), {})
    assert refused.value.code == 409
    with pytest.raises(ApiError) as refused:
        await invalid("metadata.labels").mark(mark)
    assert refused.value.code == 422


@pytest.mark.parametrize(
    ("code", "text", "told"),
    [
        (200, b"<html>maintenance</html>", 0),
        (200, b'"maintenance"', 0),
        (404, b"default backend - 404", 404),
        (502, b"null", 502),
        (503, b"[]", 503),
        (503, b'{"code": 14, "message": "away", "details": [{"reason": "x"}]}', 503),
        (503, b"no healthy upstream", 503),
    ],
)
async def test_what_a_proxy_answers_in_the_api_servers_stead_is_its_refusal(code: int, text: bytes, told: int) -> None:
    """Else a fault of ours: one ends the watches, and with them the process."""
    server = Refuses(code)
    server.text = text
    with pytest.raises(ApiError) as refused:
        await server.get("Pod", "team", "tiny-0")
    assert (refused.value.code, refused.value.reason == "NotFound") == (told, False)


def test_the_environments_proxy_is_found_once(monkeypatch) -> None:
    monkeypatch.setenv("https_proxy", "http://proxy:3128")
    monkeypatch.setenv("no_proxy", "10.0.0.1")
    for host, proxy in (("https://api.example", "http://proxy:3128"), ("https://10.0.0.1", None)):
        configuration = Configuration(host=host)
        client_of(configuration)
        assert configuration.proxy == proxy


def test_what_objects_have_in_common_is_kept_once_however_deep_they_are() -> None:
    text = json.dumps({"phase": "Running", "conditions": [{"type": "Ready", "message": "m" * 99}]}).encode()
    one, other = read_json(text), read_json(text)
    assert one == other == json.loads(text)
    assert one["phase"] is other["phase"]
    assert one["conditions"][0]["type"] is other["conditions"][0]["type"]
    deep = b'{"a":' * 300 + b"1" + b"}" * 300
    assert read_json(deep) == json.loads(deep)
