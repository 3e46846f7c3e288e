import bz2
import errno
import gzip
import json
import lzma
import os
import re
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from arctic_api.training import Source
from arctic_workers.training.data import rows, sources
from arctic_workers.training.data.sources import Tally, check_skipped, file_path, read_documents, unused_splits
from arctic_workers.training.errors import Refused

datasets.disable_progress_bars()


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


def test_a_folder_of_links_gives_what_they_lead_to(tmp_path: Path) -> None:
    """As volumes of ConfigMaps have their folders, and people put corpora together; a link back up leads nowhere."""
    corpus, mount = tmp_path / "corpus", tmp_path / "mount"
    (corpus / "sub").mkdir(parents=True)
    (mount / "..data" / "own").mkdir(parents=True)
    (corpus / "sub" / "a.txt").write_text("one")
    (mount / "..data" / "own" / "b.txt").write_text("two")
    (mount / "own").symlink_to("..data/own")
    (mount / "linked").symlink_to(corpus)
    (mount / "broken").symlink_to(tmp_path / "nowhere")
    (corpus / "sub" / "up").symlink_to(corpus)
    (corpus / "back").symlink_to(mount)
    assert read(mount) == ["one", "two"]


def test_what_two_ways_through_a_folder_lead_to_is_read_once(tmp_path: Path) -> None:
    """As of a corpus whose newest version has a second name."""
    (tmp_path / "v1").mkdir()
    (tmp_path / "v2").mkdir()
    (tmp_path / "v1" / "a.txt").write_text("one")
    (tmp_path / "v2" / "b.txt").write_text("two")
    (tmp_path / "latest").symlink_to("v2")
    assert sorted(read(tmp_path)) == ["one", "two"]


def test_all_formats_give_the_same_texts(tmp_path: Path) -> None:
    texts = ["eins\n", "zwei ü", "", "vier"]
    (tmp_path / "d.jsonl").write_text("\n".join(json.dumps({"text": text, "n": 1}) for text in texts) + "\n\n")
    pyarrow.parquet.write_table(pyarrow.table({"text": texts, "n": [1] * 4}), tmp_path / "d.parquet")
    datasets.Dataset.from_dict({"text": texts}).save_to_disk(str(tmp_path / "hf"))
    assert read(tmp_path / "d.jsonl", "jsonl") == texts
    assert read(tmp_path / "d.parquet", "parquet") == texts
    assert read(tmp_path / "hf", "hf") == texts


def test_a_mount_says_where_the_path_really_is(tmp_path: Path) -> None:
    assert file_path("file:///corpus/a%20b", lambda p: p.replace("/corpus", "/real"), "x") == Path("/real/a b")


def test_signs_that_would_end_the_path_of_a_url_are_a_globs_and_a_files_own(tmp_path: Path) -> None:
    (tmp_path / "c#").mkdir()
    for name in ("c#/part-01.txt", "c#/part-02.txt", "c#/part-100.txt", "c"):
        (tmp_path / name).write_text(name)
    assert read(tmp_path / "c#" / "part-??.txt") == ["c#/part-01.txt", "c#/part-02.txt"]
    assert read(tmp_path / "c#") == ["c#/part-01.txt", "c#/part-02.txt", "c#/part-100.txt"]


@pytest.mark.parametrize("uri", ["s3://bucket/x", "hf://a/b", "file://host/x", "file://localhost/x", "/plain"])
def test_other_uris_are_refused(uri: str) -> None:
    with pytest.raises(Refused, match=re.escape(uri)):
        file_path(uri, lambda p: p, "source s")


