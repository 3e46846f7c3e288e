"""Tokens there against tokens asked, as far as files tell."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from api_cases import TRAINING, apply_changes

from arctic_api.training import ArcticTrainingSpec
from arctic_api.world import Mount
from arctic_cli.data import Findings, look_at_data
from arctic_workers.training.data import survey
from arctic_workers.training.data.streams import folder_name

ASKED = 1_000_000
"""By the manifest, of its one source."""
HALF = {"spec.data.sources.0.uri": "file:///data", "spec.data.validation": {"fraction": 0.5}}
"""The other half of the text is held out."""


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "corpus"
    folder.mkdir()
    return folder


def look(corpus: Path, changes: dict[str, Any] | None = None, run_folder: Path | None = None) -> Findings:
    manifest = apply_changes(TRAINING, HALF | (changes or {}))
    mounts = [Mount(mount_path="/data", path=str(corpus))]
    return look_at_data(ArcticTrainingSpec.model_validate(manifest["spec"]), mounts, run_folder)


def sentences(found: Findings) -> list[str]:
    return [str(each) for each in (*found.problems, *found.notes)]


@pytest.mark.parametrize(("size", "said"), [(8 * ASKED, []), (4 * ASKED, ["about 500,000 tokens", "2.00 times"])])
def test_a_source_that_is_read_again_is_named(corpus: Path, size: int, said: list[str]) -> None:
    (corpus / "a.txt").write_text("x" * size)
    found = look(corpus)
    assert found.problems == []
    assert len(found.notes) == bool(said)
    assert all(part in str(note) for note in found.notes for part in said)


def test_what_a_simulated_run_leaves_out_is_not_there(corpus: Path) -> None:
    (corpus / "a.txt").write_text("x" * 8 * ASKED)
    [note] = look(corpus, {"spec.data.simulatedTokens": 10 * ASKED}).notes
    assert "about 100,000 tokens to train on, and the curriculum reads them about 10.00 times" in note.message


def test_sources_of_validation_alone_are_not_read_by_the_curriculum(corpus: Path) -> None:
    (corpus / "a.txt").write_text("x" * 4 * ASKED)
    (small := corpus.parent / "small.txt").write_text("x")
    held = {"name": "books", "category": "general", "uri": f"file://{small}"}
    assert sentences(look(corpus, {"spec.data.validation": {"sources": [held]}}, corpus.parent / "run")) == []


@pytest.mark.parametrize(
    ("content", "changes", "certain"),
    [
        (b"x" * (ASKED - 1), {}, True),
        (b"x" * ASKED, {}, False),  # were each byte a token, it would be enough
        (gzip.compress(b"x" * ASKED), {}, False),
        (json.dumps({"text": [{"role": "assistant", "content": "x"}]}).encode(), {"content": "messages"}, False),
    ],
)
def test_a_source_that_may_not_be_read_again_is_refused_where_its_files_are_certainly_too_small(
    corpus: Path, content: bytes, changes: dict[str, Any], certain: bool
) -> None:
    (corpus / "a.jsonl").write_bytes(content)
    source = {"whenExhausted": "refuse", **changes}
    if changes:
        source |= {"format": "jsonl", "field": "text"}
    found = look(corpus, {f"spec.data.sources.0.{name}": value for name, value in source.items()})
    assert bool(found.problems) is certain
    [said] = sentences(found)
    assert said.endswith("with whenExhausted: refuse the run ends before its first step")


def leave_prepared(run_folder: Path, source: str, tokens: int) -> None:
    """Leave what a run has of a source that it has prepared."""
    prepared = run_folder / "data" / folder_name(source, [])
    prepared.mkdir(parents=True)
    parts = {part: {"tokens": tokens, "documents": 1} for part in ("train", "held-out")}
    (prepared / "index.json").write_text(json.dumps({"parts": parts, "source": {}}))


def test_what_a_run_has_prepared_is_counted_and_not_looked_for(corpus: Path, tmp_path: Path) -> None:
    leave_prepared(tmp_path / "run", "books", 250_000)
    assert sentences(look(corpus / "gone", run_folder=tmp_path / "run")) == [
        "spec.data.sources[0]: source books has 250,000 tokens to train on, and the curriculum reads them 4.00 times"
    ]


def test_what_a_run_has_prepared_of_a_source_with_a_longer_name_is_not_taken_for_it(
    corpus: Path, tmp_path: Path
) -> None:
    leave_prepared(tmp_path / "run", "books-2024", 250_000)
    (corpus / "a.txt").write_text("x" * 8 * ASKED)
    assert sentences(look(corpus, run_folder=tmp_path / "run")) == []
    [said] = sentences(look(corpus / "gone", run_folder=tmp_path / "run"))
    assert "source books: no text file at file:///data" in said


def test_a_source_whose_mount_has_a_space_is_looked_at_though_its_uri_quotes_it(corpus: Path) -> None:
    spec = apply_changes(TRAINING, HALF | {"spec.data.sources.0.uri": "file:///the%20data/c#"})["spec"]
    [said] = sentences(
        look_at_data(ArcticTrainingSpec.model_validate(spec), [Mount(mount_path="/the data", path=str(corpus))])
    )
    assert f"no text file at file:///the%20data/c# (looked at {corpus}/c#)" in said


def test_a_source_that_was_not_looked_at_in_time_is_named(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(survey, "GLANCE_SECONDS", -1)
    assert sentences(look(corpus)) == [
        "spec.data.sources[0]: source books did not answer in time: whether it can be read is found out by the ranks"
    ]
