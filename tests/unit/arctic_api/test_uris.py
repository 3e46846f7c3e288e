"""What is a path in a URI `file:///...`."""

from pathlib import Path

import pytest

from arctic_api.uris import path_of, uri_of


@pytest.mark.parametrize(
    ("uri", "path"),
    [
        ("file:///data/part-??.parquet", "/data/part-??.parquet"),
        ("file:///data/c#/*.jsonl", "/data/c#/*.jsonl"),
        ("file:///data/a;b/[0-9].txt", "/data/a;b/[0-9].txt"),
        ("file:////data//a", "//data//a"),
        ("file:///", "/"),
    ],
)
def test_all_behind_the_scheme_is_the_path(uri: str, path: str) -> None:
    assert path_of(uri) == path


@pytest.mark.parametrize(
    ("uri", "path"),
    [
        ("file:///corpus/a%20b", "/corpus/a b"),
        ("file:///corpus/a%3F%23b", "/corpus/a?#b"),
        ("file:///corpus/100%25", "/corpus/100%"),
        ("file:///corpus/100%/50%zz", "/corpus/100%/50%zz"),  # no digits follow: it stands for itself
    ],
)
def test_what_is_quoted_is_read_as_what_it_stands_for(uri: str, path: str) -> None:
    assert path_of(uri) == path


@pytest.mark.parametrize("name", ["plain", "a b", "c#", "part-?", "100%", "a%20b", "[x]*", "ü漢"])
def test_a_path_is_found_again_in_its_uri(name: str) -> None:
    path = f"/store/{name}/export"
    assert path_of(uri_of(path)) == path
    assert path_of(Path(path).as_uri()) == path


def test_of_what_a_uri_is_written_from_percent_alone_is_quoted() -> None:
    assert uri_of("/my store/c#/100%/é") == "file:///my store/c#/100%25/é"


def test_a_relative_path_is_of_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert path_of(uri_of("volumes/store")) == f"{tmp_path}/volumes/store"


@pytest.mark.parametrize(
    "other", ["", "/plain%20path", "hf://org/name", "s3://bucket/a%20b", "https://host/a%20b", "file://host/a%20b"]
)
def test_anything_else_stays_as_it_stands(other: str) -> None:
    assert path_of(other) == other
