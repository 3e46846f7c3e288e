from datetime import datetime, timedelta
from pathlib import Path

import pytest

from arctic_operator.certificates import LEAF_LIFE, Authority, client_tls, server_secret
from arctic_workers.control.tls import TLSFolderError, read_folder

NAME = "chat.team"


def refusal(folder: Path, name: str = NAME) -> str:
    with pytest.raises(TLSFolderError) as caught:
        read_folder(folder, name)
    assert str(folder) in str(caught.value)
    return str(caught.value)


def test_a_whole_folder_is_read(tls_folder: Path) -> None:
    files = read_folder(tls_folder, NAME)
    assert files.certificate == (tls_folder / "tls.crt").read_bytes()
    assert files.key == (tls_folder / "tls.key").read_bytes()
    assert files.authorities == (tls_folder / "ca.crt").read_bytes()


@pytest.mark.parametrize("name", ["tls.crt", "tls.key", "ca.crt"])
def test_a_missing_file_is_named(tls_folder: Path, name: str) -> None:
    (tls_folder / name).unlink()
    assert f"{name} can't be read (No such file or directory)" in refusal(tls_folder)


@pytest.mark.parametrize("name", ["tls.crt", "tls.key", "ca.crt"])
def test_a_damaged_file_is_refused(tls_folder: Path, name: str) -> None:
    (tls_folder / name).write_text("damaged")
    assert name in refusal(tls_folder)


def test_a_key_of_another_certificate_is_refused(tls_folder: Path, authority: Authority, now: datetime) -> None:
    (tls_folder / "tls.key").write_bytes(server_secret(authority, "chat", "team", now)["tls.key"])
    assert "KEY_VALUES_MISMATCH" in refusal(tls_folder)


def test_an_expired_certificate_is_refused(tls_folder: Path, authority: Authority, now: datetime) -> None:
    old = server_secret(authority, "chat", "team", now - LEAF_LIFE - timedelta(minutes=1))
    (tls_folder / "tls.crt").write_bytes(old["tls.crt"])
    (tls_folder / "tls.key").write_bytes(old["tls.key"])
    assert "certificate has expired" in refusal(tls_folder)


def test_a_certificate_of_another_object_is_refused(tls_folder: Path) -> None:
    assert "not valid for 'code.team'" in refusal(tls_folder, "code.team")


def test_a_certificate_of_another_authority_is_refused(tls_folder: Path, now: datetime) -> None:
    (tls_folder / "ca.crt").write_bytes(Authority.create(now).bundle)
    assert "unable to get local issuer certificate" in refusal(tls_folder)


def test_a_client_certificate_cannot_serve(tls_folder: Path, authority: Authority, now: datetime) -> None:
    pair = client_tls(authority, now).pair
    (tls_folder / "tls.crt").write_bytes(pair.certificate)
    (tls_folder / "tls.key").write_bytes(pair.key)
    assert "can't prove to be chat.team" in refusal(tls_folder)
