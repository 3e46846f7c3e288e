"""What time it is, whatever becomes of this machine's clock."""

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arctic_operator.certificates import Authority, client_tls, needs_rotation, server_secret
from arctic_operator.clock import ClusterClock

START = datetime(2026, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)


class Machine:
    """Two clocks of one machine, and the API server's."""

    def __init__(self) -> None:
        self.passed, self.moved = 0.0, timedelta(0)
        self.clock = ClusterClock(lambda: 1e6 + self.passed, lambda: self.true + self.moved)

    @property
    def true(self) -> datetime:
        return START + timedelta(seconds=self.passed)

    def answer(self) -> None:
        self.clock.hear(format_datetime(self.true.replace(microsecond=0), usegmt=True))


@given(st.lists(st.tuples(st.floats(0, 100), st.sampled_from([-HOUR, timedelta(0), HOUR]), st.booleans())))
def test_time_goes_on_steadily_whatever_becomes_of_the_machines_clock(steps):
    machine = Machine()
    machine.answer()
    last = machine.clock.now()
    for seconds, moved, heard in steps:
        machine.passed += seconds
        machine.moved = moved
        if heard:
            machine.answer()
        now = machine.clock.now()
        assert now >= last
        assert abs(now - machine.true) <= timedelta(seconds=2)
        last = now


@pytest.mark.parametrize("date", ["", "soon", "Thu, 32 Jan 2026 00:00:00 GMT", "Thu, 01 Jan 2026 00:00:00 -0000"])
def test_a_date_that_is_none_or_agrees_changes_nothing(date):
    machine = Machine()
    machine.answer()
    machine.clock.hear(date)
    assert machine.clock.now() == START


def test_the_machine_is_believed_until_the_api_server_has_answered():
    machine = Machine()
    machine.moved = -HOUR
    assert machine.clock.now() == START - HOUR
    machine.answer()
    assert machine.clock.now() == START
    machine.clock.hear(None)
    assert machine.clock.now() == START


def test_no_certificate_is_not_yet_valid_to_a_machine_whose_clock_is_an_hour_behind(build):
    from cryptography import x509

    authority = Authority.create(build.start)
    secret = server_secret(authority, "tiny", "team", build.start)
    for pem in (authority.signer.certificate, secret["tls.crt"], client_tls(authority, build.start).pair.certificate):
        assert x509.load_pem_x509_certificate(pem).not_valid_before_utc <= build.start - HOUR
        assert not needs_rotation(pem, build.start - HOUR)
