"""The key by which the pods of a group log in to each other."""

import subprocess
from pathlib import Path

import pytest

from arctic_api.world import LOGIN_KEY
from arctic_operator.logins import is_login, new_login

PUBLIC = f"{LOGIN_KEY}.pub"


def test_openssh_reads_the_pair_as_one(tmp_path: Path) -> None:
    data = new_login()
    for name, content in data.items():
        (tmp_path / name).write_bytes(content)
        (tmp_path / name).chmod(0o600)
    derived = subprocess.run(
        ["ssh-keygen", "-y", "-f", str(tmp_path / LOGIN_KEY)], capture_output=True, text=True, check=True
    ).stdout
    assert derived.split()[:2] == data[PUBLIC].decode().split()
    assert derived.startswith("ssh-ed25519 ")


def test_every_pair_is_another_one() -> None:
    assert new_login() != new_login()


@pytest.mark.parametrize("damage", [{LOGIN_KEY: b""}, {PUBLIC: new_login()[PUBLIC]}, {LOGIN_KEY: b"-----BEGIN"}])
def test_a_pair_that_does_not_belong_together_is_none(damage: dict[str, bytes]) -> None:
    data = new_login()
    assert is_login(data)
    assert not is_login(data | damage)
    assert not is_login({})
