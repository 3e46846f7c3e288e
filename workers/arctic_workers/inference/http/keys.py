"""API keys where no gateway asks for them: `arctic serve` has a leader alone."""

import hmac
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from arctic_api.keys import Keys, digest_of, read_keys
from arctic_workers.inference.http.protocol import ApiError

Read = TypeVar("Read")

FREE = frozenset({"/health"})
"""For load balancers, which have no key."""
_NO_KEY = ApiError(
    401,
    "The API key is missing or is not one of this service: send the header Authorization: Bearer KEY",
    code="invalid_api_key",
)


class KeyFiles:
    """The keys in a folder's files, as the kubelet mounts a Secret; what changes there counts at once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._seen: object = None
        self._keys = Keys(frozenset(), ())

    def read(self) -> Keys:
        """Return the keys as they are now: none where they can't be read."""
        try:
            files = [path for path in sorted(self._folder.iterdir()) if path.is_file()]
            seen = _of_each(files, _mark)
            if seen != self._seen:
                self._keys = read_keys(_of_each(files, Path.read_bytes))
                self._seen = seen
        except OSError:
            self._keys, self._seen = Keys(frozenset(), ()), None
        return self._keys

    def accepts(self, key: bytes) -> bool:
        """Whether a key is one of them; however many there are, all are compared."""
        digest = digest_of(key)
        return sum([hmac.compare_digest(digest, each) for each in self.read().digests]) > 0


def _of_each(files: Sequence[Path], read: Callable[[Path], Read]) -> dict[str, Read]:
    """Return what is read of each file, by name: one that is gone since it was listed has nothing."""
    found = {}
    for file in files:
        with suppress(FileNotFoundError):
            found[file.name] = read(file)
    return found


def _mark(file: Path) -> object:
    """Return what another content of a file changes."""
    status = file.stat()
    return status.st_mtime_ns, status.st_size, status.st_ino


class Locked:
    """Refuses requests without a key."""

    def __init__(self, app: ASGIApp, keys: KeyFiles) -> None:
        self._app, self._keys = app, keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        app: ASGIApp = self._app
        if scope["type"] == "http" and scope["path"] not in FREE and not self._keys.accepts(_bearer(scope)):
            app = JSONResponse(_NO_KEY.body(), status_code=401, headers={"WWW-Authenticate": "Bearer"})
        await app(scope, receive, send)


def _bearer(scope: Scope) -> bytes:
    """Return the key that a request came with, empty if none."""
    value = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
    scheme, _, key = value.partition(b" ")
    return bytes(key.strip()) if scheme.lower() == b"bearer" else b""
