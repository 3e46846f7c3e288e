import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from arctic_api.training import ArcticTrainingSpec
from arctic_api.world import CORRECTABLE, TrainingWorld
from arctic_workers.training.checkpoint.store import CheckpointStore
from arctic_workers.training.data import prepare as module
from arctic_workers.training.data.checked import CHECKED
from arctic_workers.training.data.prepare import prepare
from arctic_workers.training.data.streams import Prepared, open_streams
from arctic_workers.training.data.tokenizer import TextEncoder
from arctic_workers.training.errors import Fenced, Refused

MakeWorld = Callable[..., TrainingWorld]


def claimed(folder: Path, epoch: int = 1) -> CheckpointStore:
    store = CheckpointStore(folder, epoch)
    store.claim("uid")
    return store


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return claimed(tmp_path / "run")


@pytest.fixture
def make_world(spec_of: Callable[..., ArcticTrainingSpec], tmp_path: Path) -> MakeWorld:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(40):
            (tmp_path / name / f"{i:02}.txt").write_text(f"{name} says {i} and {i * i}\n" * 5)

    def make(**changes: Any) -> TrainingWorld:
        content = spec_of([{"tokens": 100, "mixture": {"a": 3, "b": 1}}], 4096).wire()
        sources = [{"name": n, "category": "code", "uri": f"file:///corpus/{n}"} for n in ("a", "b", "unused")]
        content |= {"data": {"sources": sources}, "tokenizer": {"train": {"vocabSize": 300}}} | changes
        return TrainingWorld.model_validate(
            {
                "namespace": "ns",
                "name": "t",
                "uid": "uid",
                "first_host": "127.0.0.1",
                "spec": content,
                "attempt": 1,
                "epoch": 1,
                "runFolder": "/store/run",
                "mounts": [{"mountPath": "/corpus", "path": str(tmp_path)}],
            }
        )

    return make


def trained_bytes(prepared: list[Prepared]) -> dict[str, bytes]:
    return {source.name: (source.folder / "train.bin").read_bytes() for source in prepared}


def test_tokenizer_and_streams_are_made_once(make_world: MakeWorld, store: CheckpointStore, tmp_path: Path) -> None:
    prepared = prepare(make_world(), store)
    files = sorted(path for path in (tmp_path / "run").rglob("*") if path.is_file())
    times = [path.stat().st_mtime_ns for path in files]
    assert set(open_streams(prepared, "train")) == set(open_streams(prepared, "held-out")) == {"a", "b"}
    for path in (tmp_path / "a").iterdir():
        path.unlink()  # what a run trains on does not change with its sources
    assert prepare(make_world(), store) == prepared
    assert [path.stat().st_mtime_ns for path in files] == times
    there = sorted(path for path in (tmp_path / "run").rglob("*") if path.is_file())
    assert [path for path in there if path.name != CHECKED] == files