@pytest.mark.parametrize(
    ("name", "content", "form", "says"),
    [
        ("none.txt", None, "text", "no text file"),
        ("x.jsonl", b'{"text": "a"}\n{"txt": 1}\n', "jsonl", "line 2"),
        ("x.jsonl", b'{"text": 3}\n', "jsonl", "int, not a string"),
        ("x.jsonl", b"[]\n[]\n", "jsonl", "one JSON object a line"),
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

    monkeypatch.setitem(sources.READERS, form, fail)
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
    with pytest.raises(Refused, match=r'has no "text" \(its fields: body\)'):
        read(tmp_path / "d.parquet", "parquet")


LINES = [{"text": "eins"}, {"text": None}, {"id": 3}, {"text": "zwei"}, {"text": 4}]


def tallied(path: Path, form: str, **fields: str) -> tuple[list[str], Tally]:
    tally = Tally()
    described = {"name": "s", "category": "code", "uri": f"file://{path}", "format": form, **fields}
    return list(read_documents(Source.model_validate(described), lambda place: place, tally)), tally


def test_rows_without_a_usable_text_are_left_out_and_counted(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_text("\n".join([*map(json.dumps, LINES), "{broken", "[1]"]))
    texts, tally = tallied(tmp_path / "d.jsonl", "jsonl", maxSkipped="90%")
    assert (texts, tally.rows, tally.skipped) == (["eins", "zwei"], 7, 5)
    assert tally.first_skipped == f'{tmp_path}/d.jsonl, line 2 has no text: its "text" is null, not a string'


@pytest.mark.parametrize("form", ["parquet", "hf"])
def test_nulls_of_columns_are_left_out_and_counted(tmp_path: Path, form: str) -> None:
    column = {"text": ["eins", None, "zwei", None]}
    if form == "parquet":
        pyarrow.parquet.write_table(pyarrow.table(column), tmp_path / "d")
    else:
        datasets.Dataset.from_dict(column).save_to_disk(str(tmp_path / "d"))
    texts, tally = tallied(tmp_path / "d", form, maxSkipped="50%")
    assert (texts, tally.rows, tally.skipped) == (["eins", "zwei"], 4, 2)
    assert tally.first_skipped.startswith(f"{tmp_path}/d, row 2 has no text")


@pytest.mark.parametrize(("bad", "refused"), [(1, False), (2, True)])
def test_a_source_is_refused_only_above_its_share_of_skipped_rows(tmp_path: Path, bad: int, refused: bool) -> None:
    lines = [json.dumps({"text": "x"})] * (100 - bad) + ["{}"] * bad
    (tmp_path / "d.jsonl").write_text("\n".join(lines))
    if not refused:
        assert len(tallied(tmp_path / "d.jsonl", "jsonl")[0]) == 99
        return
    with pytest.raises(
        Refused, match=r"2 of 100 rows have no usable text, more than maxSkipped 1%; the first: .*d\.jsonl, "
    ):
        tallied(tmp_path / "d.jsonl", "jsonl")


def test_as_many_rows_as_the_share_allows_may_be_left_out() -> None:
    for percent in range(101):
        source = Source.model_validate(
            {"name": "s", "category": "code", "uri": "file:///d", "format": "jsonl", "maxSkipped": f"{percent}%"}
        )
        check_skipped(source, Tally(rows=100, skipped=percent))


def test_a_column_is_read_whose_name_another_one_has_within(tmp_path: Path) -> None:
    table = pyarrow.table({"meta": [{"text": "inner"}], "meta.text": ["own"]})
    pyarrow.parquet.write_table(table, tmp_path / "d.parquet")
    assert tallied(tmp_path / "d.parquet", "parquet", field="meta.text")[0] == ["own"]


PACKERS = {"gz": gzip.compress, "xz": lzma.compress, "bz2": bz2.compress, "zst": zstandard.compress}


@pytest.mark.parametrize("kind", PACKERS)
def test_packed_files_are_known_by_their_content(tmp_path: Path, kind: str) -> None:
    pack = PACKERS[kind]
    first, second = ("".join(json.dumps({"text": text}) + "\n" for text in texts).encode() for texts in ("ab", "cd"))
    (tmp_path / "named-otherwise").write_bytes(pack(first) + pack(second))  # as appended to: two streams in one file
    assert tallied(tmp_path / "named-otherwise", "jsonl")[0] == list("abcd")
    (tmp_path / f"d.json.{kind}").write_bytes(pack(first))
    assert tallied(tmp_path, "jsonl")[0] == list("ab")
    (tmp_path / "t").write_bytes(pack("Zeile ü\n".encode()))
    assert tallied(tmp_path / "t", "text")[0] == ["Zeile ü\n"]


@pytest.mark.parametrize("kind", PACKERS)
def test_a_packed_file_that_is_cut_off_is_refused_with_its_place(tmp_path: Path, kind: str) -> None:
    packed = PACKERS[kind]("".join(f'{{"text": "{i * i}"}}\n' for i in range(5000)).encode())
    (tmp_path / "d").write_bytes(packed[:-20])
    with pytest.raises(Refused, match=r"source s: .*/d: "):
        tallied(tmp_path / "d", "jsonl")


@pytest.mark.parametrize("written", ['[{"text": "a"},\n {"text": "b"}]', '{"text": "a"}\n{"text": "b"}\n', " [\n]"])
def test_a_json_file_has_an_object_a_line_or_one_array(tmp_path: Path, written: str) -> None:
    (tmp_path / "d.json").write_text(written)
    assert tallied(tmp_path, "jsonl")[0] == (["a", "b"] if "a" in written else [])


def test_elements_of_an_array_are_read_however_they_are_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "_READ", 3)
    texts = ["a, ]", 'x"[{', "", "ü" * 50]
    (tmp_path / "d.json").write_text(json.dumps([{"text": text} for text in texts], indent=2))
    assert tallied(tmp_path, "jsonl")[0] == texts
    (tmp_path / "d.json").write_text('[{"text": "a"}, {"te')
    with pytest.raises(Refused, match=r"d\.json: element 2 of the JSON array can't be read"):
        tallied(tmp_path, "jsonl")


def test_metadata_beside_lines_is_no_part_of_a_source(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl.gz").write_bytes(gzip.compress(b'{"text": "a"}\n'))
    (tmp_path / "stats.json").write_text('{"n": 1}')
    assert tallied(tmp_path, "jsonl")[0] == ["a"]


def test_text_under_another_name_is_read_by_it_and_the_names_there_are_said(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_text('{"content": "a", "id": 1}\n')
    pyarrow.parquet.write_table(pyarrow.table({"content": ["a"], "id": [1]}), tmp_path / "d.parquet")
    datasets.Dataset.from_dict({"content": ["a"], "id": [1]}).save_to_disk(str(tmp_path / "hf"))
    for name, form in (("d.jsonl", "jsonl"), ("d.parquet", "parquet"), ("hf", "hf")):
        assert tallied(tmp_path / name, form, field="content")[0] == ["a"]
        with pytest.raises(Refused, match=r'has no "text" \(its fields: content, id\); write `field`'):
            tallied(tmp_path / name, form)


def test_the_train_split_is_read_and_the_others_are_named(tmp_path: Path) -> None:
    splits = {name: datasets.Dataset.from_dict({"text": [name]}) for name in ("test", "train", "validation")}
    datasets.DatasetDict(splits).save_to_disk(str(tmp_path))
    assert tallied(tmp_path, "hf")[0] == ["train"]
    assert tallied(tmp_path, "hf", split="test")[0] == ["test"]
    source = Source.model_validate({"name": "s", "category": "code", "uri": f"file://{tmp_path}", "format": "hf"})
    assert unused_splits(source, lambda path: path) == ["test", "validation"]
    with pytest.raises(Refused, match=r"has no split 'dev' \(there are: test, train, validation\)"):
        tallied(tmp_path, "hf", split="dev")
    with pytest.raises(Refused, match="is one data set without splits"):
        tallied(tmp_path / "test", "hf", split="dev")


def test_a_long_file_is_read_in_parts_that_end_with_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "TEXT_PART", 10)
    for text in ("one two\nthree\nfour\n", "x" * 25, "\n" * 11, "0123456789"):
        (tmp_path / "t").write_text(text)
        parts = tallied(tmp_path / "t", "text")[0]
        assert "".join(parts) == text
        assert all(0 < len(part) <= 10 for part in parts)
    (tmp_path / "t").write_text("one two\nthree\nfour\n")
    assert tallied(tmp_path / "t", "text")[0] == ["one two\n", "three\n", "four\n"]


@pytest.mark.parametrize("form", ["text", "jsonl"])
def test_memory_does_not_grow_with_a_file(tmp_path: Path, form: str) -> None:
    line = json.dumps({"text": "x" * 10_000}) + "\n"

    def peak(lines: int) -> int:
        with gzip.open(tmp_path / "d", "wt", compresslevel=1) as file:
            for _ in range(lines // 100):
                file.write(line * 100)
        tracemalloc.start()
        source = Source.model_validate({"name": "s", "category": "code", "uri": f"file://{tmp_path}/d", "format": form})
        assert sum(len(text) for text in read_documents(source, lambda path: path)) >= 10_000 * lines
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    small, large = peak(400), peak(3200)  # 4 and 32 MB
    assert large < small + 2_000_000


def test_what_has_no_line_ends_does_not_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "LONGEST_LINE", 20)
    (tmp_path / "d.jsonl").write_text('{"text": "' + "x" * 20)
    with pytest.raises(Refused, match="line 1 has more than 20 characters"):
        tallied(tmp_path / "d.jsonl", "jsonl")
