"""How the time from a fault is divided, and when a service answers again."""

import pytest
from steady_load import Asked

from benchmarks.recovery import answers_again, recovery

HIT = 1767225600.0
"""2026-01-01T00:00:00Z."""


def pod(made, placed):
    return {
        "metadata": {"creationTimestamp": f"2026-01-01T00:00:{made:02}Z"},
        "status": {"startTime": f"2026-01-01T00:00:{placed:02}Z"},
    }


@pytest.mark.parametrize(
    ("noticed", "pods", "parts"),
    [
        (2, [pod(5, 6), pod(4, 9)], (2, 3, 4, 11)),
        # A container began anew in its pod: nothing was waited for, or scheduled.
        (2, [], (2, 0, 0, 18)),
        # The cluster's moments are cut to whole seconds, and the status may say it last.
        (7.5, [pod(7, 7)], (7.5, 0, 0, 12.5)),
        (30, [pod(5, 6)], (20, 0, 0, 0)),
    ],
)
def test_the_parts_of_a_recovery_are_its_whole(noticed, pods, parts):
    found = recovery("any", HIT, HIT + noticed, pods, HIT + 20)
    assert found.parts == pytest.approx(parts)
    assert sum(found.parts) == found.seconds == 20


def asked(began, ended, failed=""):
    return Asked(began, ended - began, False, failed, "")


def test_a_service_answers_again_with_the_first_answer_after_which_none_fails():
    before = [asked(8, 9), asked(9, 9.5, "from before")]
    luck = [asked(10, 11, "503"), asked(11, 11.5), asked(12, 13, "503")]
    well = [asked(15, 16), asked(14, 17)]
    assert answers_again([*before, *luck], 10) is None
    assert answers_again([*before, *luck, *well], 10) is None, "it may be luck again"
    assert answers_again([*before, *luck, *well, asked(20, 21)], 10) == 16


def test_a_service_of_which_nothing_has_failed_yet_has_not_come_back():
    assert answers_again([asked(9, 9.5, "from before"), asked(9.9, 12), asked(30, 31)], 10) is None
