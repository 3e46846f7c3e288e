from pathlib import Path

import pytest

from arctic_cluster import shell


def test_uv_is_the_one_that_make_uses_where_none_is_at_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "scripts").mkdir()
    script = tmp_path / "scripts" / "bootstrap.sh"
    script.write_text("#!/bin/sh\necho /cache/uv\n")
    script.chmod(0o755)
    monkeypatch.setattr(shell, "CHECKOUT", tmp_path)
    monkeypatch.setattr(shell.shutil, "which", lambda command: None)
    monkeypatch.delenv("UV", raising=False)
    assert shell.uv() == "/cache/uv"
    monkeypatch.setenv("UV", "/my/uv")
    assert shell.uv() == "/my/uv"
