"""What the operator keeps for itself goes with its Deployment."""

from arctic_operator.certificates import Authority
from arctic_operator.health import Heartbeat
from arctic_operator.install import Install
from arctic_operator.keys import AUTHORITY_SECRET, Keys
from arctic_operator.lease import Lease
from arctic_operator.manifests.common import secret_manifest


async def test_leases_and_the_authority_belong_to_the_deployment_also_where_they_were_there_before(operator, build):
    server, settings = operator.server, build.settings.model_copy(update={"deployment": "arctic-operator"})
    deployment = server.put({"kind": "Deployment", "metadata": {"namespace": "arctic", "name": "arctic-operator"}})
    metadata = {"namespace": "arctic", "name": AUTHORITY_SECRET}
    server.put(secret_manifest(metadata, Authority.create(build.start).to_secret()) | {"kind": "Secret"})
    install = Install(server, settings)
    await Heartbeat(server, settings, install).beat()
    await Keys(server, settings, install, lambda: build.start).client()
    assert await Lease(server, settings, install)._try()
    kept = server.of("Lease", "Secret")
    assert len(kept) == 3
    for each in kept:
        (owner,) = each["metadata"]["ownerReferences"]
        assert (owner["kind"], owner["uid"]) == ("Deployment", deployment["metadata"]["uid"])


async def test_nothing_owns_what_is_in_another_namespace_or_made_outside_a_deployment(operator, build):
    server = operator.server
    elsewhere = build.settings.model_copy(update={"deployment": "arctic-operator", "watch_namespaces": ("team",)})
    for settings in (build.settings, elsewhere):
        await Heartbeat(server, settings, Install(server, settings)).beat()
    assert [lease["metadata"].get("ownerReferences") for lease in server.of("Lease")] == [None, None]
