"""The text of the small model, and its folder to be changed."""

from pathlib import Path

import pytest

from arctic_workers.inference.http.text import Text


@pytest.fixture(scope="module")
def text(model_folder: Path) -> Text:
    return Text(model_folder)


@pytest.fixture
def folder(model_folder: Path, tmp_path: Path) -> Path:
    """A model's folder without its weights, to be changed."""
    for name in ("tokenizer.json", "config.json"):
        (tmp_path / name).write_bytes((model_folder / name).read_bytes())
    return tmp_path
