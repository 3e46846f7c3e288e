from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError
from hypothesis import given, settings
from hypothesis import strategies as st

from arctic_operator.certificates import (
    AUTHORITY_LIFE,
    OVERLAP,
    Authority,
    DamagedPEM,
    client_tls,
    needs_rotation,
    server_name,
    server_secret,
)

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
DUE = NOW + AUTHORITY_LIFE * 2 / 3
"""When the first authority is to be replaced."""


def trusts(bundle: bytes, certificate: bytes, now: datetime) -> bool:
    """Verify as a TLS client would, with an implementation that the certificates were not made for."""
    store = Store(x509.load_pem_x509_certificates(bundle))
    verifier = PolicyBuilder().store(store).time(now).build_server_verifier(x509.DNSName("chat.team"))
    try:
        verifier.verify(x509.load_pem_x509_certificate(certificate), [])
    except VerificationError:
        return False
    return True


def secret(authority: Authority, now: datetime) -> dict[str, bytes]:
    return server_secret(authority, "chat", "team", now)


def test_a_server_certificate_proves_its_object_and_nothing_else() -> None:
    authority = Authority.create(NOW)
    data = secret(authority, NOW)
    certificate = x509.load_pem_x509_certificate(data["tls.crt"])
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["chat.team"] == [server_name("chat", "team")]
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.SERVER_AUTH]
    key = certificate.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    assert key.curve.name == "secp256r1"
    assert data["ca.crt"] == authority.bundle
    assert trusts(authority.bundle, data["tls.crt"], NOW)
    assert not trusts(Authority.create(NOW).bundle, data["tls.crt"], NOW)


def test_the_longest_names_fit() -> None:
    data = server_secret(Authority.create(NOW), "n" * 40, "s" * 63, NOW)
    assert not needs_rotation(data["tls.crt"], NOW)


