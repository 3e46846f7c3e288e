"""The cluster's certificate authority: ECDSA P-256 keys and certificates, written as PEM files.

Kubernetes reads who a client is from its certificate: the common name is the user, the organizations are the groups.
"""

import datetime
import ipaddress
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from arctic_cluster.files import write_atomically

_LIFE = datetime.timedelta(days=365)
_SKEW = datetime.timedelta(minutes=5)


class Authority:
    """A fresh certificate authority in `folder`, as `ca.crt`; its key stays in memory alone."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, mode=0o700)
        self.folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name("arctic-local-cluster", ())
        certificate = (
            _builder(self._name, self._name, self._key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(signs=True), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        write_atomically(self.certificate, certificate.public_bytes(serialization.Encoding.PEM))

    @property
    def certificate(self) -> Path:
        """The authority's certificate, which everyone in the cluster trusts."""
        return self.folder / "ca.crt"

    def issue(self, file: str, user: str, groups: Sequence[str] = (), hosts: Sequence[str] = ()) -> None:
        """Write `file`.crt and `file`.key for a client `user` in `groups` that may also serve under `hosts`."""
        key = ec.generate_private_key(ec.SECP256R1())
        uses = [ExtendedKeyUsageOID.CLIENT_AUTH] + [ExtendedKeyUsageOID.SERVER_AUTH] * bool(hosts)
        builder = (
            _builder(_name(user, groups), self._name, key.public_key())
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(uses), critical=False)
        )
        if hosts:
            builder = builder.add_extension(x509.SubjectAlternativeName([_alternative(h) for h in hosts]), False)
        certificate = builder.sign(self._key, hashes.SHA256())
        write_atomically(self.folder / f"{file}.crt", certificate.public_bytes(serialization.Encoding.PEM))
        self._write_key(file, key)

    def service_account_key(self) -> None:
        """Write `service-accounts.key`, which signs the tokens of service accounts."""
        self._write_key("service-accounts", ec.generate_private_key(ec.SECP256R1()))

    def _write_key(self, file: str, key: ec.EllipticCurvePrivateKey) -> None:
        # The API server takes the public half from the same file, and does so for this form of an ECDSA key only.
        form = serialization.PrivateFormat.TraditionalOpenSSL
        pem = key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
        write_atomically(self.folder / f"{file}.key", pem, mode=0o600)


def _name(user: str, groups: Sequence[str]) -> x509.Name:
    organizations = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, group) for group in groups]
    return x509.Name([*organizations, x509.NameAttribute(NameOID.COMMON_NAME, user)])


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SKEW)
        .not_valid_after(now + _LIFE)
    )


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=signs,
        crl_sign=signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _alternative(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)
