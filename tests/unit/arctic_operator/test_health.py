"""The heartbeat that proves that watching works."""

import copy

import pytest

from arctic_operator.cluster import ApiError
from arctic_operator.health import BLIND_AFTER, Heartbeat
from arctic_operator.install import Install


@pytest.fixture
def now():
    return [0.0]


@pytest.fixture
def heartbeat(operator, build, now):
    return Heartbeat(operator.server, build.settings, Install(operator.server, build.settings), lambda: now[0])


async def test_the_pods_of_an_install_share_one_heartbeat_and_each_sees_its_own_watch_by_it(operator, build):
    now, server = [0.0], operator.server
    first, second = (
        Heartbeat(
            server, build.settings.model_copy(update={"pod_name": pod}), Install(server, build.settings), lambda: now[0]
        )
        for pod in ("a", "b")
    )
    await first.beat()
    now[0] = 5.0
    assert first.unseen() == 5.0
    await second.beat()
    (lease,) = server.of("Lease")
    assert (lease["metadata"]["name"], lease["spec"]["holderIdentity"]) == ("arctic-operator-heartbeat", "b")
    first.seen(lease)
    now[0] = 65.0
    assert (first.unseen(), second.unseen()) == (0.0, 60.0)


async def test_a_heartbeat_that_is_seen_before_its_write_is_answered_is_seen(operator, heartbeat, now, monkeypatch):
    apply_own = operator.server.apply_own

    async def show_and_answer(manifest):
        await apply_own(manifest)
        heartbeat.seen(manifest)

    monkeypatch.setattr(operator.server, "apply_own", show_and_answer)
    await heartbeat.beat()
    now[0] = 65.0
    assert heartbeat.unseen() == 0.0


async def refused(server, heartbeat, monkeypatch):
    async def away(_):
        raise ApiError(0, "", "connection refused")

    with monkeypatch.context() as patched:
        patched.setattr(server, "apply_own", away)
        with pytest.raises(ApiError):
            await heartbeat.beat()


async def test_time_in_which_the_api_server_is_away_does_not_count_as_blindness(operator, heartbeat, now, monkeypatch):
    await heartbeat.beat()  # and the API server goes before a watch shows it
    now[0] = 20.0
    await refused(operator.server, heartbeat, monkeypatch)
    now[0] = 40.0
    await heartbeat.beat()
    now[0] = 65.0
    assert heartbeat.unseen() == 45.0


async def test_an_api_server_that_was_never_there_is_not_waited_for(operator, heartbeat, now, monkeypatch):
    await refused(operator.server, heartbeat, monkeypatch)
    now[0] = 65.0
    assert heartbeat.unseen() == 0.0


async def test_a_watch_that_shows_nothing_is_noticed_though_writes_are_refused_now_and_then(
    operator, heartbeat, now, monkeypatch
):
    for number in range(9):
        now[0] = 20.0 * number
        await (refused(operator.server, heartbeat, monkeypatch) if number % 3 == 2 else heartbeat.beat())
    assert heartbeat.unseen() > BLIND_AFTER


async def test_a_watch_that_is_late_by_more_than_a_beat_is_not_blind(operator, heartbeat, now):
    shown = []
    for number in range(30):
        now[0] = 20.0 * number
        await heartbeat.beat()
        shown.append(copy.deepcopy(operator.server.of("Lease")[0]))
        now[0] += 10.0
        if number:
            heartbeat.seen(shown[number - 1])
        assert heartbeat.unseen() <= 40.0
