"""Leader election among candidates in this process, by a real Lease."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable

import pytest
from objects import PATIENCE, until_all_ready

from arctic_cluster import Cluster
from arctic_operator.cluster import Cluster as Calls
from arctic_operator.install import Install
from arctic_operator.lease import Lease
from arctic_operator.settings import Settings

NAME = "arctic-operator"
LASTS, RENEWED = 6, 0.5
"""Seconds: between two renewals a busy machine may take its time."""


class Candidate:
    """One operator that wants to lead."""

    def __init__(self, name: str, calls: Calls, namespace: str, leaders: list[str]) -> None:
        settings = Settings(
            namespace=namespace,
            pod_name=name,
            worker_image="worker",
            gateway_image="gateway",
            lease_duration=f"{LASTS}s",
            lease_renew=f"{RENEWED}s",
        )
        self.name, self.leaders = name, leaders
        self.lease = Lease(calls, settings, Install(calls, settings))
        self.leading = asyncio.Event()
        self.task = asyncio.create_task(self.lease.lead(self._work))

    async def _work(self) -> None:
        assert self.leaders == [], f"{self.name} leads beside {self.leaders}"
        self.leaders.append(self.name)
        self.leading.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.leading.clear()
            self.leaders.remove(self.name)

    async def end(self) -> None:
        """End as a process does that is killed: without a word to the others."""
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


MakeCandidate = Callable[[str], Candidate]


@pytest.fixture
async def candidate(calls: Calls, namespace: str) -> AsyncIterator[MakeCandidate]:
    """Makes candidates; no two may lead at once."""
    leaders: list[str] = []
    made: list[Candidate] = []

    def make(name: str) -> Candidate:
        made.append(Candidate(name, calls, namespace, leaders))
        return made[-1]

    yield make
    for one in made:
        failed = one.task.done() and not one.task.cancelled() and one.task.exception()
        assert not failed, failed
        await one.end()


async def leads(one: Candidate) -> None:
    await asyncio.wait_for(one.leading.wait(), PATIENCE)


async def stops(one: Candidate) -> None:
    while one.leading.is_set():  # noqa: ASYNC110 - cleared by its work's end
        await asyncio.sleep(0.05)


async def until_renewed(calls: Calls, namespace: str) -> None:
    """Return when the Lease has been renewed for longer than it lasts without that."""
    seen: set[str] = set()
    async with asyncio.timeout(PATIENCE):
        while len(seen) <= LASTS / RENEWED + 1:
            lease = await calls.get("Lease", namespace, NAME)
            assert lease is not None
            seen.add(lease["spec"]["renewTime"])
            await asyncio.sleep(RENEWED / 4)


async def test_one_leads_and_the_other_follows_it_at_its_release(
    candidate: MakeCandidate, calls: Calls, namespace: str
) -> None:
    first = candidate("first")
    await leads(first)
    second = candidate("second")
    await until_renewed(calls, namespace)
    assert first.leading.is_set()
    assert not second.leading.is_set(), "the leader renews"
    await first.end()
    await first.lease.release()
    await leads(second)


async def test_a_leader_that_falls_silent_is_followed_when_its_time_is_over(candidate: MakeCandidate) -> None:
    first = candidate("first")
    await leads(first)
    second = candidate("second")
    await first.end()
    await leads(second)


async def test_a_leader_whose_lease_was_taken_ends_its_work_and_leads_again_after_the_other(
    candidate: MakeCandidate, cluster: Cluster, namespace: str
) -> None:
    first = candidate("first")
    await leads(first)
    patch = json.dumps({"spec": {"holderIdentity": "another"}})
    command = ("patch", "lease", NAME, "-n", namespace, "--type=merge", "-p", patch)
    await asyncio.to_thread(cluster.kubectl, *command)
    await stops(first)
    await leads(first)


async def test_a_leader_that_can_not_reach_the_api_server_ends_its_work(
    candidate: MakeCandidate, cluster: Cluster
) -> None:
    first = candidate("first")
    await leads(first)
    await asyncio.to_thread(cluster.stop, "kube-apiserver")
    try:
        await stops(first)
    finally:
        await asyncio.to_thread(cluster.start, "kube-apiserver")
    await leads(first)
    await asyncio.to_thread(until_all_ready, cluster)  # other tests shall find the nodes as they were
