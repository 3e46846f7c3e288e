"""The operator's certificates in real Secrets."""

import asyncio
import base64
import json
from datetime import UTC, datetime

import pytest
from objects import Objects, example

from arctic_cluster import Cluster
from arctic_operator.certificates import AUTHORITIES, AUTHORITY_LIFE, CERTIFICATE
from arctic_operator.cluster import Cluster as Calls
from arctic_operator.install import Install
from arctic_operator.keys import AUTHORITY_SECRET, Keys
from arctic_operator.logins import is_login
from arctic_operator.manifests.common import login_name, tls_name
from arctic_operator.observed import identity_of
from arctic_operator.settings import Settings


class Edge:
    """Operators of a namespace, and an object that they serve."""

    def __init__(self, calls: Calls, objects: Objects) -> None:
        self.calls, self.objects = calls, objects
        self.now = datetime.now(UTC)
        # The installed operator makes nothing for a training that is suspended.
        manifest = example("ArcticTraining", "tiny")
        manifest["spec"]["suspend"] = True
        objects.apply(manifest)
        self.identity = identity_of(objects.get("arctictraining", "tiny"))

    def operator(self) -> Keys:
        """Return the keys of an operator that has just started."""
        settings = Settings(namespace=self.objects.namespace, worker_image="worker", gateway_image="gateway")
        return Keys(self.calls, settings, Install(self.calls, settings), lambda: self.now)

    def secret(self, name: str) -> dict[str, bytes]:
        return {key: base64.b64decode(value) for key, value in self.objects.get("secret", name)["data"].items()}


@pytest.fixture
def edge(calls: Calls, operator: Cluster, namespace: str) -> Edge:
    return Edge(calls, Objects(operator, namespace))


async def test_operators_that_start_at_once_agree_on_one_authority(edge: Edge) -> None:
    clients = await asyncio.gather(*[edge.operator().client() for _ in range(4)])
    assert len({client.authorities for client in clients}) == 1


async def test_an_objects_secret_is_made_put_back_and_mended(edge: Edge) -> None:
    keys, name = edge.operator(), tls_name(edge.identity)
    await keys.ensure(edge.identity, look=False, login=False)
    first = edge.secret(name)
    assert first[AUTHORITIES] == (await keys.client()).authorities

    await keys.ensure(edge.identity, look=True, login=False)
    assert edge.secret(name) == first, "one that is whole stays"

    edge.objects.kubectl("delete", "secret", name)
    await keys.ensure(edge.identity, look=True, login=False)
    again = edge.secret(name)
    assert again[CERTIFICATE] != first[CERTIFICATE]

    edge.objects.kubectl("patch", "secret", name, "-p", json.dumps({"stringData": {CERTIFICATE: "damaged"}}))
    await edge.operator().ensure(edge.identity, look=False, login=False)
    assert edge.secret(name)[CERTIFICATE].startswith(b"-----BEGIN CERTIFICATE")


async def test_the_key_of_pods_that_log_in_to_each_other_stays_while_it_is_whole(edge: Edge) -> None:
    keys, name = edge.operator(), login_name(edge.identity)
    await keys.ensure(edge.identity, look=False, login=True)
    first = edge.secret(name)
    assert is_login(first)
    edge.now += AUTHORITY_LIFE * 0.7
    await edge.operator().ensure(edge.identity, look=True, login=True)
    assert edge.secret(name) == first, "pods that run have it"


async def test_a_new_authority_is_trusted_before_it_signs_and_the_old_one_until_it_is_over(edge: Edge) -> None:
    keys, name = edge.operator(), tls_name(edge.identity)
    await keys.ensure(edge.identity, look=False, login=False)
    old = edge.secret(name)
    edge.now += AUTHORITY_LIFE * 0.7
    await keys.ensure(edge.identity, look=False, login=False)
    new = edge.secret(name)
    assert new[CERTIFICATE] != old[CERTIFICATE]
    assert old[AUTHORITIES] in new[AUTHORITIES]
    assert len(new[AUTHORITIES]) > len(old[AUTHORITIES])
    assert set(edge.secret(AUTHORITY_SECRET)) > {CERTIFICATE}


async def test_a_damaged_authority_is_told_with_what_to_do(edge: Edge) -> None:
    await edge.operator().client()
    data = {"stringData": {CERTIFICATE: "damaged"}}
    edge.objects.kubectl("patch", "secret", AUTHORITY_SECRET, "-p", json.dumps(data))
    with pytest.raises(ValueError, match="delete it and a new one is made"):
        await edge.operator().client()
