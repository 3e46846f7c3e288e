"""What is sent to the API server of an event."""

from typing import Any

import pytest

from arctic_operator.cluster import Cluster
from arctic_operator.events import Events
from arctic_operator.observed import Identity
from arctic_operator.plan.actions import Event

IDENTITY = Identity("ArcticTraining", "team", "tiny", "u1")


class Server(Cluster):
    """An API server that keeps what is created."""

    def __init__(self) -> None:
        self.made: list[dict[str, Any]] = []

    async def create(self, manifest):
        self.made.append(manifest)
        return manifest


@pytest.mark.parametrize("letter", ["x", "ß", "漢", "🏖"])
async def test_a_note_is_as_long_as_the_api_server_takes_it_which_counts_bytes(build, letter) -> None:
    server = Server()
    await Events(server, "pod")._tell(IDENTITY, Event("Warning", "Because", "a" + letter * 2000), build.start)
    [made] = server.made
    assert 1020 < len(made["note"].encode()) <= 1024
    assert set(made["note"]) == {"a", letter}
