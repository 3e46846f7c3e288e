import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from arctic_workers.training.data import streams, tokenizer
from arctic_workers.training.data.checked import CHECKED, is_as_written, keep_stamps

TEXTS = [f"document {i} says {i * i}" for i in range(20)]
HOUR = 3600


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> tokenizer.TextEncoder:
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save(tokenizer.train(TEXTS, 300), folder)
    return tokenizer.TextEncoder(folder)


@pytest.fixture
def folder(tmp_path: Path, encoder: tokenizer.TextEncoder) -> Path:
    """Streams that were written an hour ago."""
    streams.write_streams(tmp_path, encoder, TEXTS, 0.1)
    for file in streams.stream_files(tmp_path):
        os.utime(file, (time.time() - HOUR, time.time() - HOUR))
    return tmp_path


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Names of the streams whose digest is computed."""
    names, sha256 = [], streams.sha256

    def counted(path: Path) -> str:
        names.append(path.name)
        return sha256(path)

    monkeypatch.setattr(streams, "sha256", counted)
    return names


def test_streams_that_were_found_whole_are_not_read_again(folder: Path, read: list[str]) -> None:
    assert is_as_written(folder)
    assert sorted(read) == sorted(file.name for file in streams.stream_files(folder))
    read.clear()
    assert is_as_written(folder)
    assert read == []


def test_what_was_just_made_and_is_settled_is_not_read_at_the_next_start(folder: Path, read: list[str]) -> None:
    keep_stamps(folder)
    assert is_as_written(folder)
    assert read == []


def damage(file: Path, how: str) -> None:
    content, before = bytearray(file.read_bytes()), file.stat()
    content[10] ^= 1
    if how == "in place":
        with file.open("r+b") as opened:
            opened.write(content)
    elif how == "replaced, its time put back":
        file.rename(file.with_suffix(".old"))
        file.write_bytes(content)
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    else:
        file.write_bytes(content[:-2])
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("how", ["in place", "replaced, its time put back", "cut off, its time put back"])
def test_streams_that_have_changed_since_are_read_and_found_damaged(folder: Path, how: str) -> None:
    assert is_as_written(folder)
    damage(folder / "train.bin", how)
    assert not is_as_written(folder)


def test_another_index_is_believed_no_more_than_its_streams(folder: Path, read: list[str]) -> None:
    assert is_as_written(folder)
    index = folder / streams.INDEX
    index.write_text(index.read_text().replace('"sha256": "', '"sha256": "0'))
    assert not is_as_written(folder)


def test_streams_that_were_just_written_are_not_believed_by_their_time(folder: Path, read: list[str]) -> None:
    os.utime(folder / "train.bin")
    assert is_as_written(folder)
    assert not (folder / CHECKED).exists()


@pytest.mark.parametrize("content", [b"", b"[1", b"[]", b'{"files": 1}', b"\xff"])
def test_notes_that_can_not_be_read_cost_only_time(folder: Path, content: bytes) -> None:
    (folder / CHECKED).write_bytes(content)
    assert is_as_written(folder)


def test_a_copy_of_a_run_is_read_once(folder: Path, read: list[str], tmp_path_factory: Any) -> None:
    assert is_as_written(folder)
    copy = shutil.copytree(folder, tmp_path_factory.mktemp("copies") / "run")
    read.clear()
    assert is_as_written(copy)
    assert read
    read.clear()
    assert is_as_written(copy)
    assert not read
