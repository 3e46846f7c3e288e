import json
import math
from pathlib import Path

import pytest

from arctic_workers.evaluation.suites.form import DataError
from arctic_workers.evaluation.suites.perplexity import Perplexity


def written(path: Path, *rows: dict[str, str]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_tokens_weigh_alike_within_a_category_and_bytes_beside_them(tmp_path: Path) -> None:
    rows = [{"text": "abcd", "category": "code"}, {"text": "ab", "category": "code"}, {"text": "x", "category": "sql"}]
    suite = Perplexity(written(tmp_path / "texts.jsonl", *rows))
    figures = suite.figures({"perplexity/0": (3.0, 3, 4), "perplexity/1": (3.0, 1, 2), "perplexity/2": (0.0, 0, 1)})
    assert figures["perplexity, code"].value == pytest.approx(math.exp(6 / 4))
    assert figures["bits a byte, code"].value == pytest.approx(6 / 6 / math.log(2))
    assert figures["perplexity, code"].low <= figures["perplexity, code"].value <= figures["perplexity, code"].high
    assert figures["perplexity, sql"].value == 1.0


def test_an_empty_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="text 1 is empty"):
        Perplexity(written(tmp_path / "texts.jsonl", {"text": " ", "category": "code"}))
