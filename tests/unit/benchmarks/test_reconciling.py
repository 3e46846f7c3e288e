"""What can be tried of the comparison of operators without a control plane."""

import asyncio
import base64
from datetime import UTC, datetime
from typing import Any

from arctic_api.verdict import verdict
from arctic_api.world import Label, Ports
from arctic_operator.certificates import Authority, client_tls, server_name, server_secret
from arctic_operator.control import Followers
from arctic_operator.live import Phase
from arctic_workers.control.ports import free_ports
from benchmarks.reconciling import fleet, objects
from benchmarks.reconciling.fleet import Fleet
from benchmarks.reconciling.objects import NAMESPACE, Children, address_of, arctic_training, name_of
from benchmarks.reconciling.plane import halves
from benchmarks.reconciling.race import quantile


def stored(index: int) -> dict[str, Any]:
    """A training as the API server returns it."""
    manifest = arctic_training(index)
    stamp = {"uid": f"0a1b2c3d-{index}", "generation": 1, "creationTimestamp": "2026-01-01T00:00:00Z"}
    return manifest | {"metadata": manifest["metadata"] | stamp}


def test_the_trainings_that_are_made_are_accepted_and_apart_from_each_other() -> None:
    assert verdict(stored(0)) == []
    names = {name_of(index) for index in range(3000)}
    addresses = {address_of(name) for name in names}
    ours, _ = halves(objects.PLAN)
    assert len(names) == len(addresses) == 3000
    assert all(address in {str(each) for each in ours} for address in sorted(addresses)[:3])


def test_the_limit_makes_all_kinds_of_children_owned_and_named_as_the_operators() -> None:
    made = stored(7)
    children = Children().of(made)
    assert [child["kind"] for child in children] == ["Secret", "Service", "NetworkPolicy", "Job"]
    assert {child["metadata"]["ownerReferences"][0]["uid"] for child in children} == {made["metadata"]["uid"]}
    assert children[-1]["metadata"]["name"] == "t-00007-0a1b2-a1"
    assert children[-1]["spec"]["completions"] == 2


async def test_the_fleet_is_followed_as_a_worker_is(monkeypatch) -> None:
    ports = Ports(control=free_ports(1)[0])
    monkeypatch.setattr(fleet, "address_of", lambda name: "127.0.0.1")
    monkeypatch.setattr(fleet, "Ports", lambda: ports)
    now = datetime.now(UTC)
    authority, name = Authority.create(now), name_of(1)
    data = {
        file: base64.b64encode(text).decode() for file, text in server_secret(authority, name, NAMESPACE, now).items()
    }
    labels = {Label.UID.value: "0a1b2c3d-1", Label.NAME.value: name}
    secret = {"metadata": {"name": f"{name}-tls", "namespace": NAMESPACE, "labels": labels}, "data": data}
    played = Fleet()
    await played.take(secret)
    heard = asyncio.Event()
    followers = Followers(lambda key: heard.set())
    tls = client_tls(authority, now)
    followers.follow("one", f"127.0.0.1:{ports.control}", server_name(name, NAMESPACE), tls)
    async with asyncio.timeout(60):
        await heard.wait()
    live = followers.latest("one")
    await followers.close()
    assert live is not None
    assert live.error == ""
    assert live.observation is not None
    assert (live.observation.uid, live.observation.phase) == ("0a1b2c3d-1", Phase.RUNNING)


def test_a_quantile_is_a_value_that_was_seen() -> None:
    assert quantile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert quantile([1.0] * 99 + [9.0], 0.99) == 9.0
