from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from arctic_api.training import ArcticTrainingSpec
from arctic_api.world import TrainingWorld
from arctic_workers.training.data.prepare import prepare, source_weights
from arctic_workers.training.data.streams import open_streams
from arctic_workers.training.errors import Refused

MakeWorld = Callable[..., TrainingWorld]


@pytest.fixture
def make_world(spec_of: Callable[..., ArcticTrainingSpec], tmp_path: Path) -> MakeWorld:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(40):
            (tmp_path / name / f"{i:02}.txt").write_text(f"{name} says {i} and {i * i}\n" * 5)
    (tmp_path / "run").mkdir()

    def make(**changes: Any) -> TrainingWorld:
        content = spec_of([{"tokens": 100, "mixture": {"a": 3, "b": 1}}], 4096).wire()
        sources = [{"name": n, "category": "code", "uri": f"file:///corpus/{n}"} for n in ("a", "b", "unused")]
        content |= {"data": {"sources": sources}, "tokenizer": {"train": {"vocabSize": 300}}} | changes
        return TrainingWorld.model_validate(
            {
                "namespace": "ns",
                "name": "t",
                "uid": "uid",
                "hosts": ["127.0.0.1"],
                "spec": content,
                "attempt": 1,
                "epoch": 1,
                "runFolder": "/store/run",
                "mounts": [{"mountPath": "/corpus", "path": str(tmp_path)}],
            }
        )

    return make


def test_tokenizer_and_streams_are_made_once(make_world: MakeWorld, tmp_path: Path) -> None:
    folder = prepare(make_world(), tmp_path / "run")
    files = sorted(path for path in (tmp_path / "run").rglob("*") if path.is_file())
    times = [path.stat().st_mtime_ns for path in files]
    assert set(open_streams(folder, "train")) == set(open_streams(folder, "held-out")) == {"a", "b"}
    for path in (tmp_path / "a").iterdir():
        path.unlink()  # what a run trains on does not change with its sources
    assert prepare(make_world(), tmp_path / "run") == folder
    assert [path.stat().st_mtime_ns for path in files] == times
    assert sorted(path for path in (tmp_path / "run").rglob("*") if path.is_file()) == files


def test_damaged_streams_are_made_again(make_world: MakeWorld, tmp_path: Path) -> None:
    folder = prepare(make_world(), tmp_path / "run")
    expected = (folder / "a.train.bin").read_bytes()
    (folder / "a.train.bin").write_bytes(expected[:-2])
    assert prepare(make_world(), tmp_path / "run") == folder
    assert (folder / "a.train.bin").read_bytes() == expected


def test_a_source_that_the_curriculum_begins_to_use_is_prepared_too(make_world: MakeWorld, tmp_path: Path) -> None:
    first = make_world().spec.curriculum.wire()["stages"]
    first[0]["mixture"] = {"a": 1}
    folder = prepare(make_world(curriculum={"stages": first}), tmp_path / "run")
    assert set(open_streams(folder, "train")) == {"a"}
    folder = prepare(make_world(), tmp_path / "run")
    assert set(open_streams(folder, "train")) == {"a", "b"}


def test_sources_for_validation_only_are_held_out_whole(make_world: MakeWorld, tmp_path: Path) -> None:
    (tmp_path / "judge").mkdir()
    (tmp_path / "judge" / "x.txt").write_text("judged by this")
    content = make_world().spec.data.wire()
    content["validation"] = {"sources": [{"name": "a", "category": "math", "uri": "file:///corpus/judge"}]}
    folder = prepare(make_world(data=content), tmp_path / "run")
    held_out = open_streams(folder, "held-out")
    assert [(stream.name, stream.category) for stream in held_out.values()] == [("validation.a", "math")]
    assert set(open_streams(folder, "train")) == {"a", "b"}


def test_a_given_tokenizer_is_taken_over(make_world: MakeWorld, tmp_path: Path) -> None:
    prepare(make_world(), tmp_path / "run")
    (tmp_path / "second").mkdir()
    prepare(make_world(tokenizer={"uri": "file:///corpus/run/tokenizer"}), tmp_path / "second")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "second" / "tokenizer" / name).read_bytes() == (
            tmp_path / "run" / "tokenizer" / name
        ).read_bytes()


def test_a_source_without_text_is_refused_and_nothing_half_made_stays(make_world: MakeWorld, tmp_path: Path) -> None:
    for path in (tmp_path / "b").iterdir():
        path.write_text("")
    with pytest.raises(Refused, match="source b: there is no text in file:///corpus/b"):
        prepare(make_world(), tmp_path / "run")
    assert list((tmp_path / "run" / "data").iterdir()) == []


def test_weights_of_sources_follow_the_stages(spec_of: Callable[..., ArcticTrainingSpec]) -> None:
    stages = [{"tokens": 100, "mixture": {"a": 3, "b": 1}}, {"tokens": 100, "mixture": {"b": 1, "c": 0}}]
    sources = [{"name": n, "category": "code", "uri": f"file:///{n}"} for n in "abc"]
    spec = ArcticTrainingSpec.model_validate(spec_of(stages, 4096).wire() | {"data": {"sources": sources}})
    assert source_weights(spec) == {"a": 75, "b": 125}
