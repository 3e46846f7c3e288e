"""The key by which the pods of one object's groups log in to each other: made and judged as bytes. No files, no clock.

One Ed25519 pair an object, in OpenSSH's form: it proves the pod that logs in, and the pod that is logged in to. It is
never renewed: a group lives as long as its pods do, and pods with different keys could not meet.
"""

from collections.abc import Mapping

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_ssh_private_key,
)

from arctic_api.world import LOGIN_KEY

PUBLIC = f"{LOGIN_KEY}.pub"


def new_login() -> dict[str, bytes]:
    """Make the data of the Secret."""
    key = Ed25519PrivateKey.generate()
    return {
        LOGIN_KEY: key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()),
        PUBLIC: _public(key) + b"\n",
    }


def is_login(data: Mapping[str, bytes]) -> bool:
    """Tell whether a Secret's data is a pair."""
    try:
        key = load_ssh_private_key(data.get(LOGIN_KEY, b""), password=None)
    except ValueError:
        return False
    return isinstance(key, Ed25519PrivateKey) and data.get(PUBLIC, b"").strip() == _public(key)


def _public(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
