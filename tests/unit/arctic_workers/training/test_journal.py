import json
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from arctic_workers.training.journal import JOURNAL, Entry, Journal, append_line, read_lines, that_hold


def entry(step: int, attempt: int = 1, **changes: object) -> Entry:
    figures = {"loss": 2.5, "learning_rate": 1e-3, "gradient_norm": 1.0, "tokens_per_second": 100.0, "mfu": 0.5}
    named = {"time": "2026-01-01T00:00:00Z", "attempt": attempt, "stage": "general", "step": step, "tokens": step * 10}
    return Entry(**{**named, **figures, **changes})  # type: ignore[arg-type]


def events(folder: Path) -> Iterator[Event]:
    """What an event file of TensorBoard holds: records of a length, its checksum, an Event and its checksum."""
    for path in sorted((folder / "tensorboard").iterdir()):
        content, at = path.read_bytes(), 0
        while at < len(content):
            (length,) = struct.unpack_from("<Q", content, at)
            event = Event()
            event.ParseFromString(content[at + 12 : at + 12 + length])
            yield event
            at += 12 + length + 4


def test_an_entry_is_a_line_and_an_event_with_its_scalars(tmp_path: Path) -> None:
    journal = Journal(tmp_path, 0)
    routers = [{"layer": 1, "load": [0.75, 0.25], "entropy": 0.9, "dead": [1], "dropped": 0.25}]
    measured = {"loss_by_source": {"books": 2.0}, "epochs": {"books": 1.5}, "seconds": {"data": 1.5}}
    journal.write(entry(3, routers=routers, **measured))
    journal.close()
    (line,) = read_lines(tmp_path / JOURNAL)
    assert (line["step"], line["loss_by_source"], line["routers"]) == (3, {"books": 2.0}, routers)
    (event,) = (event for event in events(tmp_path) if event.HasField("summary"))
    scalars = {value.tag: value.simple_value for value in event.summary.value}
    assert event.step == 3
    assert event.wall_time > 0
    assert scalars["loss"] == 2.5
    assert scalars["loss_by_source/books"] == 2.0
    assert scalars["epochs/books"] == 1.5
    assert scalars["seconds/data"] == 1.5
    assert scalars["router_imbalance/layer_1"] == 1.5
    assert scalars["router_dead_experts/layer_1"] == 1.0
    assert scalars["router_dropped/layer_1"] == 0.25


def test_an_attempt_that_went_back_tells_tensorboard_from_which_step_on(tmp_path: Path) -> None:
    for step in (0, 5):
        journal = Journal(tmp_path, step)
        journal.write(entry(step + 1))
        journal.close()
    (start,) = (event for event in events(tmp_path) if event.HasField("session_log"))
    assert (start.step, start.session_log.status) == (5, SessionLog.START)


@pytest.mark.parametrize(
    ("steps", "kept"), [([1, 2, 3], [1, 2, 3]), ([1, 2, 3, 2, 4], [1, 2, 4]), ([5, 6, 1], [1]), ([], [])]
)
def test_later_entries_of_a_step_hold_and_what_came_after_it_before_does_not(steps: list[int], kept: list[int]) -> None:
    assert [line["step"] for line in that_hold([{"step": step} for step in steps])] == kept


def test_a_line_that_was_cut_is_passed_over_and_no_file_is_none(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    assert read_lines(path) == []
    path.write_text(json.dumps({"step": 1}) + "\n" + '{"step": 2, "lo')
    assert read_lines(path) == [{"step": 1}]


def test_a_line_that_was_cut_spoils_none_that_follows(tmp_path: Path) -> None:
    path = tmp_path / JOURNAL
    for line in (1, 2):
        append_line(path, {"step": line})
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'
    path.write_text(path.read_text()[:-3])
    append_line(path, {"step": 3})
    path.write_text(path.read_text() + '{"step": 4, "lo')
    journal = Journal(tmp_path, 0)
    journal.write(entry(5))
    journal.close()
    assert [line["step"] for line in read_lines(path)] == [1, 3, 5]


def test_a_journal_that_is_begun_anew_within_a_second_keeps_the_events_of_the_one_before(tmp_path: Path) -> None:
    for step in range(4):
        journal = Journal(tmp_path, step)
        journal.write(entry(step + 1))
        journal.close()
    assert [event.step for event in events(tmp_path) if event.HasField("summary")] == [1, 2, 3, 4]
