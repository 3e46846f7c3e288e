"""What is sent to the API server."""

import json

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from arctic_operator.cluster import ApiError, Cluster, NotServedError, yaml_text
from arctic_operator.plan.words import NO_KUEUE

TEXTS = st.text(st.characters(exclude_categories=["Cs"]))


@settings(deadline=None)
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


async def test_a_namespace_that_is_gone_is_no_kind_that_is_not_served() -> None:
    server = Answers(404, "NotFound")
    for call in (server.create(GROUP), server.list_children("LeaderWorkerSet", "team", "owner")):
        with pytest.raises(ApiError):
            await call


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
