"""What is sent to the API server of an event."""

from typing import Any

import pytest

from arctic_operator.cluster import Cluster
from arctic_operator.events import Events
from arctic_operator.observed import Identity
from arctic_operator.plan.actions import Event

IDENTITY = Identity("ArcticTraining", "team", "tiny", "u1")


class Server(Cluster):
    """An API server that keeps what is created, until it forgets it."""

    def __init__(self) -> None:
        self.made: list[dict[str, Any]] = []

    async def create(self, manifest):
        if any(each["metadata"]["name"] == manifest["metadata"]["name"] for each in self.made):
            return None
        self.made.append(manifest)
        return manifest

    async def request(self, method, path, *, body=None, query=None, **_):
        names = {each["metadata"]["name"]: each for each in self.made}
        if method == "GET":
            assert path == "/api/v1/namespaces/team/events"
            named = query["fieldSelector"].removeprefix("metadata.name=")
            return {"items": [names[named]] if named in names else []}
        assert (method, path) == ("PATCH", f"/apis/events.k8s.io/v1/namespaces/team/events/{path.rpartition('/')[2]}")
        names[path.rpartition("/")[2]].update(body)
        return {}


@pytest.mark.parametrize("letter", ["x", "ß", "漢", "🏖"])
async def test_a_note_is_as_long_as_the_api_server_takes_it_which_counts_bytes(build, letter) -> None:
    server = Server()
    await Events(server, "pod")._tell(IDENTITY, Event("Warning", "Because", "a" + letter * 2000), build.start)
    [made] = server.made
    assert 1020 < len(made["note"].encode()) <= 1024
    assert set(made["note"]) == {"a", letter}


async def test_what_happens_again_counts_up_one_event_whoever_has_told_it_before(build) -> None:
    server, event = Server(), Event("Normal", "NotReady", "1 of 2 groups are ready")
    for seconds in range(3):  # each time by an operator that has just begun
        await Events(server, "pod")._tell(IDENTITY, event, build.seconds(seconds))
    [made] = server.made
    assert made["eventTime"] == "2026-01-01T00:00:00.000000Z"
    assert made["series"] == {"count": 3, "lastObservedTime": "2026-01-01T00:00:02.000000Z"}


async def test_what_happens_again_when_the_cluster_has_forgotten_it_is_told_as_the_first_time(build) -> None:
    server, event = Server(), Event("Normal", "NotReady", "1 of 2 groups are ready")
    events = Events(server, "pod")
    for seconds in range(3):
        await events._tell(IDENTITY, event, build.seconds(seconds))
    server.made.clear()
    await events._tell(IDENTITY, event, build.seconds(9))
    await events._tell(IDENTITY, event, build.seconds(10))
    [made] = server.made
    assert made["series"] == {"count": 2, "lastObservedTime": "2026-01-01T00:00:10.000000Z"}
