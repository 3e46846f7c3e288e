"""Certificates of the gRPC between operator and workers: made, read and judged as bytes. No files, no clock.

One authority an install signs a server certificate for each custom resource (SAN `NAME.NAMESPACE`) and the operator's
own client certificate. All keys are ECDSA P-256. A certificate is renewed when two thirds of its life are over.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import lru_cache

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

AUTHORITY_LIFE = timedelta(days=3 * 365)
LEAF_LIFE = timedelta(days=90)
RENEW_AFTER = 2 / 3
"""Part of its life after which a certificate is replaced."""
OVERLAP = timedelta(days=1)
"""Time for a new authority to reach every pod, before it signs: the operator rewrites each object's Secret, and a
kubelet brings it into the pods within minutes."""
BACKDATE = timedelta(hours=2)
"""How far clocks of nodes, and the operator's own, may be behind: one may have been set to another zone's time."""

CERTIFICATE, KEY, AUTHORITIES = "tls.crt", "tls.key", "ca.crt"
NEXT_CERTIFICATE, NEXT_KEY, PREVIOUS = "next.crt", "next.key", "previous.crt"
ADVICE = "restore the Secret, or delete it and a new one is made"


class DamagedPEM(ValueError):  # noqa: N818 - names the state of the input
    """PEM that can't be read; the text says which, why and what to do."""


@dataclass(frozen=True)
class Pair:
    """A certificate and its private key, PEM."""

    certificate: bytes
    key: bytes


@dataclass(frozen=True)
class ClientTLS:
    """What the operator proves itself with, and what it trusts."""

    pair: Pair
    authorities: bytes


def server_name(name: str, namespace: str) -> str:
    """Return the name that an object's workers must prove to have."""
    return f"{name}.{namespace}"


@dataclass(frozen=True)
class Authority:
    """The install's authority. While it is being replaced, three generations may be trusted, and one signs."""

    signer: Pair
    following: Pair | None = None
    """Trusted already, signs after the overlap."""
    previous: bytes = b""
    """Certificates, without keys, that still vouch for what they signed."""

    @classmethod
    def create(cls, now: datetime) -> "Authority":
        """Make the first one."""
        return cls(_new_authority(now))

    @classmethod
    def from_secret(cls, data: Mapping[str, bytes]) -> "Authority":
        """Read what `to_secret` wrote; DamagedPEM says what can't be read."""
        following = Pair(data[NEXT_CERTIFICATE], data.get(NEXT_KEY, b"")) if data.get(NEXT_CERTIFICATE) else None
        authority = cls(Pair(data.get(CERTIFICATE, b""), data.get(KEY, b"")), following, data.get(PREVIOUS, b""))
        check_pair(authority.signer, CERTIFICATE, KEY)
        if following is not None:
            check_pair(following, NEXT_CERTIFICATE, NEXT_KEY)
        if authority.previous:
            _read_certificates(authority.previous, PREVIOUS)
        return authority

    def to_secret(self) -> dict[str, bytes]:
        """Return the data of the authority's Secret."""
        data = {CERTIFICATE: self.signer.certificate, KEY: self.signer.key}
        if self.following is not None:
            data |= {NEXT_CERTIFICATE: self.following.certificate, NEXT_KEY: self.following.key}
        return data | ({PREVIOUS: self.previous} if self.previous else {})

    @property
    def bundle(self) -> bytes:
        """All certificates to trust: `ca.crt` of each object's Secret, to be rewritten there when it changes."""
        return self.signer.certificate + (self.following.certificate if self.following else b"") + self.previous

    def advance(self, now: datetime) -> "Authority":
        """Return the authority with the next step of its replacement done, or itself when none is due.

        Three steps: make the next one and trust it; after the overlap let it sign, while the old one stays trusted for
        what it signed; forget the old one when its time is over. An install that slept through all that starts anew,
        and so does one whose clock was wrong when it was made.
        """
        signer = _read_certificate(self.signer.certificate, CERTIFICATE)
        if not signer.not_valid_before_utc <= now < signer.not_valid_after_utc:
            return Authority(self.following).advance(now) if self.following else Authority.create(now)
        if self.following is None:
            if needs_rotation(self.signer.certificate, now):
                return replace(self, following=_new_authority(now))
        elif now >= _made_at(self.following) + OVERLAP:
            return Authority(self.following, None, self.signer.certificate + self.previous)
        trusted = [cert for cert in _read_certificates(self.previous, PREVIOUS) if cert.not_valid_after_utc > now]
        previous = b"".join(cert.public_bytes(Encoding.PEM) for cert in trusted)
        return self if previous == self.previous else replace(self, previous=previous)


