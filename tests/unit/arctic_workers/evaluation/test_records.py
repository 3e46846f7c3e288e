"""Files of answers that are added to, and who writes into them."""

from contextlib import closing
from pathlib import Path

from arctic_workers.evaluation.records import Lines, read_lines


def test_what_was_being_written_when_its_writer_ended_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "suite" / "answers.jsonl"
    with closing(Lines(path)) as lines:
        lines.add({"question": "a"})
        lines.add({"question": "b"})
    path.write_text(path.read_text()[:-3])
    with closing(Lines(path)) as lines:
        assert lines.before == [{"question": "a"}]
        lines.add({"question": "c"})
    assert list(read_lines(path)) == [{"question": "a"}, {"question": "c"}]


def test_who_wrote_before_and_still_does_writes_where_nobody_reads(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    with closing(Lines(path)) as lost:
        lost.add({"question": "a"})
        with closing(Lines(path)) as next_one:
            lost.add({"question": "b", "by": "a pod on a node that was taken for lost"})
            next_one.add({"question": "b"})
            lost.add({"question": "c"})
    assert list(read_lines(path)) == [{"question": "a"}, {"question": "b"}]
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_full_disk_or_a_crash_left_of_a_line_costs_that_line_alone(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a": "cut o{"a": 2}\n\x00\x00\xff\n3\n{"a": 4}\n{"a"')
    with closing(Lines(path)) as lines:
        assert lines.before == [{"a": 1}, {"a": 4}]
    assert path.read_text() == '{"a": 1}\n{"a": 4}\n'
