"""The worker's side of mutual TLS: reading the certificate folder, checking it, taking up rotated files."""

import logging
import ssl
import threading
from dataclasses import dataclass
from pathlib import Path

import grpc

log = logging.getLogger(__name__)

FILES = ("tls.crt", "tls.key", "ca.crt")


class TLSFolderError(Exception):
    """The folder's files can't serve mutual TLS; the text says which, why and what to do."""


@dataclass(frozen=True)
class TLSFiles:
    """Contents of a certificate folder, PEM."""

    certificate: bytes
    key: bytes
    authorities: bytes
    expires: float
    """When the certificate's life is over, in seconds since 1970."""


def _current(folder: Path) -> Path:
    """Return the folder that the files are in now.

    A kubelet changes all files of a mounted Secret at once, by pointing the link `..data` elsewhere: reading through
    the link file by file could mix two generations.
    """
    return (folder / "..data").resolve() if (folder / "..data").exists() else folder


def read_folder(folder: Path, server_name: str) -> TLSFiles:
    """Return the files, proven to serve a client that expects `server_name`; TLSFolderError says what is wrong."""
    current = _current(folder)
    contents = []
    for name in FILES:
        try:
            contents.append((current / name).read_bytes())
        except OSError as error:
            raise TLSFolderError(
                f"{folder / name} can't be read ({error.strerror}): the folder must hold {', '.join(FILES)}; "
                "mount the object's TLS Secret there, whole"
            ) from None
    certificate, key, authorities = contents
    return TLSFiles(certificate, key, authorities, _prove(current, folder, server_name))


def _prove(current: Path, folder: Path, server_name: str) -> float:
    """Shake hands with ourselves in memory, as the operator will over the network; return when that will end.

    That is one check for everything that can be wrong: damaged PEM, another certificate's key, another authority, a
    wrong name, a certificate whose time has not come or is over.
    """
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    advice = "delete the object's TLS Secret, and the operator makes a new one"
    try:
        server.load_cert_chain(current / "tls.crt", current / "tls.key", password=_refuse_password)
    except (ssl.SSLError, ValueError) as error:
        raise TLSFolderError(
            f"{folder}/tls.crt and tls.key are no certificate with its private key in PEM ({_reason(error)}): {advice}"
        ) from None
    try:
        client.load_verify_locations(current / "ca.crt")
    except ssl.SSLError as error:
        raise TLSFolderError(f"{folder}/ca.crt holds no certificates in PEM ({_reason(error)}): {advice}") from None
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    caller = client.wrap_bio(to_client, to_server, server_hostname=server_name)
    ends = [caller, server.wrap_bio(to_server, to_client, server_side=True)]
    try:
        while ends:
            ends = [end for end in ends if not _shaken(end)]
    except ssl.SSLError as error:
        raise TLSFolderError(
            f"{folder}/tls.crt can't prove to be {server_name} by {folder}/ca.crt ({_reason(error)}): {advice}"
        ) from None
    shown = caller.getpeercert()
    assert shown is not None
    return float(ssl.cert_time_to_seconds(str(shown["notAfter"])))


def _shaken(end: ssl.SSLObject) -> bool:
    try:
        end.do_handshake()
    except ssl.SSLWantReadError:
        return False
    return True


def _refuse_password() -> str:
    raise ValueError("the key is encrypted")


def fingerprint(folder: Path) -> list[tuple[int, int]]:
    """Return what is another when the folder's files are."""
    current = _current(folder)
    stats = [(current / name).stat() for name in FILES if (current / name).exists()]
    return [(stat.st_ino, stat.st_mtime_ns) for stat in stats]


def _reason(error: Exception) -> str:
    return getattr(error, "verify_message", None) or getattr(error, "reason", None) or str(error)


class RotatingCredentials:
    """Server credentials that follow the folder: each new connection gets the files that are there then.

    Files that would not serve are logged and passed over; the ones before them stay in use.
    """

    def __init__(self, folder: str, server_name: str) -> None:
        """Read the folder; TLSFolderError says why it can't be used."""
        self._folder = Path(folder)
        self._server_name = server_name
        self._lock = threading.Lock()
        self._seen = fingerprint(self._folder)
        self.credentials = grpc.dynamic_ssl_server_credentials(
            self._load(), self._fetch, require_client_authentication=True
        )

    def _load(self) -> object:
        files = read_folder(self._folder, self._server_name)
        return grpc.ssl_server_certificate_configuration(
            [(files.key, files.certificate)], root_certificates=files.authorities
        )

    def _fetch(self) -> object | None:
        """Return the new configuration for a new connection, None for the one before; gRPC calls it on its threads."""
        with self._lock:
            try:
                now = fingerprint(self._folder)
                if now == self._seen:
                    return None
                configuration, self._seen = self._load(), now
            except (TLSFolderError, OSError) as error:
                log.error("New certificates are not used, the ones before stay: %s", error)
                return None
            log.info("New certificates are in use from %s", self._folder)
            return configuration