def test_the_operators_certificate_is_a_clients() -> None:
    authority = Authority.create(NOW)
    tls = client_tls(authority, NOW)
    certificate = x509.load_pem_x509_certificate(tls.pair.certificate)
    assert list(certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [
        ExtendedKeyUsageOID.CLIENT_AUTH
    ]
    assert not trusts(tls.authorities, tls.pair.certificate, NOW)
    store = Store(x509.load_pem_x509_certificates(tls.authorities))
    PolicyBuilder().store(store).time(NOW).build_client_verifier().verify(certificate, [])


def test_a_certificate_is_renewed_after_two_thirds_of_its_life() -> None:
    pem = secret(Authority.create(NOW), NOW)["tls.crt"]
    certificate = x509.load_pem_x509_certificate(pem)
    life = certificate.not_valid_after_utc - certificate.not_valid_before_utc
    due = certificate.not_valid_before_utc + life * 2 / 3
    assert not needs_rotation(pem, due - timedelta(seconds=1))
    assert needs_rotation(pem, due)
    assert needs_rotation(pem, certificate.not_valid_after_utc + timedelta(days=1))


def test_a_certificate_works_on_a_node_whose_clock_is_behind() -> None:
    authority = Authority.create(NOW)
    assert trusts(authority.bundle, secret(authority, NOW)["tls.crt"], NOW - timedelta(minutes=4))


def test_a_certificate_of_a_clock_that_was_wrong_is_renewed_once_that_is_set_back() -> None:
    authority = Authority.create(NOW - timedelta(days=9))
    pem = secret(authority, NOW + timedelta(hours=9))["tls.crt"]
    assert not trusts(authority.bundle, pem, NOW)
    assert needs_rotation(pem, NOW)


def test_no_certificate_outlives_what_signed_it() -> None:
    authority = Authority.create(NOW)
    late = NOW + AUTHORITY_LIFE - timedelta(days=1)
    leaf = x509.load_pem_x509_certificate(secret(authority, late)["tls.crt"])
    signer = x509.load_pem_x509_certificate(authority.signer.certificate)
    assert leaf.not_valid_after_utc == signer.not_valid_after_utc
    with pytest.raises(ValueError, match="it can sign nothing more"):
        secret(authority, NOW + AUTHORITY_LIFE)


class TestReplacingTheAuthority:
    def test_nothing_is_due_in_the_first_two_thirds(self) -> None:
        authority = Authority.create(NOW)
        assert authority.advance(NOW) is authority
        assert authority.advance(DUE - timedelta(days=1)) is authority

    def test_the_next_one_is_trusted_before_it_signs(self) -> None:
        first = Authority.create(NOW)
        both = first.advance(DUE)
        assert both.signer == first.signer
        assert both.bundle.startswith(first.bundle)
        assert both.advance(DUE + OVERLAP / 2) is both
        second = both.advance(DUE + OVERLAP)
        assert second.signer == both.following
        assert second.following is None

    def test_the_old_one_is_trusted_for_what_it_signed_and_forgotten_after_its_time(self) -> None:
        first = Authority.create(NOW)
        leaf = secret(first, DUE)["tls.crt"]
        second = first.advance(DUE).advance(DUE + OVERLAP)
        assert trusts(second.bundle, leaf, DUE + OVERLAP)
        gone = second.advance(NOW + AUTHORITY_LIFE + timedelta(seconds=1))
        assert gone.previous == b""
        assert gone.signer == second.signer

    @pytest.mark.parametrize("before", [Authority.create(NOW), Authority.create(NOW).advance(DUE)])
    def test_an_install_that_was_away_for_years_can_sign_at_once(self, before: Authority) -> None:
        late = NOW + AUTHORITY_LIFE * 2
        authority = before.advance(late)
        assert trusts(authority.bundle, secret(authority, late)["tls.crt"], late)
        assert authority.advance(late) is authority

    @pytest.mark.parametrize("clock", [NOW + timedelta(hours=9), NOW + AUTHORITY_LIFE * 2])
    @pytest.mark.parametrize("before", [Authority.create(NOW), Authority.create(NOW).advance(DUE)])
    def test_one_that_was_made_while_the_clock_was_wrong_is_made_anew(self, before: Authority, clock: datetime) -> None:
        wrong = Authority.create(clock)
        for authority in (wrong, wrong.advance(clock + AUTHORITY_LIFE * 2 / 3), before.advance(clock)):
            right = authority.advance(NOW)
            assert trusts(right.bundle, secret(right, NOW)["tls.crt"], NOW)
            assert right.advance(NOW) is right

    def test_a_next_one_that_is_made_already_takes_over_when_the_old_one_ends(self) -> None:
        both = Authority.create(NOW).advance(DUE)
        assert both.advance(NOW + AUTHORITY_LIFE) == Authority(both.following or both.signer)

    @settings(max_examples=15)
    @given(st.lists(st.integers(150, 600), min_size=40, max_size=60))
    def test_pods_and_operator_trust_each_other_through_every_replacement(self, hours: list[int]) -> None:
        """The operator comes by every 25 days at the latest, and pods have what it wrote the last time."""
        now = NOW
        authority = Authority.create(now)
        pod = secret(authority, now)
        for pause in hours:
            now += timedelta(hours=pause)
            authority = authority.advance(now)
            assert trusts(authority.bundle, pod["tls.crt"], now)
            assert trusts(pod["ca.crt"], secret(authority, now)["tls.crt"], now)
            if needs_rotation(pod["tls.crt"], now):
                pod = secret(authority, now)
            pod["ca.crt"] = authority.bundle

    def test_every_step_survives_its_secret(self) -> None:
        authority = Authority.create(NOW)
        for now in (NOW, DUE, DUE + OVERLAP):
            authority = authority.advance(now)
            assert Authority.from_secret(authority.to_secret()) == authority


class TestDamage:
    @pytest.mark.parametrize("field", ["tls.crt", "tls.key", "next.crt", "next.key", "previous.crt"])
    @pytest.mark.parametrize("content", [b"damaged", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
    def test_a_damaged_field_is_named(self, field: str, content: bytes) -> None:
        data = Authority.create(NOW).advance(DUE).to_secret() | {field: content}
        with pytest.raises(DamagedPEM, match=rf"^{field}.*delete it"):
            Authority.from_secret(data)

    def test_an_empty_secret_is_damaged(self) -> None:
        with pytest.raises(DamagedPEM, match=r"tls\.crt is missing"):
            Authority.from_secret({})

    def test_a_key_of_another_certificate_is_refused(self) -> None:
        data = Authority.create(NOW).to_secret() | {"tls.key": Authority.create(NOW).signer.key}
        with pytest.raises(DamagedPEM, match=r"tls\.key is not the key of tls\.crt"):
            Authority.from_secret(data)

    def test_a_key_of_another_kind_is_refused(self) -> None:
        key = rsa.generate_private_key(65537, 2048).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        with pytest.raises(DamagedPEM, match=r"tls\.key is no ECDSA key"):
            Authority.from_secret(Authority.create(NOW).to_secret() | {"tls.key": key})

    def test_rotation_of_what_is_no_certificate_is_an_error(self) -> None:
        with pytest.raises(DamagedPEM):
            needs_rotation(b"damaged", NOW)
