import gzip
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from arctic_api.training import ArcticTrainingSpec
from arctic_workers.training.data import survey
from arctic_workers.training.data.survey import Glance, glance

GlanceAt = Callable[..., list[Glance]]


@pytest.fixture
def glance_at(spec_of: Callable[..., ArcticTrainingSpec]) -> GlanceAt:
    def look(*sources: dict[str, Any], locate: Callable[[str], str] = lambda path: path) -> list[Glance]:
        named = [{"name": f"s{i}", "category": "code", "format": "jsonl", **source} for i, source in enumerate(sources)]
        spec = spec_of([{"tokens": 100}], 4096).model_copy(
            update={"data": ArcticTrainingSpec.model_fields["data"].annotation.model_validate({"sources": named})}
        )
        return glance(spec, locate)

    return look


def test_a_glance_finds_what_is_missing_and_what_cannot_be_read(glance_at: GlanceAt, tmp_path: Path) -> None:
    (tmp_path / "good.jsonl").write_text('{"text": "a"}\n{"id": 1}\n')
    (tmp_path / "other.jsonl").write_text(json.dumps({"content": "a", "id": 1}) + "\n")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no")
    seen = glance_at(
        {"uri": f"file://{tmp_path}/good.jsonl"},
        {"uri": f"file://{tmp_path}/none"},
        {"uri": f"file://{tmp_path}/other.jsonl"},
        {"uri": f"file://{tmp_path}/broken.parquet", "format": "parquet"},
    )
    assert [each.field for each in seen] == [f"data.sources[{i}]" for i in range(4)]
    (good, missing, other, broken) = (each.refusal for each in seen)
    assert good == ""  # how many rows are left out is known only at the end
    assert "s1: no jsonl file at" in missing
    assert "s2: the first 1 rows all have no usable text" in other
    assert 'other.jsonl, line 1 has no "text" (its fields: content, id); write `field`' in other
    assert "not whole parquet" in broken


@pytest.mark.parametrize("content", ["text", "messages"])
def test_files_that_begin_with_rows_that_are_null_may_be_all_right(
    glance_at: GlanceAt, tmp_path: Path, content: str
) -> None:
    (tmp_path / "sorted.jsonl").write_text(f'{{"{content}": null}}\n' * 60 + f'{{"{content}": "a"}}\n' * 6000)
    assert glance_at({"uri": f"file://{tmp_path}/sorted.jsonl", "content": content})[0].refusal == ""


def test_a_glance_tells_tokens_by_sizes_and_packed_files_by_their_content(glance_at: GlanceAt, tmp_path: Path) -> None:
    line = b'{"text": "abcdefg"}\n'
    (tmp_path / "plain.jsonl").write_bytes(line * 20)
    (tmp_path / "packed.jsonl").write_bytes(packed := gzip.compress(line * 20))
    sources = [{"uri": f"file://{tmp_path}/{name}.jsonl"} for name in ("plain", "packed")]
    plain, other = glance_at(*sources)
    assert (plain.tokens, plain.most_tokens) == (20 * len(line) // 4, 20 * len(line))
    assert (other.tokens, other.most_tokens) == (3 * len(packed) // 4, float("inf"))
    [said] = glance_at(sources[0] | {"content": "messages", "field": "text"})
    assert "no usable messages" in said.refusal


def test_a_source_that_does_not_answer_holds_up_no_other(
    glance_at: GlanceAt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(survey, "GLANCE_SECONDS", 3.0)  # all that a busy machine takes to read the others
    (tmp_path / "good.jsonl").write_text('{"text": "a"}\n')
    answer = threading.Event()

    def locate(path: str) -> str:
        if path.endswith("away"):
            answer.wait(60)
        return path

    names = ["away", "good.jsonl", "away", "good.jsonl", "nowhere"]
    seen = glance_at(*({"uri": f"file://{tmp_path}/{name}"} for name in names), locate=locate)
    answer.set()
    assert [each.in_time for each in seen] == [False, True, False, True, True]
    assert [bool(each.tokens or each.refusal) for each in seen] == [False, True, False, True, True]
