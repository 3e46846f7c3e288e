import threading
from pathlib import Path

import pytest

from arctic_cli import corpus


def test_two_who_prepare_a_corpus_at_once_do_it_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def write(unpacked: Path, folder: Path) -> None:
        begun.set()
        assert go_on.wait(60)
        (folder / "text.txt").write_text("text")

    monkeypatch.setattr(corpus, "_unpack_packages", lambda scratch: scratch)
    monkeypatch.setattr(corpus, "_WRITERS", {"general": write, "code": write})
    made: list[bool] = []
    first, second = (
        threading.Thread(target=lambda: made.append(corpus.prepare_corpus(tmp_path / "corpus"))) for _ in range(2)
    )
    first.start()
    assert begun.wait(60)
    second.start()
    second.join(1)  # without a lock it would be over, or in the first one's way
    go_on.set()
    for each in (first, second):
        each.join()
    assert sorted(made) == [False, True]
    assert {path.name for path in (tmp_path / "corpus").glob("*/text.txt")} == {"text.txt"}
    assert not corpus.prepare_corpus(tmp_path / "corpus")
