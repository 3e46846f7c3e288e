"""What counts as failed, and which requests a change is charged with."""

from steady_load import Asked

from benchmarks.rollout import Span, wrong


def asked(began, seconds=1.0, *, long=False, failed="", text="the same"):
    return Asked(began, seconds, long, failed, text)


def test_a_request_belongs_to_all_that_happens_while_it_is_open():
    early, across, late = asked(0), asked(2.5), asked(5)
    assert Span(1, 3).of([early, across, late]) == [across]
    assert Span(3, 5).of([early, across, late]) == [across]


def test_what_says_something_else_than_most_of_its_kind_has_failed():
    refused, other = asked(0, failed="503", text=""), asked(1, text="something else")
    usual = [asked(each) for each in range(3)] + [asked(each, long=True, text="much longer") for each in range(2)]
    assert wrong([refused, *usual, other]) == [refused, other]
