"""Keeps keys where they belong: the authority in the operator's namespace, Secrets beside each object."""

from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any

from arctic_operator.cache import Manifest
from arctic_operator.certificates import (
    AUTHORITIES,
    CERTIFICATE,
    KEY,
    Authority,
    ClientTLS,
    DamagedPEM,
    Pair,
    check_pair,
    client_tls,
    end_of,
    needs_rotation,
    server_secret,
)
from arctic_operator.cluster import ApiError, Cluster, secret_data
from arctic_operator.install import Install
from arctic_operator.logins import is_login, new_login
from arctic_operator.manifests.common import child_metadata, login_name, secret_manifest, tls_name
from arctic_operator.metrics import CERTIFICATE_EXPIRY
from arctic_operator.observed import Identity
from arctic_operator.settings import Settings

AUTHORITY_SECRET = "arctic-ca"  # noqa: S105  a name
CHECK_EVERY = timedelta(hours=1)


class Keys:
    """The authority, what it has signed, and when that was looked at last. Losing this object loses nothing."""

    def __init__(self, cluster: Cluster, settings: Settings, install: Install, clock: Callable[[], datetime]) -> None:
        self._cluster, self._install = cluster, install
        self._namespace = settings.namespace
        self._clock = clock
        self._authority: Authority | None = None
        self._authority_checked: datetime | None = None
        self._client: ClientTLS | None = None
        self._checked: dict[str, tuple[datetime, bytes, bool]] = {}

    async def client(self) -> ClientTLS:
        """Return what the operator proves itself with."""
        authority, now = await self._current(), self._clock()
        held = self._client
        if held is None or held.authorities != authority.bundle or needs_rotation(held.pair.certificate, now):
            self._client = client_tls(authority, now)
            _tell_expiry("client", self._client.pair.certificate)
        assert self._client is not None
        return self._client

    async def ensure(self, identity: Identity, *, look: bool, login: bool, new: bool = False) -> None:
        """See to an object's Secrets, with `login` to that of its pods' logins too.

        They are looked at now and then, whenever the authority changes, and on `look`. Those of a `new` object are made
        first, and looked at if they are there: an operator before may have made them, and ended.
        """
        authority, now = await self._current(), self._clock()
        checked = self._checked.get(identity.uid)
        if not look and checked and checked[1:] == (authority.bundle, login) and _is_fresh(checked[0], now):
            return
        if not (new and await self._cluster.create(_server(identity, authority, now))):
            known = await self._cluster.get("Secret", identity.namespace, tls_name(identity))
            if known is None or _is_due(secret_data(known), authority, now):
                await self._cluster.apply(_server(identity, authority, now), identity.uid, known)
        if login:
            await self._ensure_login(identity)
        self._checked[identity.uid] = (now, authority.bundle, login)

    async def _ensure_login(self, identity: Identity) -> None:
        """Made once: pods of one group that had different keys could not meet. What is damaged is made anew."""
        name = login_name(identity)
        known = await self._cluster.get("Secret", identity.namespace, name)
        if known is None or not is_login(secret_data(known)):
            manifest = secret_manifest(child_metadata(identity, name), new_login())
            await self._cluster.apply(manifest, identity.uid, known)

    def forget(self, uid: str) -> None:
        """Forget an object that is gone."""
        self._checked.pop(uid, None)

    async def _current(self) -> Authority:
        now = self._clock()
        if self._authority and self._authority_checked and _is_fresh(self._authority_checked, now):
            return self._authority
        self._authority = await self._load(now)
        _tell_expiry("authority", self._authority.signer.certificate)
        self._authority_checked = now
        return self._authority

    async def _load(self, now: datetime) -> Authority:
        """Read, make or advance the authority. Of two operators that do so at once, one wins and both read it."""
        owners = await self._install.owners(self._namespace)
        known = await self._cluster.get("Secret", self._namespace, AUTHORITY_SECRET)
        if known is None:
            await self._cluster.create(self._secret(Authority.create(now), owners))
            known = await self._cluster.get("Secret", self._namespace, AUTHORITY_SECRET)
            if known is None:
                raise ApiError(404, "NotFound", f"Secret {AUTHORITY_SECRET} was made and is gone again")
        try:
            authority = Authority.from_secret(secret_data(known))
        except DamagedPEM as error:
            raise DamagedPEM(f"Secret {self._namespace}/{AUTHORITY_SECRET}: {error}") from error
        advanced = authority.advance(now)
        owned = owners.get("ownerReferences", []) == known["metadata"].get("ownerReferences", [])
        if advanced is authority and owned:
            return authority
        version = {"resourceVersion": known["metadata"]["resourceVersion"]}
        written = await self._cluster.merge(self._secret(advanced, owners | version), dropped=known["data"])
        return Authority.from_secret(secret_data(written))

    def _secret(self, authority: Authority, more: Mapping[str, Any]) -> Manifest:
        metadata = {"name": AUTHORITY_SECRET, "namespace": self._namespace, **more}
        return secret_manifest(metadata, authority.to_secret())


def _is_fresh(checked: datetime, now: datetime) -> bool:
    """Whether it is too early to look again; a look in time to come was at a clock that was wrong."""
    return timedelta(0) <= now - checked < CHECK_EVERY


def _tell_expiry(which: str, pem: bytes) -> None:
    CERTIFICATE_EXPIRY.labels(which).set(end_of(pem).timestamp())


def _server(identity: Identity, authority: Authority, now: datetime) -> Manifest:
    """Return the Secret with what an object's pods prove themselves with, made anew."""
    data = server_secret(authority, identity.name, identity.namespace, now)
    return secret_manifest(child_metadata(identity, tls_name(identity)), data)


def _is_due(data: dict[str, bytes], authority: Authority, now: datetime) -> bool:
    """Whether a Secret must be written anew: it is not whole, near its end, or trusts another authority."""
    if data.get(AUTHORITIES) != authority.bundle:
        return True
    pair = Pair(data.get(CERTIFICATE, b""), data.get(KEY, b""))
    try:
        check_pair(pair, CERTIFICATE, KEY)
        return needs_rotation(pair.certificate, now)
    except DamagedPEM:
        return True
