import os
import threading
from pathlib import Path

import click
import pytest

from arctic_cli import corpus


def write_a_text(unpacked: Path, folder: Path) -> None:
    (folder / "text.txt").write_text("text")


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


@pytest.fixture
def _without_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "_unpack_packages", lambda scratch: scratch)
    monkeypatch.setattr(corpus, "_WRITERS", {"general": write_a_text, "code": write_a_text})


@pytest.mark.usefixtures("_without_packages")
def test_what_others_have_in_the_folder_stays_as_it_is(tmp_path: Path) -> None:
    key, script, elsewhere = tmp_path / "id_rsa", tmp_path / ".code" / "run.sh", tmp_path / "gone"
    for path, mode in ((key, 0o600), (script, 0o700)):
        path.parent.mkdir(exist_ok=True)
        path.touch()
        path.chmod(mode)
    elsewhere.symlink_to(tmp_path / "nowhere")
    tmp_path.chmod(0o700)
    assert corpus.prepare_corpus(tmp_path)
    assert [path.stat().st_mode & 0o777 for path in (tmp_path, key, script)] == [0o700, 0o600, 0o700]


@pytest.mark.usefixtures("_without_packages")
def test_a_folder_of_others_that_is_called_as_a_category_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "mine.py").write_text("mine")
    with pytest.raises(click.ClickException, match="code is there and not of a corpus: name another folder"):
        corpus.prepare_corpus(tmp_path)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file() and path.name != ".lock"] == ["mine.py"]


@pytest.mark.usefixtures("_without_packages")
def test_pods_of_another_user_can_read_a_corpus_and_one_that_broke_off_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "corpus"

    def break_off(unpacked: Path, folder: Path) -> None:
        raise OSError("no space left")

    monkeypatch.setitem(corpus._WRITERS, "code", break_off)
    before = os.umask(0o077)
    try:
        with pytest.raises(OSError, match="no space left"):
            corpus.prepare_corpus(folder)
        monkeypatch.setitem(corpus._WRITERS, "code", write_a_text)
        assert corpus.prepare_corpus(folder)
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (folder, *folder.glob("*/"), *folder.glob("*/*"))}
    assert modes == {"corpus": 0o755, "general": 0o755, "code": 0o755, "text.txt": 0o644}
