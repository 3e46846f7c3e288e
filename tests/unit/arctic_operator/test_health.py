"""The heartbeat that proves that watching works."""

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
