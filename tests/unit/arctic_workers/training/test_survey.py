import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from arctic_api.training import ArcticTrainingSpec
from arctic_workers.training.data.survey import glance


@pytest.fixture
def glance_at(spec_of: Callable[..., ArcticTrainingSpec]) -> Callable[..., list[tuple[str, str]]]:
    def look(*sources: dict[str, Any]) -> list[tuple[str, str]]:
        named = [{"name": f"s{i}", "category": "code", "format": "jsonl", **source} for i, source in enumerate(sources)]
        spec = spec_of([{"tokens": 100}], 4096).model_copy(
            update={"data": ArcticTrainingSpec.model_fields["data"].annotation.model_validate({"sources": named})}
        )
        return [(seen.field, seen.refusal) for seen in glance(spec, lambda path: path)]

    return look


def test_a_glance_finds_what_is_missing_and_what_cannot_be_read(
    glance_at: Callable[..., list[tuple[str, str]]], tmp_path: Path
) -> None:
    (tmp_path / "good.jsonl").write_text('{"text": "a"}\n{"id": 1}\n')
    (tmp_path / "other.jsonl").write_text(json.dumps({"content": "a", "id": 1}) + "\n")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no")
    seen = glance_at(
        {"uri": f"file://{tmp_path}/good.jsonl"},
        {"uri": f"file://{tmp_path}/none"},
        {"uri": f"file://{tmp_path}/other.jsonl"},
        {"uri": f"file://{tmp_path}/broken.parquet", "format": "parquet"},
    )
    assert [field for field, _ in seen] == [f"data.sources[{i}]" for i in range(4)]
    (good, missing, other, broken) = (refusal for _, refusal in seen)
    assert good == ""  # how many rows are left out is known only at the end
    assert "s1: no jsonl file at" in missing
    assert "s2: the first 1 rows all have no usable text" in other
    assert 'other.jsonl, line 1 has no "text" (its fields: content, id); write `field`' in other
    assert "not whole parquet" in broken
