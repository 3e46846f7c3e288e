"""What the operator keeps for itself goes with its Deployment."""

from datetime import timedelta

from arctic_operator.certificates import Authority, needs_rotation
from arctic_operator.cluster import secret_data
from arctic_operator.health import Heartbeat
from arctic_operator.install import Install
from arctic_operator.keys import AUTHORITY_SECRET, Keys
from arctic_operator.lease import Lease
from arctic_operator.manifests.common import secret_manifest, tls_name


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


async def test_certificates_are_looked_at_though_the_clock_was_set_back_a_year(operator, build):
    server, identity, clock = operator.server, build.inference().identity, [build.start]
    keys = Keys(server, build.settings, Install(server, build.settings), lambda: clock[0])
    await keys.ensure(identity, look=False, login=False)
    before = server.of("Secret")
    for moment in (build.start - timedelta(days=365), build.start):
        clock[0] = moment
        await keys.ensure(identity, look=False, login=False)
        tls = await keys.client()
        kept = {each["metadata"]["name"]: secret_data(each) for each in server.of("Secret")}
        [authority, leaf] = [kept[AUTHORITY_SECRET], kept[tls_name(identity)]]
        assert tls.authorities == leaf["ca.crt"] == authority["tls.crt"]
        for pem in (authority["tls.crt"], leaf["tls.crt"], tls.pair.certificate):
            assert not needs_rotation(pem, moment)
    assert len(before) == len(server.of("Secret")) == 2
