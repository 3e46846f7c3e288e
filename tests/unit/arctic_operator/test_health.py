"""The heartbeat that proves that watching works."""

import pytest

from arctic_operator.cluster import ApiError
from arctic_operator.health import Heartbeat
from arctic_operator.install import Install


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


async def test_a_heartbeat_that_is_seen_before_its_write_is_answered_is_seen(operator, build, monkeypatch):
    now, server = [0.0], operator.server
    heartbeat = Heartbeat(server, build.settings, Install(server, build.settings), lambda: now[0])
    apply_own = server.apply_own

    async def show_and_answer(manifest):
        await apply_own(manifest)
        heartbeat.seen(manifest)

    monkeypatch.setattr(server, "apply_own", show_and_answer)
    await heartbeat.beat()
    now[0] = 65.0
    assert heartbeat.unseen() == 0.0


async def test_time_in_which_the_api_server_is_away_does_not_count_as_blindness(operator, build, monkeypatch):
    now, server = [0.0], operator.server
    heartbeat = Heartbeat(server, build.settings, Install(server, build.settings), lambda: now[0])
    await heartbeat.beat()  # and the API server goes before a watch shows it

    async def away(_):
        raise ApiError(0, "", "connection refused")

    now[0] = 20.0
    with monkeypatch.context() as patched:
        patched.setattr(server, "apply_own", away)
        with pytest.raises(ApiError):
            await heartbeat.beat()
    now[0] = 60.0
    assert heartbeat.unseen() == 0.0
    await heartbeat.beat()
    now[0] = 65.0
    assert heartbeat.unseen() == 5.0