def server_secret(authority: Authority, name: str, namespace: str, now: datetime) -> dict[str, bytes]:
    """Return the data of one object's TLS Secret: a server certificate that is of no use to a client."""
    pair = _issue(authority, now, server_name(name, namespace), ExtendedKeyUsageOID.SERVER_AUTH)
    return {CERTIFICATE: pair.certificate, KEY: pair.key, AUTHORITIES: authority.bundle}


def client_tls(authority: Authority, now: datetime) -> ClientTLS:
    """Return the operator's own certificate, of no use to a server, with what it trusts."""
    pair = _issue(authority, now, "arctic-operator", ExtendedKeyUsageOID.CLIENT_AUTH)
    return ClientTLS(pair, authority.bundle)


def needs_rotation(pem: bytes, now: datetime) -> bool:
    """Tell whether two thirds of a certificate's life are over, or it has not begun; DamagedPEM if it can't be read."""
    certificate = _read_certificate(pem, CERTIFICATE)
    start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return not start <= now < start + (end - start) * RENEW_AFTER


def end_of(pem: bytes) -> datetime:
    """Return when a certificate's life is over; DamagedPEM if it can't be read."""
    return _read_certificate(pem, CERTIFICATE).not_valid_after_utc


def _made_at(authority: Pair) -> datetime:
    return _read_certificate(authority.certificate, NEXT_CERTIFICATE).not_valid_before_utc + BACKDATE


def _new_authority(now: datetime) -> Pair:
    key = ec.generate_private_key(ec.SECP256R1())
    # The name carries the moment: two generations of one name would be tried in turn for every signature.
    name = _name(f"arctic-authority-{now.astimezone(UTC):%Y%m%dT%H%M%S}")
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    builder = (
        _builder(name, name, key, now - BACKDATE, now + AUTHORITY_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(identifier, critical=False)
    )
    return _sign(builder, key, key)


def _issue(authority: Authority, now: datetime, name: str, purpose: x509.ObjectIdentifier) -> Pair:
    issuer, signer = _signer(authority.signer)
    end = min(now + LEAF_LIFE, issuer.not_valid_after_utc)
    if end <= now:
        raise ValueError(f"The authority's certificate ended at {issuer.not_valid_after_utc}: it can sign nothing more")
    key = ec.generate_private_key(ec.SECP256R1())
    builder = (
        _builder(_name("arctic"), issuer.subject, key, now - BACKDATE, end)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
    )
    return _sign(builder, key, signer)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, start: datetime, end: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(end)
    )


def _sign(
    builder: x509.CertificateBuilder, key: ec.EllipticCurvePrivateKey, signer: ec.EllipticCurvePrivateKey
) -> Pair:
    return Pair(
        builder.sign(signer, hashes.SHA256()).public_bytes(Encoding.PEM),
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def check_pair(pair: Pair, certificate_name: str, key_name: str) -> None:
    """Raise DamagedPEM unless both can be read and belong together; the names are those of the Secret's fields."""
    certificate = _read_certificate(pair.certificate, certificate_name)
    if certificate.public_key() != _read_key(pair.key, key_name).public_key():
        raise DamagedPEM(f"{key_name} is not the key of {certificate_name}: {ADVICE}")


@lru_cache(maxsize=2)
def _signer(pair: Pair) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """Return what signs, read once: reading it costs as much as signing."""
    return _read_certificate(pair.certificate, CERTIFICATE), _read_key(pair.key, KEY)


def _read_certificates(pem: bytes, name: str) -> list[x509.Certificate]:
    if not pem:
        return []
    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError as error:
        raise DamagedPEM(f"{name} holds no certificate in PEM ({error}): {ADVICE}") from error


def _read_certificate(pem: bytes, name: str) -> x509.Certificate:
    certificates = _read_certificates(pem, name)
    if not certificates:
        raise DamagedPEM(f"{name} is missing or empty: {ADVICE}")
    return certificates[0]


def _read_key(pem: bytes, name: str) -> ec.EllipticCurvePrivateKey:
    try:
        key = load_pem_private_key(pem, password=None)
    except (ValueError, TypeError) as error:
        raise DamagedPEM(f"{name} holds no unencrypted private key in PEM ({error}): {ADVICE}") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise DamagedPEM(f"{name} is no ECDSA key: {ADVICE}")
    return key
