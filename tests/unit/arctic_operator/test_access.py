"""API keys from a Secret: read anew in time, closed where there are none, and told without the keys."""

import json
import logging

import pytest

from arctic_api.keys import digest_of
from arctic_operator import access as module
from arctic_operator.access import AccessKeys, access_of
from arctic_operator.cluster import ApiError, secret_data
from arctic_operator.manifests.common import secret_manifest

AUTH = {"service": {"auth": {"secretName": "people"}}}


def put_secret(operator, **values):
    metadata = {"name": "people", "namespace": "team"}
    operator.server.put(secret_manifest(metadata, {name: value.encode() for name, value in values.items()}))


def accepted(operator):
    (secret,) = [each for each in operator.server.of("Secret") if each["metadata"]["name"].endswith("-keys")]
    return secret_data(secret)["digests"].decode().split()


@pytest.mark.parametrize("data", [None, {}, {"key": b"\n"}, {"key": b"two words"}])
def test_a_secret_without_a_key_closes_the_service_and_says_so(data):
    access = access_of("people", data)
    assert access.digests == ()
    assert access.lack.reason == "NoKeys"
    assert "Secret people" in access.lack.message
    assert "every request is refused" in access.lack.message


def test_a_line_that_is_no_key_closes_nothing_for_those_who_have_one():
    access = access_of("people", {"key": b"two words\none"})
    assert (access.digests, access.lack.reason) == ((digest_of(b"one"),), "BadKeys")


async def test_a_secret_is_read_anew_in_time_and_at_once_under_another_name(build, operator):
    now = [0.0]
    keys = AccessKeys(operator.server, lambda: now[0])
    assert await keys.read(build.inference()) is None
    put_secret(operator, key="one\n")
    assert (await keys.read(build.inference(**AUTH))).digests == (digest_of(b"one"),)
    put_secret(operator, key="other")
    assert (await keys.read(build.inference(**AUTH))).digests == (digest_of(b"one"),)
    another = build.inference(service={"auth": {"secretName": "nobody"}})
    assert (await keys.read(another)).lack
    now[0] += module.LOOK_EVERY
    assert (await keys.read(build.inference(**AUTH))).digests == (digest_of(b"other"),)


async def test_a_service_is_closed_until_there_are_keys_and_nothing_tells_them(operator, monkeypatch, caplog):
    caplog.set_level(logging.DEBUG)
    monkeypatch.setattr(module, "LOOK_EVERY", 0.0)
    key = operator.add("ArcticInference", replicas=0, **AUTH)
    await operator.reconcile(key)
    assert accepted(operator) == []
    degraded = operator.condition(key, "Degraded")
    assert (degraded["status"], degraded["reason"]) == ("True", "NoKeys")
    assert "Secret people" in degraded["message"]

    put_secret(operator, key="s3cret\n")
    await operator.reconcile(key)
    assert accepted(operator) == [digest_of(b"s3cret")]
    assert operator.condition(key, "Degraded")["status"] == "False"
    told = json.dumps([o for o in operator.server.objects.values() if o["metadata"]["name"] != "people"])
    assert "s3cret" not in told + caplog.text + json.dumps(operator.server.events)

    operator.remove("Secret", "people")
    await operator.reconcile(key)
    assert accepted(operator) == [], "who deletes the Secret closes the service"


async def test_gateways_are_told_to_read_what_has_changed_and_only_then(operator, monkeypatch):
    monkeypatch.setattr(module, "LOOK_EVERY", 0.0)
    put_secret(operator, key="one")
    key = operator.add("ArcticInference", replicas=0, **AUTH)
    uid = operator.server.of("ArcticInference")[0]["metadata"]["uid"]
    labels = {"arctic.dev/managed": "true", "arctic.dev/uid": uid, "arctic.dev/role": "gateway"}
    pod = {"kind": "Pod", "metadata": {"name": "gateway-0", "namespace": "team", "labels": labels}}
    operator.cache.put(operator.server.put(pod))
    told = []
    for value in ("one", "one\n", "two"):
        put_secret(operator, key=value)
        await operator.reconcile(key)
        (gateway,) = operator.server.of("Pod")
        told.append(gateway["metadata"]["annotations"]["arctic.dev/read"])
    assert told[0] == told[1] != told[2]


async def test_a_secret_that_may_not_be_read_is_told_and_what_the_gateway_knows_stays(operator, monkeypatch):
    put_secret(operator, key="one")
    key = operator.add("ArcticInference", **AUTH)
    for _ in range(2):
        await operator.reconcile(key)
    before, real = accepted(operator), operator.server.get

    async def get(kind, namespace, name):
        if name == "people":
            raise ApiError(403, "Forbidden", 'secrets "people" is forbidden')
        return await real(kind, namespace, name)

    monkeypatch.setattr(operator.server, "get", get)
    monkeypatch.setattr(module, "LOOK_EVERY", 0)
    await operator.reconcile(key)
    told = operator.condition(key, "Degraded")
    assert (told["status"], told["reason"], accepted(operator)) == ("True", "UnreadableKeys", before)
    assert 'Secret people, which service.auth names, can\'t be read: secrets "people" is forbidden' in told["message"]
