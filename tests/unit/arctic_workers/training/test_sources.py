import errno
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from arctic_api.training import Source
from arctic_workers.training.data import sources
from arctic_workers.training.data.sources import file_path, read_documents
from arctic_workers.training.errors import Refused


def read(path: Path | str, form: str = "text") -> list[str]:
    source = Source.model_validate({"name": "s", "category": "code", "uri": f"file://{path}", "format": form})
    return list(read_documents(source, lambda place: place))


def test_a_folder_of_text_gives_one_document_a_file_in_sorted_order(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name, text in (("b.txt", "two"), ("a.txt", "one"), ("sub/c.txt", "three"), (".hidden", "no")):
        (tmp_path / name).write_text(text)
    assert read(tmp_path) == ["one", "two", "three"]
    assert read(tmp_path / "*.txt") == ["one", "two"]
    assert read(tmp_path / "a.txt") == ["one"]


def test_all_formats_give_the_same_texts(tmp_path: Path) -> None:
    texts = ["eins\n", "zwei ü", "", "vier"]
    (tmp_path / "d.jsonl").write_text("\n".join(json.dumps({"text": text, "n": 1}) for text in texts) + "\n\n")
    pyarrow.parquet.write_table(pyarrow.table({"text": texts, "n": [1] * 4}), tmp_path / "d.parquet")
    datasets.disable_progress_bars()
    datasets.Dataset.from_dict({"text": texts}).save_to_disk(str(tmp_path / "hf"))
    assert read(tmp_path / "d.jsonl", "jsonl") == texts
    assert read(tmp_path / "d.parquet", "parquet") == texts
    assert read(tmp_path / "hf", "hf") == texts


def test_a_mount_says_where_the_path_really_is(tmp_path: Path) -> None:
    assert file_path("file:///corpus/a%20b", lambda p: p.replace("/corpus", "/real"), "x") == Path("/real/a b")


@pytest.mark.parametrize("uri", ["s3://bucket/x", "hf://a/b", "file://host/x", "/plain"])
def test_other_uris_are_refused(uri: str) -> None:
    with pytest.raises(Refused, match=re.escape(uri)):
        file_path(uri, lambda p: p, "source s")


@pytest.mark.parametrize(
    ("name", "content", "form", "says"),
    [
        ("none.txt", None, "text", "no text file"),
        ("x.jsonl", b'{"text": "a"}\n{"txt": 1}\n', "jsonl", "line 2"),
        ("x.jsonl", b'{"text": 3}\n', "jsonl", "int, not a string"),
        ("x.jsonl", b"[]\n", "jsonl", "line 1"),
        ("x.jsonl", b'{"text":' + b"[" * 100_000, "jsonl", "line 1"),
        ("x.parquet", b"PAR1 no", "parquet", "not whole parquet"),
        ("none", None, "hf", "save_to_disk"),
    ],
)
def test_a_bad_source_is_refused_with_its_place(
    tmp_path: Path, name: str, content: bytes | None, form: str, says: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(Refused, match=says) as caught:
        read(tmp_path / name, form)
    assert name in caught.value.message


def test_a_parquet_file_with_a_damaged_page_is_refused_with_its_place(tmp_path: Path) -> None:
    table = pyarrow.table({"text": [f"hello world {i}" * 20 for i in range(3000)]})
    pyarrow.parquet.write_table(table, tmp_path / "d.parquet", compression="snappy")
    content = bytearray((tmp_path / "d.parquet").read_bytes())
    for place in (20, 200, 1000):
        damaged = content[:place] + b"\xff" * 8 + content[place + 8 :]
        (tmp_path / "d.parquet").write_bytes(damaged)
        with pytest.raises(Refused, match=r"source s: .*d\.parquet"):
            read(tmp_path / "d.parquet", "parquet")


def test_a_column_that_is_not_utf_8_is_refused_with_its_place(tmp_path: Path) -> None:
    buffers = (pyarrow.py_buffer(bytes([0, 0, 0, 0, 2, 0, 0, 0])), pyarrow.py_buffer(b"\xff\xfe"))
    column = pyarrow.StringArray.from_buffers(1, *buffers)
    pyarrow.parquet.write_table(pyarrow.table({"text": column}), tmp_path / "d.parquet")
    with pytest.raises(Refused, match=r"source s: .*d\.parquet: not whole parquet .*utf-8"):
        read(tmp_path / "d.parquet", "parquet")


@pytest.mark.parametrize("form", ["text", "jsonl", "parquet"])
@pytest.mark.parametrize(("number", "final"), [(errno.EACCES, True), (errno.EIO, False), (errno.ESTALE, False)])
def test_only_errors_that_stay_are_final_and_all_name_the_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, number: int, final: bool
) -> None:
    def fail(_: Source, file: Path) -> Iterator[str]:
        raise OSError(number, os.strerror(number), str(file))
        yield

    monkeypatch.setitem(sources._READERS, form, fail)
    file = tmp_path / "f"
    file.write_text("x")
    with pytest.raises(Refused if final else OSError, match="source s: ") as caught:
        read(file, form)
    assert str(file) in str(caught.value)
    assert os.strerror(number) in str(caught.value)


def test_marks_and_halves_of_characters_do_not_stop_a_source(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "a \\ud83d b \\ud83e\\udd8a"}\n')
    assert read(tmp_path / "d.jsonl", "jsonl") == ["a \N{REPLACEMENT CHARACTER} b \N{FOX FACE}"]
    (tmp_path / "d.txt").write_bytes(b"\xef\xbb\xbfplain")
    assert read(tmp_path / "d.txt") == ["plain"]


def test_a_parquet_file_without_text_is_refused_with_the_columns_that_it_has(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"body": ["x"]}), tmp_path / "d.parquet")
    with pytest.raises(Refused, match=r'no column "text" \(found body\)'):
        read(tmp_path / "d.parquet", "parquet")
