from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from arctic_cluster.certificates import Authority


def read(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def test_a_certificate_says_who_its_client_is_and_where_it_serves(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "pki")
    authority.issue("node", "system:node:one", ["system:nodes"], ["one", "10.0.0.1"])
    issued = read(tmp_path / "pki" / "node.crt")
    assert issued.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value == "system:node:one"
    assert issued.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)[0].value == "system:nodes"
    names = issued.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["one"]
    assert [str(ip) for ip in names.get_values_for_type(x509.IPAddress)] == ["10.0.0.1"]
    issued.verify_directly_issued_by(read(authority.certificate))


def test_a_clients_certificate_cannot_serve(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "pki")
    authority.issue("admin", "admin", ["system:masters"])
    uses = read(tmp_path / "pki" / "admin.crt").extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(uses) == [ExtendedKeyUsageOID.CLIENT_AUTH]


def test_keys_are_for_root_alone_and_fit_their_certificates(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "pki")
    authority.issue("admin", "admin")
    path = tmp_path / "pki" / "admin.key"
    assert path.stat().st_mode & 0o077 == 0
    key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    assert key.public_key() == read(tmp_path / "pki" / "admin.crt").public_key()
