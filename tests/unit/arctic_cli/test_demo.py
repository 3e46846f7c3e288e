import json
from pathlib import Path

import pytest

from arctic_cli.demo import Steps


def test_a_step_is_noted_with_its_seconds_for_who_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARCTIC_PHASES", str(tmp_path / "phases"))
    steps = Steps(2)
    for title in ("install", "train: kubectl apply"):
        with steps.step(title):
            pass
    notes = [json.loads(line) for line in (tmp_path / "phases").read_text().splitlines()]
    assert [note["phase"] for note in notes] == ["install", "train"]
    assert all(isinstance(note["seconds"], float) for note in notes)
