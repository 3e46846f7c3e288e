"""Reads the API keys of services from the Secrets that they name; only digests are kept, and nothing is logged."""

import time
from collections.abc import Callable
from http import HTTPStatus

from arctic_api.keys import read_keys
from arctic_operator.cluster import ApiError, Cluster, secret_data
from arctic_operator.observed import NO_KEYS, Access, Inference, Trouble

LOOK_EVERY = 15.0
"""Seconds after which a Secret is read anew: Secrets are not watched, as a list would be everybody's."""


class UnreadableKeysError(Exception):
    """A Secret with API keys that this operator may not read. What a gateway knows of them stays."""


class AccessKeys:
    """What the Secrets held when they were read last. Losing this object loses nothing."""

    def __init__(self, cluster: Cluster, clock: Callable[[], float] = time.monotonic) -> None:
        self._cluster, self._clock = cluster, clock
        self._known: dict[str, tuple[float, str, Access]] = {}

    async def read(self, inference: Inference) -> Access | None:
        """Return the keys of a service, None if it asks for none. Raises ApiError or UnreadableKeysError."""
        auth, identity = inference.spec.service.auth, inference.identity
        if auth is None:
            return None
        read, name, access = self._known.get(identity.uid, (float("-inf"), "", Access()))
        now = self._clock()
        if name == auth.secret_name and now - read < LOOK_EVERY:
            return access
        try:
            secret = await self._cluster.get("Secret", identity.namespace, auth.secret_name)
        except ApiError as error:
            if error.code != HTTPStatus.FORBIDDEN:
                raise
            told = (
                f"Secret {auth.secret_name}, which service.auth names, can't be read: {error}: let the operator get it"
            )
            raise UnreadableKeysError(told) from error
        access = access_of(auth.secret_name, secret_data(secret) if secret else None)
        self._known[identity.uid] = (now, auth.secret_name, access)
        return access

    def forget(self, uid: str) -> None:
        """Forget an object that is gone."""
        self._known.pop(uid, None)


def access_of(secret_name: str, data: dict[str, bytes] | None) -> Access:
    """Return the keys of a Secret, with what is wrong with it; `data` is None where there is none."""
    where = f"Secret {secret_name}, which service.auth names,"
    if data is None:
        return Access((), Trouble(NO_KEYS, f"{where} is not there: make it; until then every request is refused"))
    keys = read_keys(data)
    wrong = f"{where} has what no client can send: {'; '.join(keys.problems)}" if keys.problems else ""
    if not keys.digests:
        why = wrong or f"{where} has no key: write one a line"
        return Access((), Trouble(NO_KEYS, f"{why}; until then every request is refused"))
    return Access(tuple(sorted(keys.digests)), Trouble("BadKeys", wrong) if wrong else None)
