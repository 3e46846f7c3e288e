"""Leading, on an API server in memory; who leads when is tried in tests/cluster."""

import asyncio
import copy
from datetime import UTC, datetime, timedelta

import pytest

from arctic_operator import lease as module
from arctic_operator.cluster import ApiError
from arctic_operator.install import Install
from arctic_operator.lease import Lease


class Slow:
    """An API server that keeps a renewal waiting until its test lets it go."""

    def __init__(self) -> None:
        self.asked, self.answer = asyncio.Event(), asyncio.Event()

    async def get(self, *_):
        return None

    async def create(self, manifest):
        if self.asked.is_set():
            await self.answer.wait()
        self.asked.set()
        return manifest

    async def replace(self, manifest):
        return manifest


@pytest.mark.parametrize("steps", range(8))
async def test_leading_ends_when_told_whatever_else_happens_at_that_moment(build, steps):
    server = Slow()
    settings = build.settings.model_copy(update={"lease_renew": "0.01s"})
    lease = Lease(server, settings, Install(server, settings))
    leading = asyncio.create_task(lease.lead(asyncio.Event().wait))
    await server.asked.wait()
    await asyncio.sleep(0.05)
    server.answer.set()
    for _ in range(steps):
        await asyncio.sleep(0)
    leading.cancel()
    done, _ = await asyncio.wait([leading], timeout=5)
    assert leading in done
    assert leading.cancelled()


class Kept:
    """An API server that keeps one Lease, and counts how often it was written."""

    def __init__(self) -> None:
        self.lease, self.written, self.conflicts = None, 0, 0

    async def get(self, kind, *_):
        return copy.deepcopy(self.lease) if kind == "Lease" else None

    async def create(self, manifest):
        return None if self.lease else await self.replace(manifest)

    async def replace(self, manifest):
        if self.conflicts:
            self.conflicts -= 1
            raise ApiError(409, "Conflict", "the object has been modified")
        self.lease, self.written = copy.deepcopy(manifest), self.written + 1
        return manifest

    async def after(self, writes):
        end = self.written + writes
        while self.written < end:  # noqa: ASYNC110 - counted by the writes
            await asyncio.sleep(0.01)


async def test_a_lease_that_somebody_else_has_written_to_is_renewed_all_the_same(build):
    """Whoever puts a label on it takes no term away; the API server refuses what was read before."""
    settings = build.settings.model_copy(update={"lease_duration": "1h", "lease_renew": "0.02s"})
    server, terms = Kept(), 0
    lease = Lease(server, settings, Install(server, settings))

    async def work():
        nonlocal terms
        terms += 1
        await asyncio.Event().wait()

    leading = asyncio.create_task(lease.lead(work))
    async with asyncio.timeout(20):
        await server.after(writes=2)
        server.conflicts = 2
        await server.after(writes=5)
    assert (server.conflicts, terms, lease.leading) == (0, 1, True)
    leading.cancel()
    await asyncio.wait([leading])