def test_damaged_streams_are_made_again_and_it_is_said_where_their_source_is_another_now(
    make_world: MakeWorld, store: CheckpointStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    prepared = prepare(make_world(), store)
    expected = trained_bytes(prepared)
    (prepared[0].folder / "train.bin").write_bytes(expected["a"][:-2])
    assert prepare(make_world(), store) == prepared
    assert trained_bytes(prepared) == expected
    assert "other tokens" not in caplog.text
    (prepared[0].folder / "train.bin").write_bytes(expected["a"][:-2])
    (tmp_path / "a" / "00.txt").write_text("a says something else now")
    assert prepare(make_world(), store) == prepared
    assert "source a: its tokens were damaged" in caplog.text


def test_a_source_that_the_curriculum_begins_to_use_is_prepared_too_and_the_others_keep_their_text(
    make_world: MakeWorld, store: CheckpointStore, tmp_path: Path
) -> None:
    first = make_world().spec.curriculum.wire()["stages"]
    first[0]["mixture"] = {"a": 1}
    before = prepare(make_world(curriculum={"stages": first}), store)
    assert set(open_streams(before, "train")) == {"a"}
    expected = trained_bytes(before)["a"]
    for path in (tmp_path / "a").iterdir():
        path.unlink()
    prepared = prepare(make_world(), store)
    assert set(open_streams(prepared, "train")) == set(open_streams(prepared, "held-out")) == {"a", "b"}
    assert trained_bytes(prepared)["a"] == expected
    assert len(list((tmp_path / "run" / "data").iterdir())) == 2


def test_a_wrong_source_is_named_before_others_are_read_though_another_of_a_longer_name_is_prepared(
    make_world: MakeWorld, store: CheckpointStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = {"sources": [{"name": "b-2024", "category": "code", "uri": "file:///corpus/b"}]}
    longer = {"stages": make_world().spec.curriculum.wire()["stages"]}
    longer["stages"][0]["mixture"] = {"b-2024": 1}
    prepare(make_world(data=data, curriculum=longer), store)
    for path in (tmp_path / "b").iterdir():
        path.unlink()
    monkeypatch.setattr(module, "_make_streams", lambda *_: pytest.fail("a source was read first"))
    with pytest.raises(Refused, match="source b: no text file at file:///corpus/b"):
        prepare(make_world(), store)


def test_an_edit_that_is_taken_back_finds_the_text_as_it_was(
    make_world: MakeWorld, store: CheckpointStore, tmp_path: Path
) -> None:
    before = prepare(make_world(), store)
    expected = trained_bytes(before)
    moved = make_world().spec.data.wire()
    moved["sources"][0]["uri"] = "file:///corpus/b"
    assert trained_bytes(prepare(make_world(data=moved), store)) == {"a": expected["b"], "b": expected["b"]}
    for path in (tmp_path / "a").iterdir():
        path.write_text("quite another text")
    assert prepare(make_world(), store) == before
    assert trained_bytes(before) == expected


def test_another_category_leaves_the_text_as_it_was(
    make_world: MakeWorld, store: CheckpointStore, tmp_path: Path
) -> None:
    before = prepare(make_world(), store)
    sources = make_world().spec.data.wire()["sources"]
    sources[0]["category"] = "math"
    prepared = prepare(make_world(data={"sources": sources}), store)
    assert [source.folder for source in prepared] == [source.folder for source in before]
    assert open_streams(prepared, "held-out")["a"].category == "math"


def test_what_is_held_out_of_a_source_decides_on_its_streams(make_world: MakeWorld, store: CheckpointStore) -> None:
    few = prepare(make_world(), store)
    data = make_world().spec.data.wire() | {"validation": {"fraction": 0.5}}
    half = prepare(make_world(data=data), store)
    lengths = [len(open_streams(prepared, "held-out")["a"].tokens) for prepared in (few, half)]
    assert lengths[0] < lengths[1]


def test_sources_for_validation_only_are_held_out_whole(
    make_world: MakeWorld, store: CheckpointStore, tmp_path: Path
) -> None:
    (tmp_path / "judge").mkdir()
    (tmp_path / "judge" / "x.txt").write_text("judged by this")
    content = make_world().spec.data.wire()
    content["validation"] = {"sources": [{"name": "a", "category": "math", "uri": "file:///corpus/judge"}]}
    prepared = prepare(make_world(data=content), store)
    held_out = open_streams(prepared, "held-out")
    assert [(stream.name, stream.category) for stream in held_out.values()] == [("validation.a", "math")]
    assert len(held_out["validation.a"].tokens) > 2
    assert set(open_streams(prepared, "train")) == {"a", "b"}


def test_a_source_for_validation_without_text_is_refused(
    make_world: MakeWorld, store: CheckpointStore, tmp_path: Path
) -> None:
    (tmp_path / "empty").write_text("")
    content = make_world().spec.data.wire()
    content["validation"] = {"sources": [{"name": "v", "category": "math", "uri": "file:///corpus/empty"}]}
    with pytest.raises(Refused, match="source v: there is no text in file:///corpus/empty"):
        prepare(make_world(data=content), store)


def test_a_source_that_cannot_be_read_is_named_before_others_take_their_time(
    make_world: MakeWorld, store: CheckpointStore, tmp_path: Path
) -> None:
    for path in (tmp_path / "b").iterdir():
        path.unlink()
    with pytest.raises(Refused, match="source b: no text file"):
        prepare(make_world(), store)
    assert not (tmp_path / "run" / "tokenizer").exists()


def test_what_was_left_out_of_a_source_is_known_for_the_life_of_a_run(
    make_world: MakeWorld, store: CheckpointStore, tmp_path: Path
) -> None:
    lines = [json.dumps({"content": f"text {i}"}) for i in range(8)] + ["{}", '{"content": null}']
    (tmp_path / "lines.jsonl").write_text("\n".join(lines))
    content = make_world().spec.data.wire()
    content["sources"][0] |= {"uri": "file:///corpus/lines.jsonl", "format": "jsonl", "field": "content"}
    content["sources"][0]["maxSkipped"] = "20%"
    prepare(make_world(data=content), store)
    (tmp_path / "lines.jsonl").unlink()
    found = prepare(make_world(data=content), store)[0].content()
    assert (found.documents, found.skipped, found.unused_splits) == (8, 2, ())
    assert found.tokens > 8 * 3


def test_a_run_that_stands_for_a_larger_one_uses_its_share_of_each_source_and_judges_by_all(
    make_world: MakeWorld, store: CheckpointStore, tmp_path: Path
) -> None:
    lines = [json.dumps({"text": f"text {i} of many"}) for i in range(2000)]
    (tmp_path / "lines.jsonl").write_text("\n".join(lines))
    content = make_world().spec.data.wire()
    content["sources"][0] |= {"uri": "file:///corpus/lines.jsonl", "format": "jsonl"}
    whole = prepare(make_world(data=content), store)[0].content()
    part = prepare(make_world(data=content | {"simulatedTokens": 400}), store)[0].content()  # of which it has 100
    assert part.held_out_tokens == whole.held_out_tokens
    assert 0.2 < part.tokens / whole.tokens < 0.3


def test_a_given_tokenizer_is_taken_over(make_world: MakeWorld, store: CheckpointStore, tmp_path: Path) -> None:
    prepare(make_world(), store)
    prepare(make_world(tokenizer={"uri": "file:///corpus/run/tokenizer"}), claimed(tmp_path / "second"))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "second" / "tokenizer" / name).read_bytes() == (
            tmp_path / "run" / "tokenizer" / name
        ).read_bytes()


def test_another_tokenizer_is_refused_once_the_run_has_one(make_world: MakeWorld, store: CheckpointStore) -> None:
    prepare(make_world(), store)
    with pytest.raises(Refused, match=r'"vocabSize": 300.*, and the manifest says .*"vocabSize": 400') as refused:
        prepare(make_world(tokenizer={"train": {"vocabSize": 400}}), store)
    assert refused.value.reason in CORRECTABLE


def test_a_source_without_text_is_refused_and_nothing_half_made_stays(
    make_world: MakeWorld, store: CheckpointStore, tmp_path: Path
) -> None:
    for path in (tmp_path / "b").iterdir():
        path.write_text("")
    with pytest.raises(Refused, match="source b: there is no text in file:///corpus/b"):
        prepare(make_world(), store)
    assert [folder.name[:2] for folder in (tmp_path / "run" / "data").iterdir()] == ["a-"]
    assert list((tmp_path / "run" / "staging" / "0000000001").iterdir()) == []


def test_what_an_attempt_had_half_made_at_its_end_goes_with_the_next_claim(
    make_world: MakeWorld, store: CheckpointStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_streams = module._make_streams

    def superseded(world: TrainingWorld, text: module._Text, encoder: TextEncoder, folder: Path) -> None:
        (folder / "train.bin").write_bytes(b"half")
        claimed(tmp_path / "run", 2)
        make_streams(world, text, encoder, folder)

    monkeypatch.setattr(module, "_make_streams", superseded)
    with pytest.raises(Fenced):
        prepare(make_world(), store)
    assert list((tmp_path / "run" / "data").iterdir()) == []
    assert [folder.name for folder in (tmp_path / "run" / "staging").iterdir()] == ["0000000002"]
