"""Numbers that people write as text."""

import re

import pytest
from generated_manifests import token_counts
from hypothesis import given
from hypothesis import strategies as st

from arctic_api.common import (
    DURATION_PATTERN,
    FOLDER_PATTERN,
    HINTS,
    LABEL_VALUE_PATTERN,
    MAX_WHOLE,
    MOUNT_PATH_PATTERN,
    NAME_PATTERN,
    TOKENS_PATTERN,
    parse_duration,
    parse_tokens,
)


@given(st.integers(0, MAX_WHOLE).flatmap(lambda count: st.tuples(st.just(count), token_counts(count))))
def test_every_way_to_write_a_token_count_means_the_same(written: tuple[int, int | str]) -> None:
    count, text = written
    assert parse_tokens(text) == count


@pytest.mark.parametrize(
    ("text", "count"),
    [("1T", 10**12), ("1500G", 15 * 10**11), ("1.5M", 1_500_000), ("0.001k", 1), (0, 0), ("007", 7)],
)
def test_token_units_are_decimal(text: int | str, count: int) -> None:
    assert parse_tokens(text) == count


@pytest.mark.parametrize(
    "text", ["500m", "1Ki", "-1", -1, "", "1.5", "1.0001k", "1 T", "1t", "T", "1\n", True, 1.0, "١"]
)
def test_what_is_no_whole_number_of_tokens_is_refused_with_what_to_write(text: object) -> None:
    with pytest.raises(ValueError, match=r"write a whole number or 1\.5k, 20M, 3G, 1T"):
        parse_tokens(text)  # type: ignore[arg-type]


def test_billions_are_refused_with_the_unit_that_is_meant() -> None:
    with pytest.raises(ValueError, match=re.escape("(write G for 10^9)")):
        parse_tokens("3B")


@pytest.mark.parametrize(
    ("text", "seconds"), [("1h30m", 5400), ("1.5s", 1.5), ("500ms", 0.5), ("0s", 0), ("1m1m", 120)]
)
def test_durations_are_gos(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["20min", "20", "", "-1s", "1d", "1 h", "s", "1s\n", "9999999h"])
def test_other_durations_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="write a duration such as"):
        parse_duration(text)


@pytest.mark.parametrize("path", ["a", "runs/first", ".hidden", "..a/...", "a.b/_-", "a/.b"])
def test_a_folder_stays_within_its_claim(path: str) -> None:
    assert re.search(FOLDER_PATTERN, path)
    assert re.search(MOUNT_PATH_PATTERN, f"/{path}")


@pytest.mark.parametrize("path", ["", ".", "..", "a/..", "../up", "a/./b", "a//b", "a/", "/a"])
def test_a_path_that_leads_elsewhere_is_refused(path: str) -> None:
    assert not re.search(FOLDER_PATTERN, path)
    assert not re.search(MOUNT_PATH_PATTERN, f"/{path}")


def test_a_name_of_a_child_stays_a_label() -> None:
    assert re.fullmatch(NAME_PATTERN, "a")
    assert not re.fullmatch(NAME_PATTERN, "a-")
    assert re.fullmatch(LABEL_VALUE_PATTERN, "")


def test_patterns_have_words_for_people() -> None:
    assert {TOKENS_PATTERN, DURATION_PATTERN, NAME_PATTERN} <= set(HINTS)