async def test_a_machine_whose_clock_is_moved_by_an_hour_neither_loses_the_lease_nor_holds_it_for_ever(
    build, monkeypatch
):
    moved, waited = timedelta(0), 0.0

    class Clock(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.now(tz) + moved

    monkeypatch.setattr(module, "datetime", Clock)
    monkeypatch.setattr(module, "_now", lambda: asyncio.get_running_loop().time() + waited)
    settings = build.settings.model_copy(update={"lease_duration": "1h", "lease_renew": "0.02s"})
    server, leaders, terms = Kept(), [], {}

    def candidate(name):
        mine = settings.model_copy(update={"pod_name": name})
        lease, terms[name] = Lease(server, mine, Install(server, mine)), asyncio.Event()

        async def work():
            leaders.append(name)
            terms[name].set()
            try:
                await asyncio.Event().wait()
            finally:
                leaders.remove(name)

        return asyncio.create_task(lease.lead(work))

    async with asyncio.timeout(20):
        first = candidate("first")
        await terms["first"].wait()
        second = candidate("second")
        for hours in (1, -1, 0, 1):
            moved = timedelta(hours=hours)
            await server.after(writes=5)
            assert leaders == ["first"]
        first.cancel()  # without a word, and an hour ahead
        await asyncio.wait([first])
        moved = timedelta(hours=-1)
        assert datetime.fromisoformat(server.lease["spec"]["renewTime"]) > datetime.now(UTC) + timedelta(minutes=59)
        waited = 3600.0
        await terms["second"].wait()
        assert leaders == ["second"]
        second.cancel()
        await asyncio.wait([second])


class Unheard(Kept):
    """One that refuses what was read before, and whose answers may get lost."""

    lost = False

    async def replace(self, manifest):
        known = self.lease["metadata"]["resourceVersion"] if self.lease else None
        if manifest["metadata"].get("resourceVersion") != known:
            raise ApiError(409, "Conflict", "the object has been modified")
        version = {"resourceVersion": str(self.written + 1)}
        answer = await super().replace(manifest | {"metadata": manifest["metadata"] | version})
        if self.lost:
            raise ApiError(0, "Unreachable", "no answer came")
        return answer


async def test_a_lease_is_given_back_though_the_answer_to_its_last_renewal_got_lost(build):
    server, settings = Unheard(), build.settings
    lease = Lease(server, settings, Install(server, settings))
    assert await lease._try()
    server.lost = True
    assert not await lease._try()
    server.lost = False
    await lease.release()
    assert server.lease["spec"]["holderIdentity"] == ""
    other = Lease(server, settings.model_copy(update={"pod_name": "other"}), Install(server, settings))
    assert await other._try()
    lease._held = server.lease
    await lease.release()
    assert server.lease["spec"]["holderIdentity"] == "other"


async def test_a_leader_knows_whether_anybody_has_led_since_it_did(build, monkeypatch):
    """A machine that is too busy to renew loses the Lease, to another or to nobody."""
    late = 0.0
    monkeypatch.setattr(module, "_now", lambda: asyncio.get_running_loop().time() + late)
    settings = build.settings.model_copy(update={"lease_duration": "1h", "lease_renew": "0.02s"})
    server, terms = Kept(), []

    def lead(name):
        one = settings.model_copy(update={"pod_name": name})
        lease = Lease(server, one, Install(server, one))

        async def work():
            terms.append((name, lease.again))
            await asyncio.Event().wait()

        return asyncio.create_task(lease.lead(work))

    async def until(count):
        while len(terms) < count:  # noqa: ASYNC110 - appended by the work
            await asyncio.sleep(0.01)

    first = lead("first")
    async with asyncio.timeout(60):
        await until(1)
        late += 3000  # it has not been renewed for so long
        await until(2)
        held, renewed = copy.deepcopy(server.lease), server.lease["spec"]["leaseTransitions"]
        server.lease = held | {"spec": held["spec"] | {"holderIdentity": "", "leaseTransitions": renewed + 1}}
        server.conflicts = 1
        late += 3000  # another has led, and given it back
        await until(3)
    first.cancel()
    await asyncio.wait([first])
    assert terms == [("first", False), ("first", True), ("first", False)]


async def test_a_lease_that_somebody_deletes_is_made_again_by_its_holder(build):
    settings = build.settings.model_copy(update={"lease_duration": "1h", "lease_renew": "0.02s"})

    class Deleted(Kept):
        async def replace(self, manifest):
            if self.lease is None:
                raise ApiError(404, "NotFound", "there is no such lease")
            return await super().replace(manifest)

        async def create(self, manifest):
            self.lease, self.written = copy.deepcopy(manifest), self.written + 1
            return manifest

    server = Deleted()
    lease = Lease(server, settings, Install(server, settings))
    leading = asyncio.create_task(lease.lead(asyncio.Event().wait))
    async with asyncio.timeout(20):
        await server.after(writes=2)
        server.lease = None
        await server.after(writes=3)
    assert server.lease["spec"]["holderIdentity"] == settings.pod_name
    leading.cancel()
    await asyncio.wait([leading])
