"""How the values of a Secret become keys."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arctic_api.keys import digest_of, first_key, read_keys

KEYS = st.lists(st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=8), max_size=5)


@given(KEYS, st.sampled_from(["\n", "\r\n"]), st.sampled_from(["", "\n", "  \n\n"]))
def test_each_line_is_a_key_and_white_space_around_it_is_not(keys: list[str], newline: str, end: str) -> None:
    read = read_keys({"all": (newline.join(keys) + end).encode()})
    assert read.digests == {digest_of(key.encode()) for key in keys}
    assert read.problems == ()
    assert read_keys({key: f"{key}{end}".encode() for key in keys}).digests == read.digests


@pytest.mark.parametrize("line", [b"two words", b"caf\xc3\xa9", b"\xff\xfe", b"x" * 4097])
def test_a_line_that_no_client_can_send_is_told_by_its_place_alone(line: bytes) -> None:
    read = read_keys({"team": b"good\n" + line, "none": b"\n"})
    assert read.digests == {digest_of(b"good")}
    assert read.problems == ("team, line 2: write visible ASCII characters without spaces",)


@given(KEYS)
def test_the_first_key_is_one_of_those_that_are_read(keys: list[str]) -> None:
    values = {"a": b"\n  \n", "b": "\n".join(keys).encode(), "c": b"last"}
    assert first_key(values) == (keys[0] if keys else "last")
    assert digest_of((first_key(values) or "").encode()) in read_keys(values).digests


@pytest.mark.parametrize("values", [{}, {"a": b" \n"}, {"a": b"two words"}])
def test_where_there_is_no_key_there_is_no_first(values: dict[str, bytes]) -> None:
    assert first_key(values) is None
